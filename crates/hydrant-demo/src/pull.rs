//! Pulling one platform of the image through hydrant: by skopeo where it is installed, else by the
//! few requests any client makes.

mod plain;

use crate::upstream::PLATFORM;
use anyhow::{Result, anyhow};
use hydrant_proto::Digest;
use hydrant_testkit::{Image, Skopeo};
use std::{collections::BTreeSet, env};

/// Who pulls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    Skopeo,
    Plain,
}

/// What a pull brought. Every digest was computed from the bytes that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// The platform's manifest.
    pub manifest: Digest,
    /// Config and layers.
    pub blobs: BTreeSet<Digest>,
    /// Index, manifest and blobs.
    pub bytes: u64,
}

impl Client {
    /// Skopeo if it is on `PATH`.
    pub fn find() -> Self {
        let path = env::var_os("PATH").unwrap_or_default();
        let found = env::split_paths(&path).any(|dir| dir.join("skopeo").is_file());
        if found { Self::Skopeo } else { Self::Plain }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Skopeo => "skopeo",
            Self::Plain => "own client",
        }
    }

    /// Pulls [`PLATFORM`] of `image` (`repository:tag`) from the registry at `host`.
    pub async fn pull(self, host: &str, image: &str, known: &Image) -> Result<Pulled> {
        match self {
            Self::Skopeo => by_skopeo(&format!("{host}/{image}"), known).await,
            Self::Plain => plain::pull(host, image).await,
        }
    }
}

/// The kit hashes again what skopeo wrote. The index is only passed through by skopeo, which keeps
/// to the manifest it names; its size is known.
async fn by_skopeo(name: &str, known: &Image) -> Result<Pulled> {
    let pulled = Skopeo::pull(name).platform(PLATFORM).run().await;
    let pulled = pulled.map_err(|said| anyhow!("skopeo: {}", said.trim()))?;
    let blobs: u64 = pulled.parsed().blobs().map(|blob| blob.size).sum();
    let manifests = known.manifest.len() + pulled.manifest.len();
    Ok(Pulled {
        manifest: pulled.digest.clone(),
        blobs: pulled.blobs.clone(),
        bytes: blobs + manifests as u64,
    })
}
