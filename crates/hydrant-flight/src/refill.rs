//! The beginning of a flight that goes on with an upload of a dead process. Those bytes are in storage,
//! where nobody can read them before the upload is complete. So they are fetched once more by Range, in
//! this process for all, if a reader comes who wants them.

use crate::{
    error::FlightError,
    fetch::pause,
    flight::Flight,
    flights::{Flights, Source},
};
use bytes::Bytes;
use futures::StreamExt;
use hydrant_store::Refill;
use hydrant_upstream::{Part, UpstreamError};
use tokio::{task::spawn_blocking, time::sleep};
use tokio_util::sync::CancellationToken;

/// Requests in a row without a new byte, before it is given up.
const TRIES: u32 = 4;

impl Flights {
    /// Waits for a reader who wants what is missing, and fetches it; ends with `over` when nobody came.
    pub(crate) async fn refill(&self, flight: &Flight, source: &Source, over: &CancellationToken) {
        if over.run_until_cancelled(flight.missed()).await.is_none() {
            return;
        }
        let Some(refill) = flight.spool().ok().and_then(|spool| spool.file.refill()) else {
            return;
        };
        tracing::info!(
            size_bytes = refill.wanted(),
            "bytes of a dead process's upload fetched again"
        );
        if let Err(error) = fetched(flight, source, refill).await {
            self.fail(flight, error);
        }
    }
}

async fn fetched(flight: &Flight, source: &Source, mut refill: Refill) -> Result<(), FlightError> {
    let mut fruitless = 0;
    while refill.written() < refill.wanted() {
        let before = refill.written();
        let taken = taken(flight, source, &mut refill).await?;
        fruitless = if refill.written() > before { 0 } else { fruitless + 1 };
        if fruitless >= TRIES {
            let nothing =
                || FlightError::Integrity("it sends nothing of what is missing".to_owned());
            return Err(taken.err().unwrap_or_else(nothing));
        }
        if fruitless > 0 {
            sleep(pause(fruitless)).await;
        }
    }
    if !refill.agrees() {
        return Err(FlightError::Integrity("what was stored of it before is not this".to_owned()));
    }
    flight.refilled(None);
    Ok(())
}

/// Takes what comes of one request; how that ended is told apart from what ends all.
async fn taken(
    flight: &Flight,
    source: &Source,
    refill: &mut Refill,
) -> Result<Result<(), FlightError>, FlightError> {
    let (from, until) = (refill.written(), refill.wanted());
    let part = Part { from, until: Some(until), of: flight.progress().size };
    let body = match source.part(part).await {
        Err(UpstreamError::RangeNotHonoured { .. }) => source.open(0).await,
        body => body,
    };
    let mut body = match body {
        Ok(body) => body,
        Err(error) => return Ok(Err(error.into())),
    };
    let mut at = body.offset;
    while refill.written() < until
        && let Some(chunk) = body.stream.next().await
    {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => return Ok(Err(error.into())),
        };
        let next = at + chunk.len() as u64;
        let wanted = within(&chunk, at, refill.written()..until);
        at = next;
        append(refill, wanted).await?;
        flight.refilled(Some(refill.written()..until));
    }
    Ok(Ok(()))
}

/// What of a chunk at `at` is wanted.
fn within(chunk: &Bytes, at: u64, wanted: std::ops::Range<u64>) -> Bytes {
    let cut =
        |to: u64| usize::try_from(to.saturating_sub(at)).unwrap_or(usize::MAX).min(chunk.len());
    chunk.slice(cut(wanted.start)..cut(wanted.end))
}

async fn append(refill: &mut Refill, bytes: Bytes) -> Result<(), FlightError> {
    let mut own = refill.clone();
    let written = spawn_blocking(move || own.append(&bytes).map(|()| own)).await;
    let written = written.expect("hashing and writing do not panic");
    *refill = written.map_err(|error| FlightError::NoSpool(error.to_string()))?;
    Ok(())
}
