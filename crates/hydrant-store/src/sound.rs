//! Which content this process has read whole and found sound.
//!
//! A part of a blob cannot be verified by itself. So the first part that is read makes the whole be
//! read once in the background (`quarantine.rs`), and content known sound is left alone. What is
//! known of a file holds for the file as it was then (`identity.rs`), and for a day.

use crate::{identity::Identity, sound_file::SoundFile};
use hydrant_proto::Digest;
use rustix::process::{Resource, getrlimit};
use std::{
    collections::HashMap,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Digests remembered, at some 100 bytes each; the longest unused are forgotten first.
const MAX_KNOWN: usize = 100_000;
/// Contents read at once because a part of them was.
const AT_ONCE: usize = 2;
/// How long what was found is believed: a medium may decay under a file that nobody touches.
const BELIEVED_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// Files kept open at most, and as a share of the files that this process may have open.
const MAX_OPEN: u64 = 512;
const OPEN_SHARE: u64 = 8;

pub(crate) struct Sound {
    known: Mutex<Known>,
    open: Mutex<HashMap<u128, SoundFile>>,
    most_open: usize,
    turns: Semaphore,
    stop: CancellationToken,
}

impl Sound {
    pub(crate) fn new() -> Self {
        Self {
            known: Mutex::default(),
            open: Mutex::default(),
            most_open: most_open(getrlimit(Resource::Nofile).current),
            turns: Semaphore::new(AT_ONCE),
            stop: CancellationToken::new(),
        }
    }

    /// Whether the content was found sound; in a file, as the file is now.
    pub(crate) fn knows(&self, digest: &Digest, now: Option<Identity>) -> bool {
        self.known().get(key(digest)).is_some_and(|found| found == now)
    }

    /// The file that was found to hold the content.
    pub(crate) fn identity(&self, digest: &Digest) -> Option<Identity> {
        self.known().get(key(digest)).flatten()
    }

    /// Notes that the content was found sound. For a file, `read` is what it was before it was read.
    pub(crate) fn learn(&self, digest: &Digest, read: Option<Identity>) {
        self.known().insert(key(digest), Found { read, at: Instant::now() }, MAX_KNOWN);
    }

    pub(crate) fn forget(&self, digest: &Digest) {
        self.known().remove(key(digest));
        self.close(digest);
    }

    pub(crate) fn opened(&self, digest: &Digest) -> Option<SoundFile> {
        self.open().get(&key(digest)).cloned()
    }

    /// Keeps a file open for others, and tells whether there was room for it.
    pub(crate) fn keep_open(&self, digest: &Digest, file: SoundFile) -> bool {
        let mut open = self.open();
        let has_room = open.len() < self.most_open;
        if has_room {
            open.insert(key(digest), file);
        }
        has_room
    }

    pub(crate) fn close(&self, digest: &Digest) {
        self.open().remove(&key(digest));
    }

    /// Runs `look` when its turn comes; `None` when the process stops before it is done.
    pub(crate) async fn in_turn<T>(&self, look: impl Future<Output = T>) -> Option<T> {
        let look = async {
            let _turn = self.turns.acquire().await.expect("it is never closed");
            look.await
        };
        self.until_stop(look).await
    }

    /// `None` when the process stops before `work` is done.
    pub(crate) async fn until_stop<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.stop.run_until_cancelled(work).await
    }

    /// Gives up everything that waits for its turn or is in it: no shutdown waits for gigabytes.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u128, SoundFile>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `limit` is how many files this process may have open, if there is a limit.
fn most_open(limit: Option<u64>) -> usize {
    let most = limit.map_or(MAX_OPEN, |limit| MAX_OPEN.min(limit / OPEN_SHARE));
    usize::try_from(most).unwrap_or(0)
}

/// What was found sound, and when.
#[derive(Clone, Copy)]
struct Found {
    /// The file, unless it was an object of another kind.
    read: Option<Identity>,
    at: Instant,
}

/// The last half of what was used, and the half before it.
#[derive(Default)]
struct Known {
    recent: HashMap<u128, Found>,
    before: HashMap<u128, Found>,
}

impl Known {
    /// What was read, if it was found sound no longer ago than that counts.
    fn get(&mut self, key: u128) -> Option<Option<Identity>> {
        let found = match self.recent.get(&key) {
            Some(found) => *found,
            None => {
                let found = *self.before.get(&key)?;
                self.insert(key, found, MAX_KNOWN);
                found
            }
        };
        (found.at.elapsed() < BELIEVED_FOR).then_some(found.read)
    }

    fn insert(&mut self, key: u128, found: Found, limit: usize) {
        self.recent.insert(key, found);
        if self.recent.len() > limit / 2 {
            self.before = mem::take(&mut self.recent);
        }
    }

    fn remove(&mut self, key: u128) {
        self.recent.remove(&key);
        self.before.remove(&key);
    }
}

/// The first 128 bits: of a cryptographic hash they are as good as all.
fn key(digest: &Digest) -> u128 {
    u128::from_str_radix(&digest.hex()[..32], 16).expect("digests are hex, 64 digits or more")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found_now() -> Found {
        Found { read: None, at: Instant::now() }
    }

    #[test]
    fn the_memory_is_bounded_and_keeps_what_is_used() {
        let mut known = Known::default();
        for key in 0..1_000 {
            known.insert(key, found_now(), 100);
            assert!(known.get(0).is_some(), "used all the time, {key}");
            assert!(known.recent.len() + known.before.len() <= 102);
        }
        assert!(known.get(999).is_some() && known.get(1).is_none());
        known.remove(999);
        assert!(known.get(999).is_none());
    }

    #[test]
    fn what_was_found_is_not_believed_for_ever() {
        let mut known = Known::default();
        let Some(at) = Instant::now().checked_sub(BELIEVED_FOR) else { return };
        known.insert(1, Found { read: None, at }, 100);
        assert!(known.get(1).is_none());
        known.insert(1, found_now(), 100);
        assert!(known.get(1).is_some());
    }

    #[test]
    fn open_files_leave_the_most_of_them_to_connections() {
        assert_eq!(most_open(None), 512);
        assert_eq!(most_open(Some(1_024)), 128);
        assert_eq!(most_open(Some(1 << 20)), 512);
    }
}
