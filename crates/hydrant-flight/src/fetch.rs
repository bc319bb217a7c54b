//! The flight's own work: upstream -> hash -> spool, resumed where the upstream breaks off.

use crate::{
    error::FlightError,
    flight::{Flight, Stage},
    flights::Source,
    spool::SpoolFile,
};
use bytes::Bytes;
use futures::StreamExt;
use hydrant_proto::Hasher;
use hydrant_upstream::{BlobBody, UpstreamError};

/// Chunks gathered for one write, if the upstream has them ready.
const BATCH: usize = 64;
/// Resumes without a single new byte before the flight is given up.
const FRUITLESS_RESUMES: u32 = 3;
/// Resumes in all: an upstream that breaks off so often is not delivering.
const RESUMES: u32 = 64;

/// Where a fetch stands; survives a break of the upstream's body.
struct Fetch<'a> {
    flight: &'a Flight,
    source: &'a Source,
    file: SpoolFile,
    /// Of the bytes spooled so far; taken while a batch is being hashed.
    hasher: Option<Hasher>,
    at: u64,
    size: Option<u64>,
}

/// Fetches the blob into the spool and confirms its digest. Returns its size in bytes.
pub(crate) async fn fetch(
    flight: &Flight,
    source: &Source,
    body: BlobBody,
    file: SpoolFile,
) -> Result<u64, FlightError> {
    let hasher = Some(Hasher::new(source.digest.algorithm()));
    let size = body.size;
    let mut fetch = Fetch { flight, source, file, hasher, at: 0, size };
    fetch.finish(body).await?;
    fetch.confirm()?;
    Ok(fetch.at)
}

impl Fetch<'_> {
    /// Takes `body`, and where it breaks off, asks for the rest.
    async fn finish(&mut self, mut body: BlobBody) -> Result<(), FlightError> {
        let (mut fruitless, mut resumes) = (0, 0);
        loop {
            let before = self.at;
            let broken = match self.take(body).await {
                Ok(()) if self.size.is_none_or(|size| self.at >= size) => return Ok(()),
                Ok(()) => FlightError::Integrity(format!("it ended after {} bytes", self.at)),
                Err(FlightError::Upstream(error)) => FlightError::Upstream(error),
                Err(error) => return Err(error),
            };
            fruitless = if self.at > before { 0 } else { fruitless + 1 };
            resumes += 1;
            if fruitless > FRUITLESS_RESUMES || resumes > RESUMES {
                return Err(broken);
            }
            tracing::debug!(digest = %self.source.digest, offset = self.at, error = %broken,
                "upstream body broke off, resuming");
            body = self.resume().await?;
        }
    }

    /// The rest of the body; from its beginning where the upstream does not honour a range, in
    /// which case what is spooled already is skipped.
    async fn resume(&self) -> Result<BlobBody, FlightError> {
        match self.source.open(self.at).await {
            Err(UpstreamError::RangeNotHonoured { .. }) => Ok(self.source.open(0).await?),
            other => Ok(other?),
        }
    }

    async fn take(&mut self, body: BlobBody) -> Result<(), FlightError> {
        let mut skip = self.at - body.offset;
        let mut batches = body.stream.ready_chunks(BATCH);
        while let Some(batch) = batches.next().await {
            let mut chunks = Vec::with_capacity(batch.len());
            let mut broken = None;
            for chunk in batch {
                match chunk {
                    Ok(chunk) => chunks.extend(past(chunk, &mut skip)),
                    // The stream only repeats itself after an error.
                    Err(error) => {
                        broken = Some(error);
                        break;
                    }
                }
            }
            self.append(chunks).await?;
            if let Some(error) = broken {
                return Err(error.into());
            }
        }
        Ok(())
    }

    async fn append(&mut self, chunks: Vec<Bytes>) -> Result<(), FlightError> {
        let arrived = self.at + chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        if let Some(size) = self.size
            && arrived > size
        {
            return Err(FlightError::Integrity(format!("it is longer than its {size} bytes")));
        }
        if arrived == self.at {
            return Ok(());
        }
        let hasher = self.hasher.take().expect("the hasher comes back from every append");
        let (at, hasher) = self.file.append(self.at, chunks, hasher).await?;
        (self.at, self.hasher) = (at, Some(hasher));
        self.flight.0.progress.send_modify(|progress| progress.spooled = at);
        Ok(())
    }

    fn confirm(&mut self) -> Result<(), FlightError> {
        let digest = self.hasher.take().expect("no append is under way").finish();
        if digest != self.source.digest {
            return Err(FlightError::Integrity(format!(
                "{} bytes that hash to {digest}, not to {}",
                self.at, self.source.digest
            )));
        }
        let at = self.at;
        self.flight.0.progress.send_modify(|progress| {
            progress.size = Some(at);
            progress.whole = true;
            progress.stage = Stage::Storing;
        });
        Ok(())
    }
}

/// What of `chunk` lies past the next `skip` bytes.
fn past(mut chunk: Bytes, skip: &mut u64) -> Option<Bytes> {
    let dropped = usize::try_from(*skip).unwrap_or(usize::MAX).min(chunk.len());
    *skip -= dropped as u64;
    let rest = chunk.split_off(dropped);
    (!rest.is_empty()).then_some(rest)
}
