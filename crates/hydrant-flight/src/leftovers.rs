//! What dead processes left in the spool: kept for the next flight of the same blob, as a part of
//! the budget, for an hour at most, and no longer than room is not needed for what flies.

use crate::spool::{Reserved, Spool};
use hydrant_proto::Digest;
use hydrant_store::LeftSpool;
use std::{
    collections::VecDeque,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How long nothing may have been written to a file that is kept: longer than a job waits for its
/// next worker, or a process for its restart.
const KEPT_FOR: Duration = Duration::from_secs(60 * 60);
/// How often it is looked what there is.
const EVERY: Duration = Duration::from_secs(10 * 60);

#[derive(Debug)]
pub(crate) struct Leftovers {
    dir: PathBuf,
    spool: Arc<Spool>,
    /// What was seen at the last look, the oldest first, and what was left since, with its part of
    /// the budget.
    known: Mutex<VecDeque<(Digest, Arc<Reserved>)>>,
}

impl Leftovers {
    /// Those in `dir`, which is made if needed.
    pub fn new(dir: PathBuf, spool: &Arc<Spool>) -> io::Result<Arc<Self>> {
        std::fs::create_dir_all(&dir)?;
        let leftovers = Arc::new(Self { dir, spool: spool.clone(), known: Mutex::default() });
        leftovers.look();
        Ok(leftovers)
    }

    /// Looks again from time to time, as long as anybody else has `self`.
    pub fn look_regularly(self: &Arc<Self>) {
        let leftovers = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(EVERY).await;
                let Some(leftovers) = leftovers.upgrade() else { return };
                leftovers.look();
            }
        });
    }

    /// A flight failed that has a file, which is not to be seen before its last reader is gone. Its
    /// room stays taken.
    pub fn leave(&self, digest: &Digest, room: Arc<Reserved>) {
        self.known().push_back((digest.clone(), room));
    }

    /// Finds out what is left, removes what is old or has no room, and counts the rest.
    pub fn look(&self) {
        let mut known = self.known();
        // What has readers still is theirs.
        known.retain(|(_, room)| Arc::strong_count(room) > 1);
        for left in self.seen(LeftSpool::all(&self.dir)).unwrap_or_default().into_iter().rev() {
            let digest = left.digest().clone();
            match Reserved::new(self.spool.clone(), left.bytes()) {
                Ok(room) if left.age() < KEPT_FOR => known.push_front((digest, Arc::new(room))),
                Ok(_) | Err(_) => {
                    tracing::info!(%digest, size_bytes = left.bytes(), "spool of a dead process removed");
                    self.seen(left.remove());
                }
            }
        }
    }

    /// What is left of a blob, for who goes on with it.
    pub fn take(&self, digest: &Digest) -> Option<LeftSpool> {
        let left = self.seen(LeftSpool::find(&self.dir, digest)).flatten()?;
        self.known().retain(|(known, _)| known != digest);
        Some(left)
    }

    /// Gives room to a flight that needs it; false when there is nothing to let go.
    pub fn let_oldest_go(&self) -> bool {
        let Some((digest, _room)) = self.known().pop_front() else { return false };
        let left = self.seen(LeftSpool::find(&self.dir, &digest)).flatten();
        left.map(|left| self.seen(left.remove()));
        true
    }

    /// Removes what is left of a blob that nobody needs any more.
    pub fn drop_all_of(&self, digest: &Digest) {
        while let Some(left) = self.take(digest) {
            if self.seen(left.remove()).is_none() {
                return;
            }
        }
    }

    /// What cannot be looked at is done without.
    fn seen<T>(&self, looked: io::Result<T>) -> Option<T> {
        let failed = |error: &io::Error| {
            tracing::warn!(dir = %self.dir.display(), %error, "spool of dead processes not read");
        };
        looked.inspect_err(failed).ok()
    }

    fn known(&self) -> MutexGuard<'_, VecDeque<(Digest, Arc<Reserved>)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hydrant_store::Spooled;

    fn leave(dir: &std::path::Path, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let size = bytes.len() as u64 + 1;
        Spooled::lasting(dir, &digest, size).unwrap().unwrap().append(bytes).unwrap();
        digest
    }

    #[test]
    fn what_is_left_counts_in_the_budget_until_it_is_taken_or_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let lasting = dir.path().join("lasting");
        let spool = Spool::new(dir.path().into(), lasting.clone(), 10).unwrap();
        let left = Leftovers::new(lasting.clone(), &spool).unwrap();
        let (first, second) = (leave(&lasting, b"first"), leave(&lasting, b"last"));
        left.look();
        assert_eq!(spool.used(), 9);
        assert_eq!(left.take(&first).unwrap().bytes(), 5);
        assert!(left.take(&Digest::of(b"")).is_none());
        assert_eq!(spool.used(), 4);
        assert!(left.let_oldest_go());
        assert!(left.take(&second).is_none(), "it is gone");
    }

    #[test]
    fn what_has_no_room_or_is_old_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path().into(), dir.path().join("lasting"), 10).unwrap();
        let lasting = dir.path().join("lasting");
        let left = Leftovers::new(lasting.clone(), &spool).unwrap();
        leave(&lasting, b"too much");
        let young = leave(&lasting, b"young");
        left.look();
        assert_eq!((spool.used(), std::fs::read_dir(&lasting).unwrap().count()), (5, 1));
        let path = std::fs::read_dir(&lasting).unwrap().next().unwrap().unwrap().path();
        let hours_ago = std::time::SystemTime::now() - 2 * KEPT_FOR;
        std::fs::File::options().write(true).open(path).unwrap().set_modified(hours_ago).unwrap();
        left.look();
        assert_eq!(spool.used(), 0);
        assert!(left.take(&young).is_none());
    }
}
