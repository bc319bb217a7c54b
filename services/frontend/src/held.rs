//! A manifest in hand: bytes that were verified against their digest, and what they say.

use crate::answer::Facts;
use bytes::Bytes;
use hydrant_proto::{Digest, Manifest, MediaType};
use hydrant_upstream::FetchedManifest;

#[derive(Clone, Debug)]
pub struct Held {
    pub digest: Digest,
    pub media_type: MediaType,
    pub bytes: Bytes,
}

impl Held {
    /// `bytes` as storage gave them, already verified. `None` for what is no manifest hydrant
    /// carries, which another registry may have put into the same bucket.
    pub fn local(digest: Digest, bytes: Bytes) -> Option<(Self, Manifest)> {
        let manifest = Manifest::parse(&bytes).ok()?;
        Some((Self { digest, media_type: manifest.media_type, bytes }, manifest))
    }

    pub fn facts(&self) -> Facts {
        Facts {
            digest: Some(self.digest.clone()),
            media_type: Some(self.media_type),
            size: Some(self.bytes.len() as u64),
        }
    }

    /// Memory it takes, about, in bytes.
    pub fn weight(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX).saturating_add(512)
    }
}

impl From<FetchedManifest> for Held {
    fn from(fetched: FetchedManifest) -> Self {
        Self { digest: fetched.digest, media_type: fetched.media_type, bytes: fetched.bytes }
    }
}
