//! A client of a registry as Docker and containerd are: the manifest by tag, then the blobs, some at
//! a time, each verified; a body that breaks off is asked for again from where it broke, anywhere.

use futures::{StreamExt, stream};
use hydrant_proto::{Digest, Hasher, Manifest};
use reqwest::header::RANGE;
use std::time::Duration;

/// Layers pulled at once.
const WIDTH: usize = 3;
/// Longest wait for the next bytes.
const IDLE: Duration = Duration::from_secs(15);
/// Tries for one blob.
const TRIES: usize = 40;

/// Pulls images through any of several frontends.
#[derive(Clone)]
pub struct Puller {
    http: reqwest::Client,
    frontends: Vec<String>,
}

/// What a pull met with.
#[derive(Debug, Default)]
pub struct Pulled {
    /// Bodies that broke off and were asked for again.
    pub breaks: usize,
}

impl Puller {
    /// The first of `frontends` (URLs) is asked; the next when it breaks off.
    pub fn new(frontends: impl IntoIterator<Item = String>) -> Self {
        let http = reqwest::Client::builder().read_timeout(IDLE).build();
        let http = http.expect("the settings are valid");
        Self { http, frontends: frontends.into_iter().collect() }
    }

    /// Pulls `repository:tag`. Every digest is checked.
    pub async fn pull(&self, repository: &str, tag: &str) -> Result<Pulled, String> {
        let manifest = self.manifest(repository, tag).await?;
        let blobs: Vec<_> = manifest.blobs().map(|blob| blob.digest.clone()).collect();
        let pulls = blobs.into_iter().map(|digest| self.blob(repository, digest));
        let mut pulled = Pulled::default();
        let mut ended = stream::iter(pulls).buffer_unordered(WIDTH);
        while let Some(breaks) = ended.next().await {
            pulled.breaks += breaks?;
        }
        Ok(pulled)
    }

    /// The manifest of an image, not of an index.
    pub async fn manifest(&self, repository: &str, reference: &str) -> Result<Manifest, String> {
        let url = format!("{}/v2/{repository}/manifests/{reference}", self.frontends[0]);
        let answer = self.http.get(url).send().await.map_err(|e| e.to_string())?;
        let (status, bytes) = (answer.status(), answer.bytes().await);
        match bytes {
            Ok(bytes) if status.is_success() => Manifest::parse(&bytes).map_err(|e| e.to_string()),
            other => Err(format!("manifest: {status} {other:?}")),
        }
    }

    /// The breaks it took.
    async fn blob(&self, repository: &str, digest: Digest) -> Result<usize, String> {
        let (mut hasher, mut at) = (Hasher::new(digest.algorithm()), 0);
        for breaks in 0..TRIES {
            let frontend = &self.frontends[breaks % self.frontends.len()];
            let url = format!("{frontend}/v2/{repository}/blobs/{digest}");
            match self.rest(&url, &mut hasher, &mut at).await {
                Ok(()) => {
                    let right = hasher.finish() == digest;
                    let wrong = || format!("{digest} ended cleanly with other bytes");
                    return right.then_some(breaks).ok_or_else(wrong);
                }
                // A client's pause before it asks the next one; there is nothing to wait for.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
        Err(format!("{digest} broke off {TRIES} times, at {at}"))
    }

    async fn rest(&self, url: &str, hasher: &mut Hasher, at: &mut u64) -> Result<(), String> {
        let mut ask = self.http.get(url);
        if *at > 0 {
            ask = ask.header(RANGE, format!("bytes={at}-"));
        }
        let answer = ask.send().await.map_err(|e| e.to_string())?;
        let wanted = if *at > 0 { 206 } else { 200 };
        if answer.status() != wanted {
            return Err(format!("{}", answer.status()));
        }
        let mut body = answer.bytes_stream();
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|e| e.to_string())?;
            hasher.update(&chunk);
            *at += chunk.len() as u64;
        }
        Ok(())
    }
}
