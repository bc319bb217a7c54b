//! Images that are the same in every run, built from a seed.

use crate::{Content, client};
use bytes::Bytes;
use hydrant_proto::{Digest, MediaType, Platform};
use reqwest::{Method, RequestBuilder, StatusCode, header};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// An image manifest, or an index with its children, and all content below it.
#[derive(Clone, Debug)]
pub struct Image {
    pub media_type: MediaType,
    pub digest: Digest,
    /// The document as it is served, laid out as no serialiser of ours would do it again.
    pub manifest: Bytes,
    /// Config first, then layers; none in an index.
    pub blobs: Vec<Blob>,
    /// The manifests of an index.
    pub children: Vec<Image>,
    pub platform: Option<Platform>,
}

#[derive(Clone, Debug)]
pub struct Blob {
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    pub content: Content,
}

impl From<Content> for Blob {
    fn from(content: Content) -> Self {
        Self { digest: content.digest(), size: content.length(), content }
    }
}

/// Builds one image. Two builders with the same seed and settings build the same bytes.
#[derive(Clone, Debug)]
pub struct ImageBuilder {
    seed: u64,
    layers: Vec<Content>,
    platform: Platform,
    docker: bool,
}

impl ImageBuilder {
    /// A `linux/amd64` OCI image without layers.
    pub fn new(seed: u64) -> Self {
        let platform = "linux/amd64".parse().expect("a valid platform");
        Self { seed, layers: Vec::new(), platform, docker: false }
    }

    /// Adds a layer of `size` pseudo-random bytes that no other layer of this kit shares.
    pub fn layer(mut self, size: u64) -> Self {
        let seed = self.seed.wrapping_mul(1_000).wrapping_add(self.layers.len() as u64 + 1);
        self.layers.push(Content::Generated { seed, length: size });
        self
    }

    pub fn layers(self, sizes: &[u64]) -> Self {
        sizes.iter().fold(self, |builder, size| builder.layer(*size))
    }

    /// Adds a layer with this content, for instance one that several images share.
    pub fn layer_of(mut self, content: impl Into<Content>) -> Self {
        self.layers.push(content.into());
        self
    }

    /// `linux/arm64`, `linux/arm/v7`, …
    pub fn platform(mut self, platform: &str) -> Self {
        self.platform = platform.parse().expect("a valid platform");
        self
    }

    /// Uses Docker's media types instead of OCI's.
    pub fn docker(mut self) -> Self {
        self.docker = true;
        self
    }

    /// Hashes all layers, so it takes about a second per GiB.
    pub fn build(self) -> Image {
        let layers: Vec<Blob> = self.layers.iter().cloned().map(Blob::from).collect();
        let config = Blob::from(self.config(&layers));
        let names = if self.docker { &DOCKER } else { &OCI };
        let document = json!({
            "schemaVersion": 2,
            "mediaType": names.manifest.as_str(),
            "config": descriptor(names.config, &config),
            "layers": layers.iter().map(|l| descriptor(names.layer, l)).collect::<Vec<_>>(),
        });
        let blobs = [vec![config], layers].concat();
        let platform = Some(self.platform);
        Image { blobs, platform, ..Image::of(names.manifest, &document, Vec::new()) }
    }

    fn config(&self, layers: &[Blob]) -> Content {
        let mut config = json!({
            "architecture": self.platform.architecture,
            "os": self.platform.os,
            "created": "2026-01-01T00:00:00Z",
            "config": { "Labels": { "testkit.seed": self.seed.to_string() } },
            "rootfs": {
                "type": "layers",
                "diff_ids": layers.iter().map(|l| l.digest.to_string()).collect::<Vec<_>>(),
            },
        });
        if let Some(variant) = &self.platform.variant {
            config["variant"] = json!(variant);
        }
        Content::from(config.to_string().into_bytes())
    }
}

struct MediaTypes {
    manifest: MediaType,
    index: MediaType,
    config: &'static str,
    layer: &'static str,
}

const OCI: MediaTypes = MediaTypes {
    manifest: MediaType::OciManifest,
    index: MediaType::OciIndex,
    config: "application/vnd.oci.image.config.v1+json",
    layer: "application/vnd.oci.image.layer.v1.tar+gzip",
};

const DOCKER: MediaTypes = MediaTypes {
    manifest: MediaType::DockerManifest,
    index: MediaType::DockerList,
    config: "application/vnd.docker.container.image.v1+json",
    layer: "application/vnd.docker.image.rootfs.diff.tar.gzip",
};

impl Image {
    /// An index over `children`; a Docker manifest list when the first child is Docker's.
    pub fn index(children: Vec<Self>) -> Self {
        let docker = children.first().is_some_and(|c| c.media_type == MediaType::DockerManifest);
        let media_type = if docker { DOCKER.index } else { OCI.index };
        let manifests: Vec<Value> = children.iter().map(Self::child_descriptor).collect();
        let document = json!({
            "schemaVersion": 2,
            "mediaType": media_type.as_str(),
            "manifests": manifests,
        });
        Self::of(media_type, &document, children)
    }

    /// An index of one image per platform, each with layers of these sizes that it does not share.
    pub fn multi_arch(seed: u64, platforms: &[&str], layers: &[u64]) -> Self {
        let seeds = (1..).map(|n: u64| seed.wrapping_mul(100).wrapping_add(n));
        let child = |(seed, platform): (u64, &&str)| {
            ImageBuilder::new(seed).platform(platform).layers(layers).build()
        };
        Self::index(seeds.zip(platforms).map(child).collect())
    }

    fn of(media_type: MediaType, document: &Value, children: Vec<Self>) -> Self {
        let mut text = serde_json::to_string_pretty(document).expect("a value can be written");
        text.push_str("\n\n");
        let manifest = Bytes::from(text);
        let digest = Digest::of(&manifest);
        Self { media_type, digest, manifest, blobs: Vec::new(), children, platform: None }
    }

    fn child_descriptor(&self) -> Value {
        let mut descriptor = json!({
            "mediaType": self.media_type.as_str(),
            "digest": self.digest.to_string(),
            "size": self.manifest.len(),
        });
        if let Some(platform) = &self.platform {
            descriptor["platform"] =
                json!({ "os": platform.os, "architecture": platform.architecture });
            if let Some(variant) = &platform.variant {
                descriptor["platform"]["variant"] = json!(variant);
            }
        }
        descriptor
    }

    /// Every manifest of the closure, this one last.
    pub fn manifests(&self) -> Vec<&Self> {
        let below = self.children.iter().flat_map(Self::manifests);
        below.chain([self]).collect()
    }

    /// Every blob of the closure, each once.
    pub fn all_blobs(&self) -> Vec<&Blob> {
        let blobs = self.manifests().into_iter().flat_map(|image| &image.blobs);
        let distinct: BTreeMap<_, _> = blobs.map(|blob| (&blob.digest, blob)).collect();
        distinct.into_values().collect()
    }

    /// Bytes of all blobs of the closure, without manifests.
    pub fn blob_bytes(&self) -> u64 {
        self.all_blobs().iter().map(|blob| blob.size).sum()
    }

    /// Bytes of the whole closure, manifests included.
    pub fn total_bytes(&self) -> u64 {
        let manifests: usize = self.manifests().iter().map(|image| image.manifest.len()).sum();
        self.blob_bytes() + manifests as u64
    }

    /// The child for a platform.
    pub fn child(&self, platform: &str) -> &Self {
        let wanted: Platform = platform.parse().expect("a valid platform");
        let mut children = self.children.iter();
        children.find(|child| child.platform.as_ref() == Some(&wanted)).expect("such a child")
    }

    /// Pushes it to the registry at `base` (`http://host:port`) as `repository:tag`.
    pub async fn push(&self, base: &str, repository: &str, tag: &str) {
        Pusher::new(base, repository, None).push(self, tag).await;
    }

    /// The same with Basic credentials.
    pub async fn push_as(&self, base: &str, repository: &str, tag: &str, user: (&str, &str)) {
        let user = Some((user.0.to_owned(), user.1.to_owned()));
        Pusher::new(base, repository, user).push(self, tag).await;
    }
}

fn descriptor(media_type: &str, blob: &Blob) -> Value {
    json!({
        "mediaType": media_type,
        "digest": blob.digest.to_string(),
        "size": blob.size,
    })
}

/// Pushes as the distribution spec says: blobs in one piece each, then manifests, children first.
struct Pusher {
    repository: String,
    user: Option<(String, String)>,
    client: reqwest::Client,
}

impl Pusher {
    fn new(base: &str, repository: &str, user: Option<(String, String)>) -> Self {
        let repository = format!("{base}/v2/{repository}");
        Self { repository, user, client: client::plain() }
    }

    async fn push(&self, image: &Image, tag: &str) {
        for blob in image.all_blobs() {
            self.push_blob(blob).await;
        }
        for manifest in image.manifests() {
            self.push_manifest(manifest, &manifest.digest.to_string()).await;
        }
        self.push_manifest(image, tag).await;
    }

    async fn push_blob(&self, blob: &Blob) {
        let url = format!("{}/blobs/{}", self.repository, blob.digest);
        let head = self.request(Method::HEAD, &url).send().await.expect("the registry answers");
        if head.status() == StatusCode::OK {
            return;
        }
        let begin = self.request(Method::POST, &format!("{}/blobs/uploads/", self.repository));
        let begun = accepted(begin, StatusCode::ACCEPTED).await;
        let location = begun.headers()[header::LOCATION].to_str().expect("locations are text");
        let mut location = begun.url().join(location).expect("locations are URLs");
        location.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
        let put = self
            .request(Method::PUT, location.as_str())
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, blob.size)
            .body(reqwest::Body::wrap_stream(blob.content.stream()));
        accepted(put, StatusCode::CREATED).await;
    }

    async fn push_manifest(&self, image: &Image, reference: &str) {
        let put = self
            .request(Method::PUT, &format!("{}/manifests/{reference}", self.repository))
            .header(header::CONTENT_TYPE, image.media_type.as_str())
            .body(image.manifest.clone());
        accepted(put, StatusCode::CREATED).await;
    }

    fn request(&self, method: Method, url: &str) -> RequestBuilder {
        let request = self.client.request(method, url);
        match &self.user {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        }
    }
}

async fn accepted(request: RequestBuilder, expected: StatusCode) -> reqwest::Response {
    let answer = request.send().await.expect("the registry answers");
    if answer.status() != expected {
        let (status, url) = (answer.status(), answer.url().clone());
        let body = answer.text().await.unwrap_or_default();
        panic!("{url} answered {status}, not {expected}: {body}");
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use hydrant_proto::Manifest;

    #[test]
    fn an_image_is_what_its_manifest_says() {
        let image = ImageBuilder::new(1).layers(&[10, 0, 70_000]).build();
        let parsed = Manifest::parse(&image.manifest).unwrap();
        let named: Vec<_> = parsed.blobs().map(|blob| (&blob.digest, blob.size)).collect();
        let held = image.blobs.iter().map(|blob| (&blob.digest, blob.size));
        assert_eq!(named, held.collect::<Vec<_>>());
        assert_eq!(ImageBuilder::new(1).layers(&[10, 0, 70_000]).build().digest, image.digest);
        assert_ne!(ImageBuilder::new(2).layers(&[10, 0, 70_000]).build().digest, image.digest);
    }

    #[test]
    fn an_index_names_a_child_per_platform() {
        let index = Image::multi_arch(3, &["linux/amd64", "linux/arm/v7"], &[100, 200]);
        let parsed = Manifest::parse(&index.manifest).unwrap();
        assert_eq!(parsed.media_type, MediaType::OciIndex);
        let child = index.child("linux/arm/v7");
        assert_eq!(parsed.children()[1].digest, child.digest);
        assert_eq!(parsed.children()[1].platform, child.platform);
        assert_eq!(index.all_blobs().len(), 6);
        assert_eq!(index.manifests().len(), 3);
        let docker = Image::index(vec![ImageBuilder::new(1).docker().build()]);
        assert_eq!(Manifest::parse(&docker.manifest).unwrap().media_type, MediaType::DockerList);
    }
}
