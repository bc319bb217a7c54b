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
use hydrant_upstream::{BlobBody, Retry, UpstreamError};
use std::{pin::pin, time::Duration};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Resumes without a single new byte before the flight is given up.
const FRUITLESS_RESUMES: u32 = 3;
/// Resumes in all: an upstream that breaks off so often is not delivering.
const RESUMES: u32 = 64;
/// How long those who were promised the rest wait for an upstream that is in trouble: longer than its
/// breaker stays open the first times. Whoever is not promised anything yet hears of it at once.
const HOLD_OUT: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

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
    if let Some(size) = source.size {
        // Before the upstream is asked for what would have no place.
        load.has_room(size)?;
    }
    let (mut body, stated) = rest_of(load, source, lanes).await?;
    agree(source.size, stated)?;
    let size = source.bound(stated).await?;
    load.comes_from(body.offset);
    load.open(size)?;
    if body.offset > load.from() {
        // What a dead process left is of a blob of another size.
        (body, _) = rest_of(load, source, lanes).await?;
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
        if fruitless > 0 && halt.run_until_cancelled(sleep(pause(fruitless))).await.is_none() {
            return Ok(Fetched::Halted);
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
    let rest = halt.run_until_cancelled(rest_of(load, source, lanes)).await.transpose()?;
    Ok(rest.map(|(body, _)| insured(load.flight(), body)))
}

/// The rest of the blob, waited for through a short trouble of the upstream where readers have been
/// promised it. What is asked again is paid for like every repetition.
async fn rest_of(
    load: &Load,
    source: &Source,
    lanes: &Lanes,
) -> Result<(Body, Option<u64>), FlightError> {
    let until = Instant::now() + HOLD_OUT;
    let mut troubles = 0;
    loop {
        let error = match rest(load, source, lanes).await {
            Err(error) if load.is_open() => error,
            told => return told,
        };
        loop {
            troubles += 1;
            let Some(wait) = worth_waiting(&error, troubles) else { return Err(error) };
            if Instant::now() + wait > until {
                return Err(error);
            }
            sleep(wait).await;
            if source.client.may_repeat() {
                break;
            }
        }
        tracing::debug!(digest = %source.digest, offset = load.at(), %error, "asks for the rest again");
    }
}

/// How long to wait after so many failures in a row; `None` when waiting does not help.
fn worth_waiting(error: &FlightError, troubles: u32) -> Option<Duration> {
    let FlightError::Upstream(error) = error else { return None };
    match error.retry() {
        Retry::Later if matches!(**error, UpstreamError::Down { .. }) => Some(pause(troubles)),
        Retry::After(told) => Some(told + pause(1)),
        Retry::Later | Retry::Never | Retry::FromStart => None,
    }
}

/// The pause after so many failures in a row, 1 or more: doubled by each, and up to as long again, at
/// random, so that flights that broke together do not come back together.
pub(crate) fn pause(failures: u32) -> Duration {
    let doubled = FIRST_PAUSE * 2_u32.saturating_pow(failures.saturating_sub(1).min(16));
    doubled.min(LONGEST_PAUSE).mul_f64(rand::random_range(1.0..2.0))
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
