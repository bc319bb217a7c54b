//! Spool files with a name: what is in them outlives the process that wrote it.
//!
//! The name says which blob a file is to be. A lock on it (`flock`) says that somebody lives who
//! writes it, and goes with that process however it ends. Nothing in such a file is believed: who
//! takes one up hashes it from its first byte.

use crate::{Backend, Store, key, spooled::Spooled};
use hydrant_proto::Digest;
use std::{
    fs::{self, File, TryLockError},
    io::{ErrorKind, Result},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// A file that a process left that is gone. As long as this is here, nobody else takes it up.
#[derive(Debug)]
pub struct LeftSpool {
    file: File,
    path: PathBuf,
    digest: Digest,
    size: u64,
    bytes: u64,
    age: Duration,
}

impl Store {
    /// Where spool files have names: beside the content of a directory store, where every process
    /// that shares it finds them, if that is on the file system of `spool`; else in `spool`.
    pub fn lasting_spool(&self, spool: &Path) -> PathBuf {
        match &self.backend {
            Backend::Directory(directory)
                if File::open(spool).is_ok_and(|spool| directory.is_beside(&spool)) =>
            {
                directory.below(&key::spool())
            }
            Backend::Directory(_) | Backend::S3(_) | Backend::Memory => spool.join("lasting"),
        }
    }
}

impl Spooled {
    /// An empty file in `dir` for a blob of `size` bytes, which stays there until it is stored or
    /// forgotten. `None` when there is one already.
    pub fn lasting(dir: &Path, digest: &Digest, size: u64) -> Result<Option<Self>> {
        let path = dir.join(format!("{}.{}.{size}", digest.algorithm().as_str(), digest.hex()));
        let created = File::options().read(true).write(true).create_new(true).open(&path);
        match created {
            Ok(file) => match is_ours(&file, &path) {
                Ok(true) => Ok(Some(Self::of_file(file, digest, path, 0))),
                Ok(false) => Ok(None),
                // Nobody could tell whether its writer lives.
                Err(error) => remove(&path).and(Err(error)),
            },
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl LeftSpool {
    /// Every one in `dir`, the oldest first.
    pub fn all(dir: &Path) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            found.extend(Self::open(entry?.path())?);
        }
        found.sort_by_key(|left| std::cmp::Reverse(left.age));
        Ok(found)
    }

    /// What is left of a blob.
    pub fn find(dir: &Path, digest: &Digest) -> Result<Option<Self>> {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if parse(&path).is_some_and(|(named, _)| named == *digest)
                && let Some(left) = Self::open(path)?
            {
                return Ok(Some(left));
            }
        }
        Ok(None)
    }

    fn open(path: PathBuf) -> Result<Option<Self>> {
        let Some((digest, size)) = parse(&path) else { return Ok(None) };
        let file = match File::options().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if !is_ours(&file, &path)? {
            return Ok(None);
        }
        let meta = file.metadata()?;
        let age = meta.modified()?.elapsed().unwrap_or_default();
        let left = Self { file, path, digest, size, bytes: meta.len(), age };
        if meta.nlink() > 1 {
            // It was stored: what is written to it now would be written to stored content.
            return left.remove().map(|()| None);
        }
        Ok(Some(left))
    }

    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Size in bytes of the whole blob, by the word of who began it.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that were written: short of the last of the blob, which is always asked for again.
    pub fn bytes(&self) -> u64 {
        self.bytes.min(self.size.saturating_sub(1))
    }

    /// How long nothing has been written to it.
    pub fn age(&self) -> Duration {
        self.age
    }

    /// Goes on with it.
    pub fn take_up(self) -> Result<Spooled> {
        let bytes = self.bytes();
        if let Err(error) = self.file.set_len(bytes) {
            // The next one would fare no better.
            return remove(&self.path).and(Err(error));
        }
        // Only who owns it may; then it counts as older than it is.
        let _ = self.file.set_modified(SystemTime::now());
        Ok(Spooled::of_file(self.file, &self.digest, self.path, bytes))
    }

    pub fn remove(self) -> Result<()> {
        remove(&self.path)
    }
}

/// Locks the file, if nobody else has; and then its name may have been taken away, or be another's.
fn is_ours(file: &File, path: &Path) -> Result<bool> {
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let ours = file.metadata()?;
    Ok(fs::metadata(path).is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino())))
}

/// Takes a name away; one that is gone is no failure.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// `<algorithm>.<hex>.<size>`.
fn parse(path: &Path) -> Option<(Digest, u64)> {
    let (digest, size) = path.file_name()?.to_str()?.rsplit_once('.')?;
    let digest: Digest = digest.replacen('.', ":", 1).parse().ok()?;
    Some((digest, size.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOB: &[u8] = b"hydrant";

    fn digest() -> Digest {
        Digest::of(BLOB)
    }

    fn begun(dir: &Path, bytes: &[u8]) -> Spooled {
        let mut spooled = Spooled::lasting(dir, &digest(), BLOB.len() as u64).unwrap().unwrap();
        spooled.append(bytes).unwrap();
        spooled
    }

    #[test]
    fn what_is_left_is_hashed_anew_and_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        drop(begun(dir.path(), &BLOB[..2]));
        let left = LeftSpool::find(dir.path(), &digest()).unwrap().unwrap();
        assert_eq!((left.bytes(), left.size()), (2, 7));
        let mut spooled = left.take_up().unwrap();
        assert_eq!((spooled.written(), spooled.is_read_again()), (0, false));
        assert_eq!(spooled.read_again(100).unwrap(), 2);
        assert!(spooled.is_read_again());
        spooled.append(&BLOB[2..]).unwrap();
        assert_eq!(spooled.seal(&digest()).unwrap().size, 7);
    }

    #[test]
    fn what_was_left_wrong_is_found_out_by_the_seal() {
        let dir = tempfile::tempdir().unwrap();
        drop(begun(dir.path(), b"hi"));
        let mut spooled =
            LeftSpool::find(dir.path(), &digest()).unwrap().unwrap().take_up().unwrap();
        spooled.read_again(100).unwrap();
        spooled.append(&BLOB[2..]).unwrap();
        assert!(spooled.seal(&digest()).is_err());
    }

    #[test]
    fn what_was_not_hashed_anew_is_dropped_by_the_first_write() {
        let dir = tempfile::tempdir().unwrap();
        drop(begun(dir.path(), b"wrong!"));
        let mut spooled =
            LeftSpool::find(dir.path(), &digest()).unwrap().unwrap().take_up().unwrap();
        spooled.append(&BLOB[..3]).unwrap();
        let file = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap();
        assert_eq!(file.metadata().unwrap().len(), 3);
    }

    #[test]
    fn a_file_whose_writer_lives_is_nobody_elses_and_the_last_byte_is_never_left() {
        let dir = tempfile::tempdir().unwrap();
        let spooled = begun(dir.path(), BLOB);
        assert!(LeftSpool::find(dir.path(), &digest()).unwrap().is_none());
        assert!(Spooled::lasting(dir.path(), &digest(), 7).unwrap().is_none());
        let reader = spooled.reader();
        drop(spooled);
        assert!(LeftSpool::all(dir.path()).unwrap().is_empty(), "a reader has it still");
        drop(reader);
        let left = LeftSpool::all(dir.path()).unwrap().pop().unwrap();
        assert_eq!(left.bytes(), 6);
        assert!(LeftSpool::find(dir.path(), &digest()).unwrap().is_none(), "it is taken");
        left.remove().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_is_stored_is_not_taken_up_and_strange_ones_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        drop(begun(dir.path(), BLOB));
        let path = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let stored = dir.path().join("data");
        fs::hard_link(&path, &stored).unwrap();
        assert!(LeftSpool::all(dir.path()).unwrap().is_empty());
        assert_eq!(fs::read(&stored).unwrap(), BLOB);
        assert!(!path.exists());
    }
}
