//! Damaged content: confirmed by a second look, moved aside, so that it is fetched again.

use crate::{Store, error::StoreError, identity::Identity, key::Key, read};
use bytes::Bytes;
use futures::{StreamExt, pin_mut};
use hydrant_proto::{Digest, Hasher};
use hydrant_telemetry::metrics;
use object_store::{GetOptions, GetResult, ObjectMeta, ObjectStoreExt};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    mem,
    sync::{MutexGuard, PoisonError},
};

/// Contents of which a part was read that wait to be read whole.
const MAX_WAITING: usize = 1_000;

/// What a second look at stored content found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scrubbed {
    /// It hashes to its digest.
    Sound,
    Missing,
    /// It did not, and was moved aside.
    Quarantined,
}

/// What one reading of stored content found.
enum Through {
    Sound,
    Damaged(ObjectMeta),
}

/// What a reader knows of the content that it wants looked at.
#[derive(Clone, Copy, Debug)]
enum Found {
    Damaged,
    Nothing,
}

impl Found {
    /// Counts damage, unless it was `counted` before: however many readers and looks find it.
    fn count(self, counted: &mut bool) {
        match self {
            Self::Damaged if !mem::replace(counted, true) => metrics().store.found_corrupt(),
            Self::Damaged | Self::Nothing => {}
        }
    }
}

impl Store {
    /// Reads content again, whole, and moves it aside if it does not hash to its digest. Whoever has
    /// it looked at may have read only a part, so one bad read is looked at again: it may have
    /// become so on the way.
    pub async fn scrub(&self, digest: &Digest) -> Result<Scrubbed, StoreError> {
        for is_last in [false, true] {
            match self.read_through(digest).await? {
                None => return Ok(Scrubbed::Missing),
                Some(Through::Sound) => return Ok(Scrubbed::Sound),
                Some(Through::Damaged(meta)) if is_last => {
                    return self.quarantine(digest, &meta).await;
                }
                Some(Through::Damaged(_)) => {
                    tracing::warn!(%digest, "content was read damaged, reading it once more");
                }
            }
        }
        unreachable!("the last look ends it")
    }

    async fn read_through(&self, digest: &Digest) -> Result<Option<Through>, StoreError> {
        let path = self.at(Key::Blob(digest));
        let Some(opened) = self.get(&path, GetOptions::default()).await? else {
            return Ok(None);
        };
        let (meta, file) = (opened.meta.clone(), Identity::settled(&opened));
        let mut hasher = Hasher::new(digest.algorithm());
        let chunks = read::resumed(self.clone(), path, opened, 0..meta.size);
        pin_mut!(chunks);
        while let Some(bytes) = chunks.next().await.transpose()? {
            hasher.update(&bytes);
        }
        if hasher.finish() != *digest {
            return Ok(Some(Through::Damaged(meta)));
        }
        self.sound.learn(digest, file);
        Ok(Some(Through::Sound))
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
            self.sound.learn(digest, first.file);
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
    pub(crate) fn scrub_in_background(&self, digest: &Digest) {
        self.sound.forget(digest);
        let (store, of) = (self.clone(), digest.clone());
        self.look(digest, Found::Damaged, async move { store.scrub(&of).await.map(drop) });
    }

    /// Looks at content of which a part is read, unless this process has seen it sound as it was
    /// `opened` for that. With too many waiting it is left to the next read.
    pub(crate) fn scrub_once(&self, digest: &Digest, opened: &GetResult) {
        if self.sound.knows(digest, Identity::settled(opened))
            || self.suspects().len() >= MAX_WAITING
        {
            return;
        }
        let (store, of) = (self.clone(), digest.clone());
        self.look(digest, Found::Nothing, async move {
            store.sound.in_turn(Box::pin(store.scrub(&of))).await.transpose().map(drop)
        });
    }

    /// Runs a look in the background, unless one at the same content is under way.
    fn look(
        &self,
        digest: &Digest,
        found: Found,
        look: impl Future<Output = Result<(), StoreError>> + Send + 'static,
    ) {
        match self.suspects().entry(digest.clone()) {
            Entry::Occupied(mut held) => return found.count(held.get_mut()),
            Entry::Vacant(place) => found.count(place.insert(false)),
        }
        let (store, digest) = (self.clone(), digest.clone());
        self.background.spawn(async move {
            if let Err(error) = look.await {
                tracing::error!(%digest, %error, "cannot look again at suspect content");
            }
            store.suspects().remove(&digest);
        });
    }

    fn suspects(&self) -> MutexGuard<'_, BTreeMap<Digest, bool>> {
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
                // A reader that found it damaged may have counted it when it asked for this look.
                Found::Damaged.count(self.suspects().get_mut(digest).unwrap_or(&mut false));
                self.delete(path).await?;
                self.sound.forget(digest);
                tracing::error!(%digest, size_bytes = seen.size, "damaged content quarantined");
                Ok(Scrubbed::Quarantined)
            }
            Some(_) => Ok(Scrubbed::Sound),
            None => Ok(Scrubbed::Missing),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faulty::Fault;
    use std::sync::atomic::Ordering;

    async fn blob(length: usize) -> (Store, Digest) {
        let (store, bytes) = (Store::in_memory(), Bytes::from(vec![7; length]));
        let digest = Digest::of(&bytes);
        store.put_blob_bytes(&digest, bytes).await.unwrap();
        (store, digest)
    }

    #[tokio::test]
    async fn content_of_which_parts_are_read_is_looked_at_once() {
        let (store, digest) = blob(500_000).await;
        store.read_blob(&digest, Some(5..10)).await.unwrap().unwrap();
        store.background.close();
        store.background.wait().await;
        assert!(store.sound.knows(&digest, None), "nobody looked");
        store.read_blob(&digest, Some(5..10)).await.unwrap().unwrap();
        assert!(store.suspects().is_empty());
    }

    #[tokio::test]
    async fn what_was_read_whole_is_known_sound_until_it_is_found_damaged() {
        for length in [1_000, 500_000] {
            let (store, digest) = blob(length).await;
            assert!(!store.sound.knows(&digest, None));
            let read = store.read_blob(&digest, None).await.unwrap().unwrap();
            read.stream.for_each(async |bytes| drop(bytes.unwrap())).await;
            assert!(store.sound.knows(&digest, None));
            let path = store.at(Key::Blob(&digest));
            store.put(&path, "damage".into(), object_store::PutMode::Overwrite).await.unwrap();
            assert_eq!(store.scrub(&digest).await.unwrap(), Scrubbed::Quarantined);
            assert!(!store.sound.knows(&digest, None));
        }
    }

    #[tokio::test]
    async fn content_that_one_read_damages_is_not_blamed_and_what_all_find_damaged_is() {
        for (bad_reads, expected) in
            [(0, Scrubbed::Sound), (1, Scrubbed::Sound), (2, Scrubbed::Quarantined)]
        {
            let (store, left) = Store::faulty(Fault::DamagesReads);
            let bytes = Bytes::from(vec![7; 500_000]);
            let digest = Digest::of(&bytes);
            store.put_blob_bytes(&digest, bytes).await.unwrap();
            left.store(bad_reads, Ordering::Relaxed);
            assert_eq!(store.scrub(&digest).await.unwrap(), expected, "{bad_reads} bad reads");
            let is_there = store.has_blob(&digest, 500_000).await.unwrap();
            assert_eq!(is_there, expected == Scrubbed::Sound);
        }
    }

    #[tokio::test]
    async fn no_shutdown_waits_for_looks_at_content_that_nobody_suspects() {
        let (store, _) = blob(1).await;
        let of = |n: u32| Digest::of(&n.to_be_bytes());
        for n in 0..5 {
            let sound = std::sync::Arc::clone(&store.sound);
            store.look(&of(n), Found::Nothing, async move {
                sound.in_turn(std::future::pending::<()>()).await;
                Ok(())
            });
        }
        store.settled().await;
        assert!(store.suspects().is_empty());
    }
}
