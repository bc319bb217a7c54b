//! From the upstream: the blob, or the rest of it, asked for again where the upstream breaks off.

use crate::{
    error::FlightError,
    flights::Source,
    insurance::insured,
    load::{Body, Load, Taken},
    offers,
    peers::Peers,
    ranges::{self, Lanes},
};
use futures::StreamExt;
use hydrant_upstream::{BlobBody, UpstreamError};
use std::pin::pin;
use tokio_util::sync::CancellationToken;

/// Resumes without a single new byte before the flight is given up.
const FRUITLESS_RESUMES: u32 = 3;
/// Resumes in all: an upstream that breaks off so often is not delivering.
const RESUMES: u32 = 64;

/// Whether a fetch came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fetched {
    Whole,
    Halted,
}

/// Asks the upstream for what `load` does not have yet, and opens it.
pub(crate) async fn open(
    load: &mut Load,
    source: &Source,
    lanes: &Lanes,
) -> Result<Body, FlightError> {
    load.recall(source.size);
    let (mut body, stated) = rest(load, source, lanes).await?;
    agree(source.size, stated)?;
    let size = source.bound(stated).await?;
    load.comes_from(body.offset);
    load.open(size)?;
    if body.offset > load.from() {
        // What a dead process left is of a blob of another size.
        (body, _) = rest(load, source, lanes).await?;
    }
    Ok(insured(load.flight(), body))
}

/// Takes `body` into `load`, and where it breaks off, asks for the rest; then confirms the digest.
pub(crate) async fn fetch(
    load: &mut Load,
    source: &Source,
    lanes: &Lanes,
    peers: &Peers,
    mut body: Body,
    halt: &CancellationToken,
) -> Result<Fetched, FlightError> {
    let (mut fruitless, mut resumes) = (0, 0);
    loop {
        let before = load.at();
        let broken = match take(load, peers, body, halt).await? {
            _ if load.is_full() => break,
            Taken::Halted => return Ok(Fetched::Halted),
            Taken::Ended => FlightError::Integrity(format!("it ended after {} bytes", load.at())),
            Taken::Broken(error) => error,
        };
        fruitless = if load.at() > before { 0 } else { fruitless + 1 };
        resumes += 1;
        if fruitless > FRUITLESS_RESUMES || resumes > RESUMES {
            return Err(broken);
        }
        tracing::debug!(digest = %source.digest, offset = load.at(), error = %broken,
            "upstream body broke off, resuming");
        body = match again(load, source, lanes, halt).await? {
            Some(rest) => rest,
            None => return Ok(Fetched::Halted),
        };
    }
    load.confirm()?;
    Ok(Fetched::Whole)
}

/// Takes what comes, until another process is found to have much more: then that is taken, and the
/// body has ended early.
async fn take(
    load: &mut Load,
    peers: &Peers,
    body: Body,
    halt: &CancellationToken,
) -> Result<Taken, FlightError> {
    let (flight, stop) = (load.flight().clone(), halt.child_token());
    {
        let mut taken = pin!(load.take(body, &stop));
        tokio::select! {
            taken = &mut taken => return taken,
            () = offers::worth_taking(&flight) => stop.cancel(),
        }
        if let taken @ (Ok(Taken::Ended | Taken::Broken(_)) | Err(_)) = taken.await {
            return taken;
        }
    }
    if halt.is_cancelled() {
        return Ok(Taken::Halted);
    }
    offers::accept(peers, load, halt).await?;
    Ok(Taken::Ended)
}

/// The rest of the blob; `None` when it is not wanted any more.
async fn again(
    load: &Load,
    source: &Source,
    lanes: &Lanes,
    halt: &CancellationToken,
) -> Result<Option<Body>, FlightError> {
    let rest = halt.run_until_cancelled(rest(load, source, lanes)).await.transpose()?;
    Ok(rest.map(|(body, _)| insured(load.flight(), body)))
}

/// The rest of the blob, and its size by the upstream's word; from its beginning where the upstream
/// does not honour a range, in which case what is here already is skipped.
async fn rest(
    load: &Load,
    source: &Source,
    lanes: &Lanes,
) -> Result<(Body, Option<u64>), FlightError> {
    let size = load.size().or(source.size);
    if let Some(plan) = lanes.plan(source, load.from(), size) {
        match ranges::open(source, plan).await {
            Err(FlightError::Upstream(error)) if is_rangeless(&error) => {}
            body => return Ok((body?, size)),
        }
    }
    let body = match source.open(load.from()).await {
        Err(error) if is_rangeless(&error) => source.open(0).await?,
        body => body?,
    };
    let stated = body.size;
    Ok((body.into(), stated))
}

fn is_rangeless(error: &UpstreamError) -> bool {
    matches!(error, UpstreamError::RangeNotHonoured { .. })
}

/// The manifest's word and the upstream's word on the size, where both gave one.
fn agree(described: Option<u64>, stated: Option<u64>) -> Result<(), FlightError> {
    match (described, stated) {
        (Some(described), Some(stated)) if described != stated => Err(FlightError::Integrity(
            format!("{stated} bytes, where the manifest says {described}"),
        )),
        _ => Ok(()),
    }
}

impl From<BlobBody> for Body {
    fn from(body: BlobBody) -> Self {
        let stream = body.stream.map(|chunk| chunk.map_err(FlightError::from)).boxed();
        Self { offset: body.offset, stream }
    }
}
