//! What tells that a file is still as it was: which file it is, and when it was last changed.

use object_store::{GetResult, GetResultPayload};
use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// A file changed less than this ago may change again without its times telling: they move in ticks
/// of some milliseconds.
const TICK: Duration = Duration::from_millis(100);

/// A file as it is now. Every write to it, every change of its length, its name or its links makes
/// another identity of it, because nobody can set back the time of the last change (`ctime`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    pub(crate) size: u64,
    links: u64,
    modified: (i64, i64),
    pub(crate) changed: (i64, i64),
}

impl Identity {
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            links: meta.nlink(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }

    /// The identity of what was opened for reading, when it is a file, and long enough ago not to
    /// change unseen.
    pub(crate) fn settled(opened: &GetResult) -> Option<Self> {
        let GetResultPayload::File(file, _) = &opened.payload else { return None };
        Self::of(file).ok().filter(|identity| identity.is_settled(SystemTime::now()))
    }

    /// A clock of the file system that is ahead of ours makes nothing settled before its time.
    fn is_settled(&self, now: SystemTime) -> bool {
        let (seconds, nanos) = self.changed;
        let parts = (u64::try_from(seconds), u32::try_from(nanos));
        let (Ok(seconds), Ok(nanos)) = parts else { return false };
        let changed_at = UNIX_EPOCH + Duration::new(seconds, nanos);
        now.duration_since(changed_at).is_ok_and(|age| age >= TICK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_a_moment_ago_or_in_the_future_is_not_settled() {
        let file = tempfile::tempfile().unwrap();
        let identity = Identity::of(&file).unwrap();
        let at = |seconds: i64| Identity { changed: (seconds, 0), ..identity };
        let now = UNIX_EPOCH + Duration::from_secs(1_000);
        assert!(at(999).is_settled(now));
        assert!(!at(1_000).is_settled(now) && !at(1_001).is_settled(now));
        assert!(!at(-1).is_settled(now));
    }
}
