//! Where a flight's bytes wait for their readers: a file in the spool directory, under a budget of
//! bytes. It has no name, so that nothing is left behind whatever happens to the process; except that
//! of a large blob, which a process that comes after goes on with (`leftovers.rs`). Tiny blobs, which cost
//! more to make a file for than to fetch, wait in memory, under a budget of its own.

use crate::error::FlightError;
use bytes::Bytes;
use hydrant_proto::Digest;
use hydrant_store::{LeftSpool, LeftUpload, Sealed, Spooled, SpooledReader};
use hydrant_telemetry::metrics;
use std::{
    io,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::spawn_blocking;

/// Size in bytes from which on a blob is not to be read anew when its process dies: below it, what
/// that costs is about what it may cost anyway.
pub(crate) const LASTING_FROM: u64 = 32 * 1024 * 1024;
/// Longest blob that is spooled in memory, in bytes, and how many of them together. What is beyond
/// that goes into files.
const TINY: u64 = 64 * 1024;
const MEMORY: u64 = 8 * 1024 * 1024;
/// How long no file is begun on a disk that failed.
const SHUNNED: Duration = Duration::from_secs(10);
/// Bytes of a former process that are hashed at a time.
const BLOCK: u64 = 1024 * 1024;

/// What a spool file goes on with.
#[derive(Debug)]
pub(crate) enum Before {
    Nothing,
    /// The file of a dead process.
    File(LeftSpool),
    /// What a dead process has stored already.
    Upload(Arc<LeftUpload>),
}

impl Before {
    /// Bytes that need not be fetched.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::File(left) => left.bytes(),
            Self::Upload(left) => left.bytes(),
        }
    }
}

/// The spool directory and what is left of its budget.
#[derive(Debug)]
pub(crate) struct Spool {
    dir: PathBuf,
    /// Where files have names.
    lasting: PathBuf,
    budget: u64,
    used: AtomicU64,
    /// Of that in memory, in bytes.
    in_memory: AtomicU64,
    /// When the disk had no room for what the budget allows.
    failed: Mutex<Option<Instant>>,
}

impl Spool {
    pub fn new(dir: PathBuf, lasting: PathBuf, budget: u64) -> io::Result<Arc<Self>> {
        std::fs::create_dir_all(&dir)?;
        let (used, in_memory) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Arc::new(Self { dir, lasting, budget, used, in_memory, failed: Mutex::new(None) }))
    }

    /// The spool file of a blob, in the room made for it.
    pub fn open(
        &self,
        room: Reserved,
        digest: &Digest,
        size: u64,
        before: Before,
    ) -> Result<SpoolFile, FlightError> {
        let spooled = match before {
            Before::File(left) => left.take_up(),
            Before::Upload(left) => Spooled::behind(&self.dir, &left),
            Before::Nothing if room.in_memory > 0 => Ok(Spooled::in_memory(digest.algorithm())),
            Before::Nothing => self.empty(digest, size),
        };
        let spooled = spooled.map_err(|error| self.has_failed(error))?.planned(size);
        let reader = SpoolReader { file: spooled.reader(), reserved: Arc::new(room) };
        Ok(SpoolFile { spooled: Some(spooled), reader })
    }

    fn empty(&self, digest: &Digest, size: u64) -> io::Result<Spooled> {
        if size >= LASTING_FROM {
            match Spooled::lasting(&self.lasting, digest, size) {
                Ok(Some(spooled)) => return Ok(spooled),
                // Somebody else writes it, or its readers have not left yet.
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "spool file without a name"),
            }
        }
        Spooled::create(&self.dir, digest.algorithm())
    }

    /// Room in memory for all of a blob, if it is tiny and there is some left: how much.
    fn memory_for(&self, bytes: u64) -> u64 {
        if bytes > TINY {
            return 0;
        }
        // One of no bytes is still kept track of.
        let bytes = bytes.max(1);
        let fits = |used: u64| (used + bytes <= MEMORY).then_some(used + bytes);
        let taken = self.in_memory.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        if taken.is_ok() { bytes } else { 0 }
    }

    /// The disk failed. For a while no file is begun, so that what comes next is passed through
    /// instead of being cut off in its middle.
    fn has_failed(&self, error: io::Error) -> FlightError {
        *self.failed() = Some(Instant::now());
        no_spool(error)
    }

    /// What is the matter with the disk, if it failed a moment ago.
    fn trouble(&self) -> Result<(), FlightError> {
        match *self.failed() {
            Some(at) if at.elapsed() < SHUNNED => {
                Err(FlightError::NoSpool("its disk failed a moment ago".to_owned()))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn failed(&self) -> MutexGuard<'_, Option<Instant>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the budget in use.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn report(&self) {
        metrics().flights.spool(self.used());
    }
}

/// A part of the budget, given back on drop.
#[derive(Debug)]
pub(crate) struct Reserved {
    spool: Arc<Spool>,
    bytes: AtomicU64,
    /// Bytes of memory that are part of it; 0 for a file.
    in_memory: u64,
}

impl Reserved {
    /// Room for `bytes`. What alone exceeds the whole budget is let in when nothing else is spooled,
    /// so that no blob is too large for ever.
    pub fn new(spool: Arc<Spool>, bytes: u64) -> Result<Self, FlightError> {
        let mut reserved = Self { spool, bytes: AtomicU64::new(0), in_memory: 0 };
        reserved.grow(bytes)?;
        reserved.in_memory = reserved.spool.memory_for(bytes);
        if reserved.in_memory == 0 {
            reserved.spool.trouble()?;
        }
        Ok(reserved)
    }

    /// Only the flight grows it, one append after the other.
    fn grow(&self, to: u64) -> Result<(), FlightError> {
        let own = self.bytes.load(Ordering::Relaxed);
        let more = to.saturating_sub(own);
        let budget = self.spool.budget;
        let fits = |used: u64| (used + more <= budget || used == own).then_some(used + more);
        let taken = self.spool.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        if let Err(used) = taken {
            return Err(FlightError::NoSpool(format!(
                "{used} of {budget} bytes are in use and {more} more are needed"
            )));
        }
        self.bytes.fetch_add(more, Ordering::Relaxed);
        self.spool.report();
        Ok(())
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.spool.used.fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
        self.spool.in_memory.fetch_sub(self.in_memory, Ordering::Relaxed);
        self.spool.report();
    }
}

fn no_spool(error: io::Error) -> FlightError {
    FlightError::NoSpool(error.to_string())
}

/// One flight's file. Written by the flight, read by any number of readers at their own offsets.
pub(crate) struct SpoolFile {
    /// `None` once sealed, or broken.
    spooled: Option<Spooled>,
    reader: SpoolReader,
}

impl SpoolFile {
    /// Hashes and appends a piece; returns how many bytes there are. For a file a thread of its own
    /// does that, while the next piece arrives.
    pub async fn append(&mut self, piece: Arc<[Bytes]>) -> Result<u64, FlightError> {
        let mut spooled = self.spooled.take().ok_or_else(broken)?;
        let length: usize = piece.iter().map(Bytes::len).sum();
        self.reader.reserved.grow(spooled.written() + length as u64)?;
        let is_in_memory = spooled.is_in_memory();
        let write = move || spooled.append_all(&piece).map(|()| spooled);
        let written = match is_in_memory {
            true => write(),
            false => spawn_blocking(write).await.expect("hashing and writing do not panic"),
        };
        let spool = &self.reader.reserved.spool;
        let spooled = written.map_err(|error| spool.has_failed(error))?;
        Ok(self.spooled.insert(spooled).written())
    }

    /// Hashes the next of what a former process left, and returns how many bytes there are; `None`
    /// when that was all.
    pub async fn read_again(&mut self) -> Result<Option<u64>, FlightError> {
        let mut spooled = self.spooled.take().ok_or_else(broken)?;
        if spooled.is_read_again() {
            self.spooled = Some(spooled);
            return Ok(None);
        }
        let read = move || spooled.read_again(BLOCK).map(|at| (spooled, at));
        let read = spawn_blocking(read).await.expect("hashing and reading do not panic");
        let (spooled, at) = read.map_err(no_spool)?;
        self.spooled = Some(spooled);
        Ok(Some(at))
    }

    /// Its room, if it stays when this is gone.
    pub fn lasting_room(&self) -> Option<Arc<Reserved>> {
        self.reader.file.has_name().then(|| self.reader.reserved.clone())
    }

    /// Takes its name away, if it has one.
    pub fn forget(&self) {
        self.reader.file.forget();
    }

    /// Ends the writing, if all of it hashes to the digest.
    pub fn seal(&mut self, digest: &Digest) -> Result<Sealed, FlightError> {
        let spooled = self.spooled.take().ok_or_else(broken)?;
        let bytes = spooled.written();
        spooled.seal(digest).map_err(|found| {
            FlightError::Integrity(format!("{bytes} bytes that hash to {found}, not to {digest}"))
        })
    }

    pub fn reader(&self) -> SpoolReader {
        self.reader.clone()
    }
}

fn broken() -> FlightError {
    FlightError::Integrity("its bytes were found wrong before".to_owned())
}

/// Reads what was spooled; keeps the file alive, and its part of the budget in use.
#[derive(Clone, Debug)]
pub(crate) struct SpoolReader {
    pub file: SpooledReader,
    reserved: Arc<Reserved>,
}

impl SpoolReader {
    /// The bytes of `range`, which must have been written.
    pub async fn read(&self, range: Range<u64>) -> Result<Bytes, FlightError> {
        self.file.read(range).await.map_err(no_spool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spool(dir: &tempfile::TempDir) -> Arc<Spool> {
        Spool::new(dir.path().into(), dir.path().into(), 100).unwrap()
    }

    fn open(spool: &Arc<Spool>, bytes: u64) -> Result<SpoolFile, FlightError> {
        let room = Reserved::new(spool.clone(), bytes)?;
        spool.open(room, &Digest::of(b""), bytes, Before::Nothing)
    }

    #[tokio::test]
    async fn room_is_taken_as_a_file_grows_and_given_back_with_its_last_reader() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(&dir);
        let mut file = open(&spool, 4).unwrap();
        assert_eq!(file.append([Bytes::from_static(b"hy")].into()).await.unwrap(), 2);
        assert_eq!(file.append([Bytes::from_static(b"drant")].into()).await.unwrap(), 7);
        assert_eq!(file.reader().read(2..7).await.unwrap(), "drant");
        assert_eq!(spool.used(), 7);
        assert!(file.seal(&Digest::of(b"x")).is_err() && file.seal(&Digest::of(b"x")).is_err());
        let reader = file.reader();
        drop(file);
        assert_eq!(spool.used(), 7, "a reader still has it open");
        drop(reader);
        assert_eq!(spool.used(), 0);
    }

    #[test]
    fn tiny_blobs_wait_in_memory_as_long_as_there_is_room_for_them() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path().into(), dir.path().into(), 1 << 30).unwrap();
        let open = |bytes| open(&spool, bytes).unwrap();
        let is_in_memory = |file: &SpoolFile| file.spooled.as_ref().unwrap().is_in_memory();
        assert!(!is_in_memory(&open(TINY + 1)));
        let mut held: Vec<_> = (0..MEMORY / TINY).map(|_| open(TINY)).collect();
        assert!(held.iter().all(is_in_memory) && !is_in_memory(&open(0)));
        let reader = held.pop().unwrap().reader();
        assert!(!is_in_memory(&open(TINY)), "a reader still has it");
        drop(reader);
        assert!(is_in_memory(&open(TINY)));
        held.clear();
        assert_eq!(spool.in_memory.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_budget_is_kept_but_one_large_blob_gets_in_alone() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(&dir);
        let large = open(&spool, 1_000).unwrap();
        assert!(matches!(open(&spool, 1), Err(FlightError::NoSpool(_))));
        drop(large);
        let first = open(&spool, 60).unwrap();
        assert!(matches!(open(&spool, 60), Err(FlightError::NoSpool(_))));
        drop(first);
        assert!(open(&spool, 60).is_ok());
    }

    #[test]
    fn a_disk_that_failed_is_left_alone_for_a_while_and_memory_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path().into(), dir.path().into(), 1 << 30).unwrap();
        spool.has_failed(io::ErrorKind::StorageFull.into());
        assert!(matches!(open(&spool, TINY + 1), Err(FlightError::NoSpool(_))));
        assert!(open(&spool, TINY).is_ok());
        assert_eq!(spool.used(), 0, "what was refused takes no room");
        *spool.failed() = Instant::now().checked_sub(SHUNNED);
        assert!(open(&spool, TINY + 1).is_ok());
    }

    #[test]
    fn only_large_blobs_have_names() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(&dir);
        let names = || std::fs::read_dir(dir.path()).unwrap().count();
        let small = open(&spool, LASTING_FROM - 1).unwrap();
        assert_eq!(names(), 0);
        drop(small);
        let large = open(&spool, LASTING_FROM).unwrap();
        assert_eq!(names(), 1);
        large.forget();
        assert_eq!(names(), 0);
    }
}
