//! How clients pull an image. The two models send what Docker and containerd send, three layers at
//! a time, and verify every digest, since that is work real clients do on the same machine.

use crate::wire::{Answer, Request, Session};
use anyhow::{Context, Result, bail, ensure};
use hydrant_proto::{Algorithm, Digest, Hasher, Manifest, Platform};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{Read, Seek},
    os::unix::fs::FileExt,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::Semaphore, task::JoinSet};

/// Layers one client fetches at once; Docker's and containerd's default.
const LAYERS_AT_ONCE: usize = 3;
/// Ranges in which the containerd model fetches a large layer at once.
const RANGES: u64 = 4;
/// Smallest range.
const SMALLEST_RANGE: u64 = 16 * 1024 * 1024;

/// Whose requests are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Model {
    /// HEAD of the tag, index and manifest by digest, each layer whole.
    Docker,
    /// The same, with large layers in parallel ranges, as containerd 2.1 and later can be set to.
    Containerd,
}

/// Where an image is pulled from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// `host:port`.
    pub authority: String,
    /// What stands before the upstream's repository in the path: empty, or ending in `/`.
    pub prefix: String,
}

impl Source {
    pub fn manifest(&self, repository: &str, reference: &str) -> String {
        format!("/v2/{}{repository}/manifests/{reference}", self.prefix)
    }

    pub fn blob(&self, repository: &str, digest: &str) -> String {
        format!("/v2/{}{repository}/blobs/{digest}", self.prefix)
    }
}

/// What a pull brought; every digest was computed from what came.
#[derive(Clone, Copy, Debug)]
pub struct Pulled {
    pub took: Duration,
    /// From the request for the largest layer to its first byte.
    pub first_byte: Duration,
    /// Manifests and blobs.
    pub bytes: u64,
}

/// Pulls `repository:tag` for [`crate::upstream::PLATFORM`].
pub async fn pull(source: &Source, repository: &str, tag: &str, model: Model) -> Result<Pulled> {
    let puller =
        Arc::new(Puller { source: source.clone(), repository: repository.to_owned(), model });
    let started = Instant::now();
    let mut session = Session::default();
    let (manifest, read) = puller.manifest(&mut session, tag).await?;
    let blobs = puller.blobs(&manifest).await?;
    Ok(Pulled { took: started.elapsed(), first_byte: blobs.first_byte, bytes: read + blobs.bytes })
}

struct Puller {
    source: Source,
    repository: String,
    model: Model,
}

struct Blobs {
    bytes: u64,
    first_byte: Duration,
}

impl Puller {
    /// The platform's manifest, and the bytes of all manifests read.
    async fn manifest(&self, session: &mut Session, tag: &str) -> Result<(Manifest, u64)> {
        let path = |reference: &str| self.source.manifest(&self.repository, reference);
        let head = session.fetch(&self.source.authority, &Request::head(path(tag)), |_| {}).await?;
        ensure!(head.head.status == 200, "HEAD of {tag} was answered {}", head.head.status);
        let digest = head.head.digest.context("HEAD of a tag tells no digest")?;
        let index = self.document(session, &path(&digest), &digest).await?;
        let parsed = Manifest::parse(&index).context("parse the index")?;
        let platform: Platform = crate::upstream::PLATFORM.parse()?;
        let mut children = parsed.children().iter();
        let Some(child) = children.find(|child| child.platform.as_ref() == Some(&platform)) else {
            return Ok((parsed, index.len() as u64));
        };
        let digest = child.digest.to_string();
        let manifest = self.document(session, &path(&digest), &digest).await?;
        let parsed = Manifest::parse(&manifest).context("parse the manifest")?;
        Ok((parsed, (index.len() + manifest.len()) as u64))
    }

    async fn document(&self, session: &mut Session, path: &str, digest: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let request = Request::get(path);
        let each = |piece: &[u8]| bytes.extend_from_slice(piece);
        let answer = session.fetch(&self.source.authority, &request, each).await?;
        ensure!(answer.head.status == 200, "{path} was answered {}", answer.head.status);
        ensure!(Digest::of(&bytes).to_string() == digest, "{path} does not hash to its digest");
        Ok(bytes)
    }

    async fn blobs(self: Arc<Self>, manifest: &Manifest) -> Result<Blobs> {
        let slots = Arc::new(Semaphore::new(LAYERS_AT_ONCE));
        let mut fetches = JoinSet::new();
        for blob in manifest.blobs() {
            let (puller, slots) = (self.clone(), slots.clone());
            let (digest, size) = (blob.digest.to_string(), blob.size);
            fetches.spawn(async move {
                let _slot = slots.acquire().await?;
                let first_byte = puller.blob(&digest, size).await;
                Ok::<_, anyhow::Error>((size, first_byte.with_context(|| digest)?))
            });
        }
        let (mut bytes, mut largest) = (0, (0, Duration::ZERO));
        while let Some(fetched) = fetches.join_next().await {
            let (size, first_byte) = fetched.context("a fetch does not panic")??;
            bytes += size;
            largest = largest.max((size, first_byte));
        }
        Ok(Blobs { bytes, first_byte: largest.1 })
    }

    /// Time to the first byte.
    async fn blob(&self, digest: &str, size: u64) -> Result<Duration> {
        match self.model {
            Model::Containerd if size >= 2 * SMALLEST_RANGE => self.in_ranges(digest, size).await,
            Model::Docker | Model::Containerd => self.whole(digest, size).await,
        }
    }

    async fn whole(&self, digest: &str, size: u64) -> Result<Duration> {
        let request = Request::get(self.source.blob(&self.repository, digest));
        let (mut hasher, started) = (Hasher::new(Algorithm::Sha256), Instant::now());
        let each = |piece: &[u8]| hasher.update(piece);
        let answer = Session::default().fetch(&self.source.authority, &request, each).await?;
        check(&answer, 200, size)?;
        ensure!(hasher.finish().to_string() == digest, "the bytes do not hash to the digest");
        Ok(answer.first_byte - started)
    }

    /// Into a file, which is hashed when all parts are there, as containerd does it.
    async fn in_ranges(&self, digest: &str, size: u64) -> Result<Duration> {
        let file = Arc::new(tempfile::tempfile().context("make a file for the layer")?);
        let part = size.div_ceil(RANGES).max(SMALLEST_RANGE);
        let mut parts = JoinSet::new();
        for start in (0..size).step_by(usize::try_from(part)?) {
            let path = self.source.blob(&self.repository, digest);
            let request = Request::part(path, start..size.min(start + part));
            parts.spawn(fetch_part(self.source.authority.clone(), request, file.clone()));
        }
        let mut first_byte = Duration::MAX;
        while let Some(fetched) = parts.join_next().await {
            first_byte = first_byte.min(fetched.context("a fetch does not panic")??);
        }
        let found = tokio::task::spawn_blocking(move || hash(&file)).await??;
        ensure!(found.to_string() == digest, "the bytes do not hash to the digest");
        Ok(first_byte)
    }
}

async fn fetch_part(authority: String, request: Request, file: Arc<File>) -> Result<Duration> {
    let range = request.range.clone().unwrap_or_default();
    let (mut at, mut written, started) = (range.start, Ok(()), Instant::now());
    let each = |piece: &[u8]| {
        if written.is_ok() {
            written = file.write_all_at(piece, at);
        }
        at += piece.len() as u64;
    };
    let answer = Session::default().fetch(&authority, &request, each).await?;
    written.context("write the layer")?;
    check(&answer, 206, range.end - range.start)?;
    Ok(answer.first_byte - started)
}

fn check(answer: &Answer, status: u16, size: u64) -> Result<()> {
    match (answer.head.status, answer.length) {
        (found, length) if found == status && length == size => Ok(()),
        (found, length) if found == status => bail!("{length} bytes came, not {size}"),
        (found, _) => bail!("the blob was answered {found}, not {status}"),
    }
}

fn hash(mut file: &File) -> Result<Digest> {
    let (mut hasher, mut buffer) = (Hasher::new(Algorithm::Sha256), vec![0; 1024 * 1024]);
    file.rewind()?;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&buffer[..read]),
        }
    }
}
