//! Blobs that this process spools into a file of its own, written once and hashed as they are
//! written, so that they can be stored without being read and hashed again.
//!
//! The file has no name, so nobody else can open it, or one under which nobody else opens it while
//! it is locked (`lasting.rs`); and only [`Spooled`] writes to it, which the seal consumes: what is in
//! a sealed file is what was hashed. How it is stored is in `adopt.rs`.

use crate::lasting;
use bytes::Bytes;
use hydrant_proto::{Algorithm, Digest, Hasher};
use rustix::{buffer::spare_capacity, io};
use std::{
    fs::File,
    io::{Error, ErrorKind, Result},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::task::spawn_blocking;

/// A file being written. Dropped without a seal nothing is left of it, unless it has a name.
pub struct Spooled {
    file: Arc<File>,
    name: Option<Arc<PathBuf>>,
    hasher: Hasher,
    written: u64,
    /// Up to where a former process wrote.
    left: u64,
}

/// Reads what was spooled, while more is; keeps the file alive.
#[derive(Clone, Debug)]
pub struct SpooledReader {
    pub(crate) file: Arc<File>,
    name: Option<Arc<PathBuf>>,
}

/// A file whose bytes hash to the digest, and that nobody writes to any more.
#[derive(Clone, Debug)]
pub struct Sealed {
    pub(crate) file: Arc<File>,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

impl Spooled {
    /// An empty file on the file system of `dir`.
    pub fn create(dir: &Path, algorithm: Algorithm) -> Result<Self> {
        let file = Arc::new(tempfile::tempfile_in(dir)?);
        Ok(Self { file, name: None, hasher: Hasher::new(algorithm), written: 0, left: 0 })
    }

    /// A file with a name, in which a former process left so many bytes.
    pub(crate) fn of_file(file: File, digest: &Digest, name: PathBuf, left: u64) -> Self {
        let (file, name) = (Arc::new(file), Some(Arc::new(name)));
        Self { file, name, hasher: Hasher::new(digest.algorithm()), written: 0, left }
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Whether all that a former process left is hashed.
    pub fn is_read_again(&self) -> bool {
        self.written >= self.left
    }

    /// Hashes the next of what a former process left, `most` bytes at most, and returns how many
    /// bytes there are; blocking.
    pub fn read_again(&mut self, most: u64) -> Result<u64> {
        let end = self.left.min(self.written + most);
        if self.written < end {
            self.hasher.update(&read_exact(&self.file, self.written..end)?);
            self.written = end;
        }
        Ok(self.written)
    }

    /// Hashes and appends; blocking. After an error the file is of no use any more. What a former
    /// process left and was not hashed is lost.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if self.written < self.left {
            self.file.set_len(self.written)?;
            self.left = self.written;
        }
        self.hasher.update(bytes);
        self.file.write_all_at(bytes, self.written)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    pub fn reader(&self) -> SpooledReader {
        SpooledReader { file: self.file.clone(), name: self.name.clone() }
    }

    /// Ends the writing. Bytes that hash to another digest than this are none of it: that other
    /// digest is returned.
    pub fn seal(self, digest: &Digest) -> std::result::Result<Sealed, Digest> {
        let Self { file, hasher, written: size, left, .. } = self;
        match hasher.finish() {
            found if found == *digest && left <= size => Ok(Sealed { file, digest: found, size }),
            found => Err(found),
        }
    }
}

impl SpooledReader {
    /// The bytes of `range`, which must have been written.
    pub async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let file = self.file.clone();
        let read = spawn_blocking(move || read_exact(&file, range));
        read.await.expect("reading does not panic")
    }

    /// Takes its name away, if it has one: nothing is left of it when its last reader is gone.
    pub fn forget(&self) {
        let Some(name) = &self.name else { return };
        if let Err(error) = lasting::remove(name) {
            tracing::warn!(file = %name.display(), %error, "spool file not removed; a sweep will");
        }
    }
}

/// Into memory that is not cleared first: at these sizes that costs as much as the reading.
fn read_exact(file: &File, range: Range<u64>) -> Result<Bytes> {
    let length = usize::try_from(range.end - range.start).map_err(Error::other)?;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let at = range.start + bytes.len() as u64;
        match io::retry_on_intr(|| io::pread(file, spare_capacity(&mut bytes), at))? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            _ => bytes.truncate(length),
        }
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_appended_is_read_back_and_sealed_by_its_digest_only() {
        let dir = tempfile::tempdir().unwrap();
        let spooled = || {
            let mut spooled = Spooled::create(dir.path(), Algorithm::Sha256).unwrap();
            spooled.append(b"hy").unwrap();
            spooled.append(b"drant").unwrap();
            spooled
        };
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file has no name");
        assert_eq!(spooled().reader().read(2..7).await.unwrap(), "drant");
        assert!(spooled().reader().read(2..8).await.is_err(), "there are seven bytes");
        assert_eq!(spooled().seal(&Digest::of(b"hydrant")).unwrap().size, 7);
        assert_eq!(spooled().seal(&Digest::of(b"x")).unwrap_err(), Digest::of(b"hydrant"));
    }
}
