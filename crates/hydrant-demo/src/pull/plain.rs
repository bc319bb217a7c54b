//! The requests any client makes: HEAD of the tag, the index, one platform's manifest, then config
//! and layers at once. Every digest is checked.

use super::Pulled;
use crate::upstream::PLATFORM;
use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use hydrant_proto::{Algorithm, Descriptor, Digest, Hasher, Manifest, MediaType, Platform};
use reqwest::{Response, header};

/// A registry over plain HTTP, and a repository in it.
struct Repository {
    http: reqwest::Client,
    url: String,
}

pub async fn pull(host: &str, image: &str) -> Result<Pulled> {
    let (name, tag) = image.rsplit_once(':').context("the image has a tag")?;
    let http = reqwest::Client::builder().no_proxy().build()?;
    let repository = Repository { http, url: format!("http://{host}/v2/{name}") };

    let tagged = repository.resolve(tag).await?;
    let index = repository.manifest(&tagged).await?;
    let child = child_for(&Manifest::parse(&index)?)?;
    let manifest = repository.manifest(&child).await?;
    let parsed = Manifest::parse(&manifest)?;
    let sizes = try_join_all(parsed.blobs().map(|blob| repository.blob(blob))).await?;
    let manifests = index.len() + manifest.len();
    Ok(Pulled {
        manifest: child,
        blobs: parsed.blobs().map(|blob| blob.digest.clone()).collect(),
        bytes: sizes.iter().sum::<u64>() + manifests as u64,
    })
}

/// The digest of the manifest for [`PLATFORM`].
fn child_for(index: &Manifest) -> Result<Digest> {
    let wanted: Platform = PLATFORM.parse()?;
    let mut children = index.children().iter();
    let child = children.find(|child| child.platform.as_ref() == Some(&wanted));
    Ok(child.with_context(|| format!("the index has no {PLATFORM}"))?.digest.clone())
}

impl Repository {
    /// What a tag points at, by HEAD.
    async fn resolve(&self, tag: &str) -> Result<Digest> {
        let url = format!("{}/manifests/{tag}", self.url);
        let answer = self.http.head(&url).header(header::ACCEPT, accept()).send().await?;
        let answer = answer.error_for_status()?;
        let digest = answer.headers().get("docker-content-digest");
        let digest = digest.with_context(|| format!("{url} names no digest"))?;
        Ok(digest.to_str()?.parse()?)
    }

    async fn manifest(&self, digest: &Digest) -> Result<Vec<u8>> {
        let answer = self.get(&format!("manifests/{digest}")).await?;
        let bytes = answer.bytes().await?;
        ensure!(
            digest.matches(&bytes),
            "the manifest of {digest} hashes to {}",
            Digest::of(&bytes)
        );
        Ok(bytes.into())
    }

    /// Reads a blob to its end; returns its size.
    async fn blob(&self, blob: &Descriptor) -> Result<u64> {
        let mut answer = self.get(&format!("blobs/{}", blob.digest)).await?;
        let (mut hasher, mut size) = (Hasher::new(Algorithm::Sha256), 0);
        while let Some(chunk) = answer.chunk().await? {
            hasher.update(&chunk);
            size += chunk.len() as u64;
        }
        let found = hasher.finish();
        ensure!(found == blob.digest, "blob {} hashes to {found}", blob.digest);
        ensure!(size == blob.size, "blob {} has {size} bytes, not {}", blob.digest, blob.size);
        Ok(size)
    }

    async fn get(&self, path: &str) -> Result<Response> {
        let request = self.http.get(format!("{}/{path}", self.url));
        Ok(request.header(header::ACCEPT, accept()).send().await?.error_for_status()?)
    }
}

fn accept() -> String {
    [MediaType::OciIndex, MediaType::OciManifest].map(MediaType::as_str).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hydrant_testkit::{FakeUpstream, Fault, Image};

    #[tokio::test]
    async fn a_pull_brings_one_platform_and_no_wrong_byte() {
        let upstream = FakeUpstream::start().await;
        let image = Image::multi_arch(3, &["linux/arm64", PLATFORM], &[70_000, 10]);
        upstream.insert(&image, "app", "1");
        let child = image.child(PLATFORM);
        let pulled = pull(&upstream.host(), "app:1").await.unwrap();
        assert_eq!((&pulled.manifest, pulled.blobs.len()), (&child.digest, 3));
        assert_eq!(pulled.bytes, image.manifest.len() as u64 + child.total_bytes());

        for pattern in ["*/blobs/*", &format!("*/manifests/{}", child.digest)] {
            let fault = upstream.inject(pattern, Fault::wrong_bytes());
            let error = pull(&upstream.host(), "app:1").await.unwrap_err();
            assert!(error.to_string().contains("hashes to"), "{error:#}");
            fault.remove();
        }
    }
}
