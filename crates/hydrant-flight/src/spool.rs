//! Where a flight's bytes wait for their readers: an unnamed file in the spool directory, so that
//! nothing is left behind whatever happens to the process, under a budget of bytes.

use crate::error::FlightError;
use bytes::{Bytes, BytesMut};
use hydrant_proto::Hasher;
use hydrant_telemetry::metrics;
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::task::spawn_blocking;

/// The spool directory and what is left of its budget.
#[derive(Debug)]
pub(crate) struct Spool {
    dir: PathBuf,
    budget: u64,
    used: AtomicU64,
}

impl Spool {
    pub fn new(dir: PathBuf, budget: u64) -> io::Result<Arc<Self>> {
        std::fs::create_dir_all(&dir)?;
        Ok(Arc::new(Self { dir, budget, used: AtomicU64::new(0) }))
    }

    /// An empty spool file with room for `bytes`. One that alone exceeds the whole budget is let
    /// in when nothing else is spooled, so that no blob is too large for ever.
    pub fn open(self: &Arc<Self>, bytes: u64) -> Result<SpoolFile, FlightError> {
        let reserved = Reserved::new(self.clone(), bytes)?;
        let file = tempfile::tempfile_in(&self.dir).map_err(no_spool)?;
        Ok(SpoolFile(Arc::new(Spooled { file, reserved })))
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
struct Reserved {
    spool: Arc<Spool>,
    bytes: AtomicU64,
}

impl Reserved {
    fn new(spool: Arc<Spool>, bytes: u64) -> Result<Self, FlightError> {
        let reserved = Self { spool, bytes: AtomicU64::new(0) };
        reserved.grow(bytes)?;
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
        self.spool.report();
    }
}

fn no_spool(error: io::Error) -> FlightError {
    FlightError::NoSpool(error.to_string())
}

/// A file and its part of the budget, which is in use until the last reader is gone.
#[derive(Debug)]
struct Spooled {
    file: File,
    reserved: Reserved,
}

/// One flight's file. Written by the flight, read by any number of readers at their own offsets.
#[derive(Debug)]
pub(crate) struct SpoolFile(Arc<Spooled>);

impl SpoolFile {
    /// Hashes `chunks` and appends them at `offset`.
    pub async fn append(
        &mut self,
        offset: u64,
        chunks: Vec<Bytes>,
        mut hasher: Hasher,
    ) -> Result<(u64, Hasher), FlightError> {
        let length: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        self.0.reserved.grow(offset + length)?;
        let spooled = self.0.clone();
        let write = move || {
            let mut at = offset;
            for chunk in &chunks {
                hasher.update(chunk);
                spooled.file.write_all_at(chunk, at)?;
                at += chunk.len() as u64;
            }
            Ok((at, hasher))
        };
        spawn_blocking(write).await.expect("hashing and writing do not panic").map_err(no_spool)
    }

    pub fn reader(&self) -> SpoolReader {
        SpoolReader(self.0.clone())
    }
}

/// Reads what was spooled; keeps the file alive.
#[derive(Clone, Debug)]
pub(crate) struct SpoolReader(Arc<Spooled>);

impl SpoolReader {
    /// The bytes at `from..to`, which must have been written.
    pub async fn read(&self, from: u64, to: u64) -> Result<Bytes, FlightError> {
        let spooled = self.0.clone();
        let read = move || {
            let length = usize::try_from(to - from).expect("a block fits in memory");
            let mut block = BytesMut::zeroed(length);
            spooled.file.read_exact_at(&mut block, from)?;
            Ok(block.freeze())
        };
        spawn_blocking(read).await.expect("reading does not panic").map_err(no_spool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hydrant_proto::{Algorithm, Digest};

    #[tokio::test]
    async fn what_is_appended_is_hashed_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path().into(), 100).unwrap();
        let mut file = spool.open(4).unwrap();
        let hasher = Hasher::new(Algorithm::Sha256);
        let chunks = vec![Bytes::from_static(b"hy"), Bytes::from_static(b"drant")];
        let (at, hasher) = file.append(0, chunks, hasher).await.unwrap();
        assert_eq!((at, hasher.finish()), (7, Digest::of(b"hydrant")));
        assert_eq!(file.reader().read(2, 7).await.unwrap(), "drant");
        assert_eq!(spool.used(), 7);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file has no name");
        let reader = file.reader();
        drop(file);
        assert_eq!(spool.used(), 7, "a reader still has it open");
        drop(reader);
        assert_eq!(spool.used(), 0);
    }

    #[test]
    fn the_budget_is_kept_but_one_large_blob_gets_in_alone() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path().into(), 100).unwrap();
        let large = spool.open(1_000).unwrap();
        assert!(matches!(spool.open(1), Err(FlightError::NoSpool(_))));
        drop(large);
        let first = spool.open(60).unwrap();
        assert!(matches!(spool.open(60), Err(FlightError::NoSpool(_))));
        drop(first);
        assert!(spool.open(60).is_ok());
    }
}
