//! The local directory: durable writes, locks between processes, and files a killed process left.
//!
//! Every write is staged beside its place (`staged.rs`), synced, renamed, and its directory synced:
//! the parts of large blobs in `staged.rs`, small objects in `batch.rs`. A blob that was spooled into
//! a file without a name, on the same file system, is not written again: it is synced and gets its
//! name here, first a staged one like every write.
//!
//! Locks are `flock`s on a fixed set of files that are never removed: a
//! killed process loses its lock with its file descriptors.

use crate::{
    batch::{Batches, Existing, Write},
    error::StoreError,
    key,
    staged::{StagedUpload, place_of, staged},
    warm::Warm,
};
use bytes::Bytes;
use hydrant_proto::Digest;
use object_store::{MultipartUpload, local::LocalFileSystem, path::Path};
use rustix::{
    fs::{AtFlags, CWD, linkat},
    io::Errno,
};
use std::{
    fs::{self, File, TryLockError},
    io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path as FilePath, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{task::spawn_blocking, time::Instant};

/// Longest wait for a lock. A holder needs it for one small durable write; longer means that it
/// is stopped or its disk is.
const LOCK_LIMIT: Duration = Duration::from_secs(10);
const FIRST_WAIT: Duration = Duration::from_millis(1);
const LONGEST_WAIT: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(crate) struct Directory {
    root: PathBuf,
    locks: PathBuf,
    /// The file system.
    device: u64,
    batches: Batches,
}

/// Whether a file could be given a name here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    Done,
    /// Its file system, or the way it was made, does not allow it.
    Impossible,
}

/// A write that was begun and not finished.
#[derive(Clone, Debug)]
pub(crate) struct StagedFile {
    pub path: PathBuf,
    /// Without the root, without the number: the key it was meant for.
    pub key: String,
    pub written_at: SystemTime,
}

impl Directory {
    /// Makes the directory if needed, and the store on it.
    pub(crate) fn open(root: PathBuf) -> io::Result<(Warm, Self)> {
        let locks = root.join(key::locks());
        fs::create_dir_all(&locks)?;
        let root = root.canonicalize()?;
        let objects = LocalFileSystem::new_with_prefix(&root)
            .map_err(io::Error::other)?
            .with_fsync(true)
            .with_automatic_cleanup(true);
        let device = fs::metadata(&root)?.dev();
        let batches = Batches::start(&root)?;
        let objects = Warm::new(objects, root.clone());
        Ok((objects, Self { locks: root.join(key::locks()), root, device, batches }))
    }

    /// Whether a file lies on the same file system.
    pub(crate) fn is_beside(&self, file: &File) -> bool {
        file.metadata().is_ok_and(|meta| meta.dev() == self.device)
    }

    /// Makes a file without a name the object at `key`, durably, in place of what may be there.
    /// Blocking.
    pub(crate) fn name(&self, file: &File, key: &str) -> io::Result<Naming> {
        file.sync_all()?;
        let path = self.root.join(key);
        make_parents(&path)?;
        loop {
            let staged = staged(&path);
            match link(file, &staged) {
                Ok(()) => {}
                Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::IO | Errno::ROFS)) => {
                    return Err(error.into());
                }
                // Whatever forbids it: the bytes can still be copied.
                Err(_) => return Ok(Naming::Impossible),
            }
            match fs::rename(&staged, &path) {
                Ok(()) => {
                    // Where the file had its name already, renaming leaves both.
                    let _ = fs::remove_file(&staged);
                    return sync_parent(&path).map(|()| Naming::Done);
                }
                // Who has just finished the same object removed ours as superfluous.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    fs::remove_file(&staged)?;
                    return Err(error);
                }
            }
        }
    }

    /// Makes an object durable of which only that it is visible is known. Blocking.
    pub(crate) fn make_durable(&self, key: &str) -> io::Result<()> {
        let path = self.root.join(key);
        File::open(&path)?.sync_all()?;
        sync_parent(&path)
    }

    /// Begins an object that is written in parts.
    pub(crate) async fn begin_upload(
        &self,
        path: &Path,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        let place = self.file(path);
        let begun = spawn_blocking(move || StagedUpload::begin(place)).await;
        let begun = begun.expect("beginning a file does not panic");
        let upload = begun.map_err(|source| object_store::Error::Generic {
            store: "directory",
            source: source.into(),
        })?;
        Ok(Box::new(upload))
    }

    /// What lies at a path below the root.
    pub(crate) fn below(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Where the object lies.
    pub(crate) fn file(&self, path: &Path) -> PathBuf {
        self.root.join(path.as_ref())
    }

    /// Writes small objects, which become visible in this order; they are durable when this returns.
    pub(crate) async fn write(
        &self,
        objects: Vec<(Path, Bytes)>,
        existing: Existing,
    ) -> object_store::Result<()> {
        let last = objects.last().map(|(path, _)| path.to_string()).unwrap_or_default();
        let write = |(path, bytes)| Write { file: self.file(&path), bytes, existing };
        let written = self.batches.write(objects.into_iter().map(write).collect()).await;
        written.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => {
                let path = last;
                object_store::Error::AlreadyExists { path, source: source.into() }
            }
            _ => object_store::Error::Generic { store: "directory", source: source.into() },
        })
    }

    /// Waits for the exclusive right to change the object; released when dropped.
    pub(crate) async fn lock(&self, path: &Path) -> Result<File, StoreError> {
        let unavailable = |error: io::Error| StoreError::Unavailable {
            key: path.to_string(),
            cause: Arc::new(error),
        };
        let shard = Digest::of(path.as_ref().as_bytes()).hex()[..2].to_owned();
        let file = self.locks.join(shard);
        let file = File::options().create(true).truncate(false).write(true).open(file);
        let file = file.map_err(unavailable)?;
        let (deadline, mut wait) = (Instant::now() + LOCK_LIMIT, FIRST_WAIT);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(unavailable(error)),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    let held = io::Error::new(io::ErrorKind::TimedOut, "its lock is held too long");
                    return Err(unavailable(held));
                }
                Err(TryLockError::WouldBlock) => tokio::time::sleep(wait).await,
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Every staged file. Walks the whole directory, blocking.
    pub(crate) fn staged_files(&self) -> io::Result<Vec<StagedFile>> {
        let (mut found, mut waiting) = (Vec::new(), vec![self.root.clone()]);
        while let Some(directory) = waiting.pop() {
            for entry in present(fs::read_dir(&directory))?.into_iter().flatten() {
                let entry = entry?;
                match present(entry.file_type())? {
                    Some(kind) if kind.is_dir() => waiting.push(entry.path()),
                    Some(_) => found.extend(self.staged(entry.path())?),
                    None => {}
                }
            }
        }
        Ok(found)
    }

    /// Removes the staged files of one key, and returns how many there were. Blocking.
    pub(crate) fn remove_staged_of(&self, key: &str) -> io::Result<usize> {
        let path = self.root.join(key);
        let folder = path.parent().unwrap_or(&self.root);
        let mut removed = 0;
        for entry in present(fs::read_dir(folder))?.into_iter().flatten() {
            if let Some(file) = self.staged(entry?.path())?.filter(|file| file.key == key) {
                removed += usize::from(remove(&file)?);
            }
        }
        Ok(removed)
    }

    fn staged(&self, path: PathBuf) -> io::Result<Option<StagedFile>> {
        let relative = path.strip_prefix(&self.root).expect("walked from the root");
        let Some(key) = relative.to_str().and_then(place_of).map(str::to_owned) else {
            return Ok(None);
        };
        let written_at = present(fs::metadata(&path).and_then(|meta| meta.modified()))?;
        Ok(written_at.map(|written_at| StagedFile { path, key, written_at }))
    }
}

/// Gives an open file a name. Where `/proc` is not mounted this is `ENOENT`.
fn link(file: &File, name: &FilePath) -> Result<(), Errno> {
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, open, CWD, name, AtFlags::SYMLINK_FOLLOW)
}

/// The directories that lead to `path`, durable as far as they are new.
pub(crate) fn make_parents(path: &FilePath) -> io::Result<()> {
    let Some(parent) = path.parent().filter(|parent| !parent.is_dir()) else { return Ok(()) };
    make_parents(parent)?;
    match fs::create_dir(parent) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => sync_parent(parent),
    }
}

pub(crate) fn sync_parent(path: &FilePath) -> io::Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    #[cfg(test)]
    broken::fail_below(parent)?;
    File::open(parent)?.sync_all()
}

/// Disks that do not take what they are to make durable, for tests.
#[cfg(test)]
pub(crate) mod broken {
    use super::{FilePath, PathBuf, io};
    use std::sync::{Mutex, PoisonError};

    static ROOTS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

    /// From now on no directory below `root` can be synced.
    pub(crate) fn break_below(root: &FilePath) {
        ROOTS.lock().unwrap_or_else(PoisonError::into_inner).push(root.to_owned());
    }

    pub(crate) fn mend_all_below(root: &FilePath) {
        ROOTS.lock().unwrap_or_else(PoisonError::into_inner).retain(|broken| broken != root);
    }

    pub(super) fn fail_below(directory: &FilePath) -> io::Result<()> {
        let roots = ROOTS.lock().unwrap_or_else(PoisonError::into_inner);
        match roots.iter().any(|root| directory.starts_with(root)) {
            true => Err(io::Error::other("broken on purpose")),
            false => Ok(()),
        }
    }
}

/// What vanished meanwhile is no failure.
fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a staged file; one that was finished or removed meanwhile is no failure.
pub(crate) fn remove(file: &StagedFile) -> io::Result<bool> {
    present(fs::remove_file(&file.path)).map(|removed| removed.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As by a process that was stopped while it held the lock.
    #[tokio::test(start_paused = true)]
    async fn a_lock_that_is_held_for_ever_is_an_error_and_no_wait_for_ever() {
        let root = tempfile::tempdir().unwrap();
        let (_, ours) = Directory::open(root.path().to_owned()).unwrap();
        let (_, theirs) = Directory::open(root.path().to_owned()).unwrap();
        let path = Path::from("record");
        let held = theirs.lock(&path).await.unwrap();
        let lock = ours.lock(&path).await;
        assert!(matches!(lock, Err(StoreError::Unavailable { .. })), "{lock:?}");
        drop(held);
        ours.lock(&path).await.unwrap();
    }
}
