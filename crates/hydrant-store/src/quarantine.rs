//! Damaged content: confirmed by a second look, moved aside, so that it is fetched again.

use crate::{Store, error::StoreError, key::Key, read};
use bytes::Bytes;
use futures::{StreamExt, pin_mut};
use hydrant_proto::{Digest, Hasher};
use object_store::{GetOptions, ObjectMeta, ObjectStoreExt};
use std::{
    collections::BTreeSet,
    sync::{MutexGuard, PoisonError},
};

/// What a second look at stored content found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scrubbed {
    /// It hashes to its digest.
    Sound,
    Missing,
    /// It did not, and was moved aside.
    Quarantined,
}

impl Store {
    /// Reads content again, whole, and moves it aside if it does not hash to its digest.
    pub async fn scrub(&self, digest: &Digest) -> Result<Scrubbed, StoreError> {
        let path = self.at(Key::Blob(digest));
        let Some(opened) = self.get(&path, GetOptions::default()).await? else {
            return Ok(Scrubbed::Missing);
        };
        let (meta, mut hasher) = (opened.meta.clone(), Hasher::new(digest.algorithm()));
        let chunks = read::resumed(self.clone(), path, opened, 0..meta.size);
        pin_mut!(chunks);
        while let Some(bytes) = chunks.next().await.transpose()? {
            hasher.update(&bytes);
        }
        if hasher.finish() == *digest {
            return Ok(Scrubbed::Sound);
        }
        self.quarantine(digest, &meta).await
    }

    /// Content of at most `limit` bytes, verified. Damage is looked at twice, because it may have
    /// happened on the way, and then moved aside; it is never returned.
    pub(crate) async fn read_verified(
        &self,
        digest: &Digest,
        limit: u64,
    ) -> Result<Option<Bytes>, StoreError> {
        let path = self.at(Key::Blob(digest));
        let Some(first) = self.get_whole(&path, limit).await? else {
            return Ok(None);
        };
        if digest.matches(&first.bytes) {
            return Ok(Some(first.bytes));
        }
        let Some(second) = self.get_whole(&path, limit).await? else {
            return Ok(None);
        };
        if digest.matches(&second.bytes) {
            return Ok(Some(second.bytes));
        }
        self.quarantine(digest, &second.meta).await?;
        Ok(None)
    }

    /// Looks again at content that a reader found damaged; once, however many readers did.
    pub(crate) fn scrub_in_background(&self, digest: Digest) {
        if !self.suspects().insert(digest.clone()) {
            return;
        }
        let store = self.clone();
        self.background.spawn(async move {
            if let Err(error) = store.scrub(&digest).await {
                tracing::error!(%digest, %error, "cannot look again at suspect content");
            }
            store.suspects().remove(&digest);
        });
    }

    fn suspects(&self) -> MutexGuard<'_, BTreeSet<Digest>> {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the object aside if it is still the one that was seen. Whoever replaces it in the
    /// instant between that look and the deletion loses the replacement and must fetch once more.
    async fn quarantine(&self, digest: &Digest, seen: &ObjectMeta) -> Result<Scrubbed, StoreError> {
        let path = &seen.location;
        let kept = self.objects.copy(path, &self.at(Key::Quarantined(digest))).await;
        if let Err(error) = kept {
            tracing::warn!(%digest, %error, "cannot keep a copy of damaged content");
        }
        match self.head(path).await? {
            Some(now) if now.e_tag == seen.e_tag && now.size == seen.size => {
                self.delete(path).await?;
                tracing::error!(%digest, size_bytes = seen.size, "damaged content quarantined");
                Ok(Scrubbed::Quarantined)
            }
            Some(_) => Ok(Scrubbed::Sound),
            None => Ok(Scrubbed::Missing),
        }
    }
}
