//! What of a blob is here: its bytes in the spool, and the hash of them. It stays while the process
//! leads, follows and takes over, so that nothing is fetched twice.

use crate::{
    error::FlightError,
    flight::{Flight, Stage},
    kept::Kept,
    spool::{Spool, SpoolFile},
};
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use hydrant_proto::Hasher;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Chunks gathered for one write, if the sender has them ready.
const BATCH: usize = 64;

/// The blob, or the rest of it, on its way here.
pub(crate) struct Body {
    /// Where the first byte of `stream` is in the blob.
    pub offset: u64,
    pub stream: BoxStream<'static, Result<Bytes, FlightError>>,
}

/// How a body ended, if not by an error of ours.
#[derive(Debug)]
pub(crate) enum Taken {
    /// All of it came.
    Ended,
    /// It broke off.
    Broken(FlightError),
    /// We were told to stop.
    Halted,
}

/// The bytes of one flight in this process.
pub(crate) struct Load {
    flight: Flight,
    spool: Arc<Spool>,
    kept: Arc<Kept>,
    open: Option<Open>,
}

struct Open {
    file: SpoolFile,
    size: u64,
    /// Bytes here, from the first one on.
    at: u64,
    /// Of the bytes here; taken while a batch is being hashed.
    hasher: Option<Hasher>,
    /// The bytes are all here and hash to the digest.
    confirmed: bool,
}

impl Load {
    pub fn new(flight: &Flight, spool: &Arc<Spool>, kept: &Arc<Kept>) -> Self {
        Self { flight: flight.clone(), spool: spool.clone(), kept: kept.clone(), open: None }
    }

    pub fn flight(&self) -> &Flight {
        &self.flight
    }

    /// Bytes here.
    pub fn at(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.at)
    }

    /// Whether the size is known, so that readers have been told.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Size in bytes, once it is known.
    pub fn size(&self) -> Option<u64> {
        self.open.as_ref().map(|open| open.size)
    }

    /// Whether every byte is here, confirmed or not.
    pub fn is_full(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.at >= open.size)
    }

    /// Says how large the blob is: the first time, room is made for it and readers hear of it;
    /// after that it has to stay the same.
    pub fn open(&mut self, size: u64) -> Result<(), FlightError> {
        if let Some(open) = &self.open {
            return same_size(open.size, size);
        }
        let file = self.room(size)?;
        let shared = &self.flight.0;
        shared.spool.set(file.reader()).expect("a flight opens its spool once");
        shared.progress.send_modify(|progress| {
            progress.size = Some(size);
            progress.stage = Stage::Flying;
        });
        let hasher = Some(Hasher::new(self.flight.digest().algorithm()));
        self.open = Some(Open { file, size, at: 0, hasher, confirmed: false });
        Ok(())
    }

    /// What landed makes room first.
    fn room(&self, bytes: u64) -> Result<SpoolFile, FlightError> {
        loop {
            match self.spool.open(bytes) {
                Err(FlightError::NoSpool(_)) if self.kept.let_oldest_go() => {}
                opened => return opened,
            }
        }
    }

    /// Takes what comes until the body ends or breaks, or `halt` is cancelled. What is here already
    /// is skipped. To be opened before.
    pub async fn take(
        &mut self,
        body: Body,
        halt: &CancellationToken,
    ) -> Result<Taken, FlightError> {
        let mut skip = self.at().saturating_sub(body.offset);
        let mut batches = body.stream.ready_chunks(BATCH);
        // Only the wait is given up: a write under way is finished, so that the hash is of the file.
        while let Some(next) = halt.run_until_cancelled(batches.next()).await {
            let Some(batch) = next else { return Ok(Taken::Ended) };
            if let Some(broken) = self.take_batch(batch, &mut skip).await? {
                return Ok(Taken::Broken(broken));
            }
        }
        Ok(Taken::Halted)
    }

    /// Appends the chunks up to the first error, which is returned: a stream only repeats itself
    /// after it.
    pub async fn take_batch(
        &mut self,
        batch: Vec<Result<Bytes, FlightError>>,
        skip: &mut u64,
    ) -> Result<Option<FlightError>, FlightError> {
        let mut chunks = Vec::with_capacity(batch.len());
        let mut broken = None;
        for chunk in batch {
            match chunk {
                Ok(chunk) => chunks.extend(past(chunk, skip)),
                Err(error) => {
                    broken = Some(error);
                    break;
                }
            }
        }
        self.append(chunks).await?;
        Ok(broken)
    }

    async fn append(&mut self, chunks: Vec<Bytes>) -> Result<(), FlightError> {
        let open = self.open.as_mut().expect("opened before bytes are taken");
        let arrived = open.at + chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        if arrived > open.size {
            let detail = format!("it is longer than its {} bytes", open.size);
            return Err(FlightError::Integrity(detail));
        }
        if arrived == open.at {
            return Ok(());
        }
        let hasher = open.hasher.take().expect("the hasher comes back from every append");
        let (at, hasher) = open.file.append(open.at, chunks, hasher).await?;
        (open.at, open.hasher) = (at, Some(hasher));
        self.flight.0.progress.send_modify(|progress| progress.spooled = at);
        Ok(())
    }

    /// Checks the digest of a full load, once; readers then get the last byte. Returns its size.
    pub fn confirm(&mut self) -> Result<u64, FlightError> {
        let open = self.open.as_mut().expect("a full load is open");
        if open.confirmed {
            return Ok(open.size);
        }
        let wrong = || FlightError::Integrity("its bytes were found wrong before".to_owned());
        let hasher = open.hasher.take().ok_or_else(wrong)?;
        let digest = hasher.finish();
        if digest != *self.flight.digest() {
            return Err(FlightError::Integrity(format!(
                "{} bytes that hash to {digest}, not to {}",
                open.at,
                self.flight.digest()
            )));
        }
        open.confirmed = true;
        self.flight.0.progress.send_modify(|progress| {
            progress.whole = true;
            progress.stage = Stage::Storing;
        });
        Ok(open.size)
    }
}

fn same_size(known: u64, told: u64) -> Result<(), FlightError> {
    match known == told {
        true => Ok(()),
        false => Err(FlightError::Integrity(format!("{told} bytes, where it had {known} before"))),
    }
}

/// What of `chunk` lies past the next `skip` bytes.
fn past(mut chunk: Bytes, skip: &mut u64) -> Option<Bytes> {
    let dropped = usize::try_from(*skip).unwrap_or(usize::MAX).min(chunk.len());
    *skip -= dropped as u64;
    let rest = chunk.split_off(dropped);
    (!rest.is_empty()).then_some(rest)
}
