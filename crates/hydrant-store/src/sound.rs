//! Which content this process has read whole and found sound.
//!
//! A part of a blob cannot be verified by itself. So the first part that is read makes the whole be
//! read once in the background (`quarantine.rs`), and content known sound is left alone.

use hydrant_proto::Digest;
use std::{
    collections::HashSet,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Digests remembered, at 16 bytes each; the longest unused are forgotten first.
const MAX_KNOWN: usize = 100_000;
/// Contents read at once because a part of them was.
const AT_ONCE: usize = 2;

pub(crate) struct Sound {
    known: Mutex<Known>,
    turns: Semaphore,
    stop: CancellationToken,
}

impl Sound {
    pub(crate) fn new() -> Self {
        let (known, stop) = (Mutex::default(), CancellationToken::new());
        Self { known, turns: Semaphore::new(AT_ONCE), stop }
    }

    pub(crate) fn knows(&self, digest: &Digest) -> bool {
        self.known().contains(key(digest))
    }

    pub(crate) fn learn(&self, digest: &Digest) {
        self.known().insert(key(digest), MAX_KNOWN);
    }

    pub(crate) fn forget(&self, digest: &Digest) {
        self.known().remove(key(digest));
    }

    /// Runs `look` when its turn comes; `None` when the process stops before it is done.
    pub(crate) async fn in_turn<T>(&self, look: impl Future<Output = T>) -> Option<T> {
        let look = async {
            let _turn = self.turns.acquire().await.expect("it is never closed");
            look.await
        };
        self.stop.run_until_cancelled(look).await
    }

    /// Gives up everything that waits for its turn or is in it: no shutdown waits for gigabytes.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last half of what was used, and the half before it.
#[derive(Default)]
struct Known {
    recent: HashSet<u128>,
    before: HashSet<u128>,
}

impl Known {
    fn contains(&mut self, key: u128) -> bool {
        let is_known = self.recent.contains(&key) || self.before.contains(&key);
        if is_known {
            self.insert(key, MAX_KNOWN);
        }
        is_known
    }

    fn insert(&mut self, key: u128, limit: usize) {
        if self.recent.insert(key) && self.recent.len() > limit / 2 {
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

    #[test]
    fn the_memory_is_bounded_and_keeps_what_is_used() {
        let mut known = Known::default();
        for key in 0..1_000 {
            known.insert(key, 100);
            assert!(known.contains(0), "used all the time, {key}");
            assert!(known.recent.len() + known.before.len() <= 102);
        }
        assert!(known.contains(999) && !known.contains(1));
        known.remove(999);
        assert!(!known.contains(999));
    }
}
