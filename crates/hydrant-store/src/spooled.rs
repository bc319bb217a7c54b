//! Blobs that this process spools into a file of its own, written once and hashed as they are
//! written, so that they can be stored without being read and hashed again.
//!
//! The file has no name, so nobody else can open it, and only [`Spooled`] writes to it, which the
//! seal consumes: what is in a sealed file is what was hashed. How it is stored is in `adopt.rs`.

use bytes::Bytes;
use hydrant_proto::{Algorithm, Digest, Hasher};
use rustix::{buffer::spare_capacity, io};
use std::{
    fs::File,
    io::{Error, ErrorKind, Result},
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};
use tokio::task::spawn_blocking;

/// A file being written. Dropped without a seal nothing is left of it.
pub struct Spooled {
    file: Arc<File>,
    hasher: Hasher,
    written: u64,
}

/// Reads what was spooled, while more is; keeps the file alive.
#[derive(Clone, Debug)]
pub struct SpooledReader(pub(crate) Arc<File>);

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
        Ok(Self { file, hasher: Hasher::new(algorithm), written: 0 })
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Hashes and appends; blocking. After an error the file is of no use any more.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.file.write_all_at(bytes, self.written)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    pub fn reader(&self) -> SpooledReader {
        SpooledReader(self.file.clone())
    }

    /// Ends the writing. Bytes that hash to another digest than this are none of it: that other
    /// digest is returned.
    pub fn seal(self, digest: &Digest) -> std::result::Result<Sealed, Digest> {
        let Self { file, hasher, written: size } = self;
        match hasher.finish() {
            found if found == *digest => Ok(Sealed { file, digest: found, size }),
            found => Err(found),
        }
    }
}

impl SpooledReader {
    /// The bytes of `range`, which must have been written.
    pub async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let file = self.0.clone();
        let read = spawn_blocking(move || read_exact(&file, range));
        read.await.expect("reading does not panic")
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
