//! Blobs that this process spools into a file of its own, written once and hashed as they are
//! written, so that they can be stored without being read and hashed again.
//!
//! The file has no name, so nobody else can open it, or one under which nobody else opens it while
//! it is locked (`lasting.rs`); and only [`Spooled`] writes to it, which the seal consumes: what is in
//! a sealed file is what was hashed. How it is stored is in `adopt.rs`. For a tiny blob memory does as a
//! file.

use crate::{
    lasting,
    layout::Layout,
    left_upload::LeftUpload,
    parts::Buffer,
    pread::{read_exact, read_onto},
    pwrite::write_all,
    upload::PART_BYTES,
};
use bytes::{Bytes, BytesMut};
use hydrant_proto::{Algorithm, Digest, Hasher};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{Error, ErrorKind, Result},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::task::spawn_blocking;

/// A blob being written. Dropped without a seal nothing is left of it, unless it has a name.
pub struct Spooled {
    held: Held,
    name: Option<Arc<PathBuf>>,
    hasher: Hasher,
    written: u64,
    /// Up to where a former process wrote.
    left: u64,
    /// What comes before the first byte, and is not in the file.
    before: Option<Arc<LeftUpload>>,
    borders: Borders,
    layout: Layout,
}

/// Where the bytes are.
#[derive(Clone, Debug)]
pub(crate) enum Held {
    File(Arc<File>),
    Memory(Arc<Mutex<Bytes>>),
}

/// The hash at the end of each part, by its offset.
type Borders = Arc<Mutex<BTreeMap<u64, Hasher>>>;

/// Reads what was spooled, while more is; keeps the bytes alive.
#[derive(Clone, Debug)]
pub struct SpooledReader {
    pub(crate) held: Held,
    name: Option<Arc<PathBuf>>,
    pub(crate) before: Option<Arc<LeftUpload>>,
    borders: Borders,
}

/// Puts into a file what comes before its bytes, for readers only. See [`SpooledReader::refill`].
#[derive(Clone, Debug)]
pub struct Refill {
    file: Arc<File>,
    before: Arc<LeftUpload>,
    hasher: Hasher,
    written: u64,
}

/// Bytes that hash to the digest, after those of the upload it goes on with if it does, and
/// that nobody writes to any more.
#[derive(Clone, Debug)]
pub struct Sealed {
    pub(crate) held: Held,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

impl Spooled {
    /// An empty file on the file system of `dir`.
    pub fn create(dir: &Path, algorithm: Algorithm) -> Result<Self> {
        let file = Arc::new(tempfile::tempfile_in(dir)?);
        Ok(Self::new(Held::File(file), Hasher::new(algorithm)))
    }

    /// In memory, for a blob so small that its caller can answer for that.
    pub fn in_memory(algorithm: Algorithm) -> Self {
        Self::new(Held::Memory(Arc::default()), Hasher::new(algorithm))
    }

    fn new(held: Held, hasher: Hasher) -> Self {
        let (borders, layout) = (Borders::default(), Layout::default());
        Self { held, name: None, hasher, written: 0, left: 0, before: None, borders, layout }
    }

    /// Tells how many bytes there will be, so that the file system can lay them out beforehand.
    pub fn planned(mut self, size: u64) -> Self {
        self.layout = Layout::of(size);
        self
    }

    /// A file for what comes after the bytes of an upload.
    pub(crate) fn of_rest(file: File, before: &Arc<LeftUpload>) -> Self {
        let (written, hasher) = (before.bytes(), before.hasher());
        let held = Held::File(Arc::new(file));
        Self { written, before: Some(before.clone()), ..Self::new(held, hasher) }
    }

    /// A file with a name, in which a former process left so many bytes.
    pub(crate) fn of_file(file: File, digest: &Digest, name: PathBuf, left: u64) -> Self {
        let (held, name) = (Held::File(Arc::new(file)), Some(Arc::new(name)));
        Self { name, left, ..Self::new(held, Hasher::new(digest.algorithm())) }
    }

    /// Whether appending waits for no disk.
    pub fn is_in_memory(&self) -> bool {
        matches!(self.held, Held::Memory(_))
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
        if let Held::File(file) = &self.held
            && self.written < end
        {
            let bytes = read_exact(file, self.written..end)?;
            self.hash(self.written, &bytes);
            self.written = end;
        }
        Ok(self.written)
    }

    /// Hashes and appends; blocking, unless it is in memory. After an error it is of no use any more.
    /// What a former process left and was not hashed is lost.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.append_all(&[bytes])
    }

    /// The same for bytes that lie here and there.
    pub fn append_all(&mut self, chunks: &[impl AsRef<[u8]>]) -> Result<()> {
        let mut end = self.written;
        for chunk in chunks {
            self.hash(end, chunk.as_ref());
            end += chunk.as_ref().len() as u64;
        }
        match &self.held {
            Held::File(file) => {
                if self.written < self.left {
                    file.set_len(self.written)?;
                    self.left = self.written;
                }
                self.layout.reach(file, self.written..end);
                write_all(file, chunks, self.written)?;
            }
            Held::Memory(memory) => lengthen(memory, chunks),
        }
        self.written = end;
        Ok(())
    }

    /// Hashes what comes at `at`, and notes the hash at the end of each part.
    fn hash(&mut self, mut at: u64, mut bytes: &[u8]) {
        let part = PART_BYTES as u64;
        while !bytes.is_empty() {
            let border = (at / part + 1) * part;
            let length = usize::try_from(border - at).map_or(bytes.len(), |n| n.min(bytes.len()));
            let (now, rest) = bytes.split_at(length);
            self.hasher.update(now);
            at += length as u64;
            bytes = rest;
            if at == border {
                locked(&self.borders).insert(at, self.hasher.clone());
            }
        }
    }

    pub fn reader(&self) -> SpooledReader {
        SpooledReader {
            held: self.held.clone(),
            name: self.name.clone(),
            before: self.before.clone(),
            borders: self.borders.clone(),
        }
    }

    /// Ends the writing. Bytes that hash to another digest than this are none of it: that other
    /// digest is returned.
    pub fn seal(self, digest: &Digest) -> std::result::Result<Sealed, Digest> {
        let Self { held, hasher, written: size, left, .. } = self;
        match hasher.finish() {
            found if found == *digest && left <= size => Ok(Sealed { held, digest: found, size }),
            found => Err(found),
        }
    }
}

impl Held {
    /// Whether it is the very same, and not only equal.
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(one), Self::File(other)) => Arc::ptr_eq(one, other),
            (Self::Memory(one), Self::Memory(other)) => Arc::ptr_eq(one, other),
            (Self::File(_), Self::Memory(_)) | (Self::Memory(_), Self::File(_)) => false,
        }
    }
}

impl SpooledReader {
    /// The bytes of `range`, which must have been written.
    pub async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        match &self.held {
            Held::File(file) => {
                let file = file.clone();
                let read = spawn_blocking(move || read_exact(&file, range));
                read.await.expect("reading does not panic")
            }
            Held::Memory(memory) => {
                let bytes = memory.lock().unwrap_or_else(PoisonError::into_inner).clone();
                slice(&bytes, range)
            }
        }
    }

    /// State of the hash of all bytes before `at`, at the end of a part that was written here.
    pub fn hash_at(&self, at: u64) -> Option<Vec<u8>> {
        locked(&self.borders).get(&at).map(Hasher::state)
    }

    /// For a file that goes on with an upload: puts what is in that into the file as well.
    pub fn refill(&self) -> Option<Refill> {
        let (Held::File(file), Some(before)) = (&self.held, &self.before) else { return None };
        let hasher = Hasher::new(before.hasher().algorithm());
        Some(Refill { file: file.clone(), before: before.clone(), hasher, written: 0 })
    }

    /// Whether it has a name, so that it outlives its last reader.
    pub fn has_name(&self) -> bool {
        self.name.is_some()
    }

    /// The same, into memory that is at hand.
    pub(crate) async fn read_into(&self, range: Range<u64>, mut buffer: Buffer) -> Result<Buffer> {
        match &self.held {
            Held::File(file) => {
                let file = file.clone();
                let read = move || read_onto(&file, range, buffer.bytes()).map(|()| buffer);
                spawn_blocking(read).await.expect("reading does not panic")
            }
            Held::Memory(_) => {
                buffer.bytes().extend_from_slice(&self.read(range).await?);
                Ok(buffer)
            }
        }
    }

    /// Takes its name away, if it has one: nothing is left of it when its last reader is gone.
    pub fn forget(&self) {
        let Some(name) = &self.name else { return };
        if let Err(error) = lasting::remove(name) {
            tracing::warn!(file = %name.display(), %error, "spool file not removed; a sweep will");
        }
    }
}

fn lengthen(memory: &Mutex<Bytes>, chunks: &[impl AsRef<[u8]>]) {
    let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
    let more: usize = chunks.iter().map(|chunk| chunk.as_ref().len()).sum();
    let mut longer = BytesMut::with_capacity(memory.len() + more);
    longer.extend_from_slice(&memory);
    chunks.iter().for_each(|chunk| longer.extend_from_slice(chunk.as_ref()));
    *memory = longer.freeze();
}

fn slice(bytes: &Bytes, range: Range<u64>) -> Result<Bytes> {
    let at = |at: u64| usize::try_from(at).map_err(Error::other);
    let range = at(range.start)?..at(range.end)?;
    match range.start <= range.end && range.end <= bytes.len() {
        true => Ok(bytes.slice(range)),
        false => Err(ErrorKind::UnexpectedEof.into()),
    }
}

impl Refill {
    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Bytes that are wanted in all.
    pub fn wanted(&self) -> u64 {
        self.before.bytes()
    }

    /// Hashes and writes the next bytes, of which none may be beyond what is wanted; blocking.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if self.written + bytes.len() as u64 > self.wanted() {
            return Err(ErrorKind::InvalidInput.into());
        }
        self.hasher.update(bytes);
        self.file.write_all_at(bytes, self.written)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Whether the bytes are those that the upload is said to have.
    pub fn agrees(&self) -> bool {
        self.written == self.wanted() && self.hasher.state() == self.before.hasher().state()
    }
}

fn locked(borders: &Borders) -> MutexGuard<'_, BTreeMap<u64, Hasher>> {
    borders.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn is_read_back_and_sealed(empty: impl Fn() -> Spooled) {
        let spooled = || {
            let mut spooled = empty();
            spooled.append(b"hy").unwrap();
            spooled.append(b"drant").unwrap();
            spooled
        };
        assert_eq!(spooled().reader().read(2..7).await.unwrap(), "drant");
        assert!(spooled().reader().read(2..8).await.is_err(), "there are seven bytes");
        assert_eq!(spooled().seal(&Digest::of(b"hydrant")).unwrap().size, 7);
        assert_eq!(spooled().seal(&Digest::of(b"x")).unwrap_err(), Digest::of(b"hydrant"));
    }

    #[tokio::test]
    async fn what_is_appended_is_read_back_and_sealed_by_its_digest_only() {
        let dir = tempfile::tempdir().unwrap();
        is_read_back_and_sealed(|| Spooled::create(dir.path(), Algorithm::Sha256).unwrap()).await;
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file has no name");
        is_read_back_and_sealed(|| Spooled::in_memory(Algorithm::Sha256)).await;
    }
}
