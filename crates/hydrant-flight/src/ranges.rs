//! A large blob as parallel ranges, where its upstream is configured so: faster than one connection
//! where the upstream limits each, and still one read of each byte.
//!
//! The ranges are read at the same time and delivered in order. What is read ahead is kept in
//! memory, so both the window of a blob and the number of blobs read so are bounded.

use crate::{error::FlightError, flights::Source, load::Body};
use bytes::Bytes;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use hydrant_upstream::{Part, UpstreamError};
use std::{collections::VecDeque, sync::Arc};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

/// Bytes of a blob that are read ahead of what is delivered: with what a leader may be ahead of its
/// followers, less than a part of 16 MiB.
const WINDOW: u64 = 10 * 1024 * 1024;
/// Smallest range: below it, requests cost more than they bring.
const SMALLEST: u64 = 1024 * 1024;
/// Blobs read as ranges at once; others are read whole.
const BLOBS: usize = 4;
/// Requests for one range, if its body breaks off.
const TRIES: u32 = 3;

/// The right to read a blob as ranges, of which there are few.
#[derive(Debug)]
pub(crate) struct Lanes(Arc<Semaphore>);

impl Default for Lanes {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BLOBS)))
    }
}

/// How a blob is read.
pub(crate) struct Plan {
    from: u64,
    size: u64,
    /// Bytes of a range.
    step: u64,
    ranges: usize,
    _permit: OwnedSemaphorePermit,
}

impl Lanes {
    /// `None` for what is read by one request.
    pub fn plan(&self, source: &Source, from: u64, size: Option<u64>) -> Option<Plan> {
        let (parallel, size) = (source.client.upstream().parallel?, size?);
        if size < parallel.from.0 || size.saturating_sub(from) < 2 * SMALLEST {
            return None;
        }
        let permit = self.0.clone().try_acquire_owned().ok()?;
        let step = (WINDOW / u64::from(parallel.ranges)).max(SMALLEST);
        let ranges = usize::try_from(parallel.ranges).ok()?;
        Some(Plan { from, size, step, ranges, _permit: permit })
    }
}

/// Opens the first range; the others are asked for as the window moves. An upstream that knows no
/// ranges is found out at the first.
pub(crate) async fn open(source: &Source, plan: Plan) -> Result<Body, FlightError> {
    let first = plan.part(plan.from);
    let body = source.part(first).await?.stream.boxed();
    let reader = |out| read(source.clone(), first, body, out);
    let ranges = VecDeque::from([Range::spawn(reader)]);
    let next = first.until.unwrap_or(plan.size);
    let ahead = Ahead { source: source.clone(), ranges, next, plan };
    let offset = ahead.plan.from;
    let chunks = stream::unfold(ahead, |mut ahead| async move {
        let chunk = ahead.next().await?;
        Some((chunk, ahead))
    });
    Ok(Body { offset, stream: chunks.boxed() })
}

impl Plan {
    fn part(&self, from: u64) -> Part {
        Part { from, until: Some((from + self.step).min(self.size)), of: Some(self.size) }
    }
}

/// The ranges under way, in the order in which they are delivered.
struct Ahead {
    source: Source,
    ranges: VecDeque<Range>,
    /// Where the next range begins.
    next: u64,
    plan: Plan,
}

impl Ahead {
    async fn next(&mut self) -> Option<Result<Bytes, FlightError>> {
        loop {
            self.fill();
            match self.ranges.front_mut()?.chunks.recv().await {
                Some(chunk) => return Some(chunk),
                None => drop(self.ranges.pop_front()),
            }
        }
    }

    fn fill(&mut self) {
        while self.ranges.len() < self.plan.ranges && self.next < self.plan.size {
            let part = self.plan.part(self.next);
            let source = self.source.clone();
            self.ranges.push_back(Range::spawn(|out| async move {
                match source.part(part).await {
                    Ok(body) => read(source, part, body.stream.boxed(), out).await,
                    // Nobody may be listening any more.
                    Err(error) => drop(out.send(Err(error.into()))),
                }
            }));
            self.next = part.until.unwrap_or(self.plan.size);
        }
    }
}

/// One range, read on its own whether or not its turn has come.
struct Range {
    /// As many bytes as the range has at most.
    chunks: mpsc::UnboundedReceiver<Result<Bytes, FlightError>>,
    _reading: AbortOnDropHandle<()>,
}

impl Range {
    fn spawn<R: Future<Output = ()> + Send + 'static>(
        read: impl FnOnce(mpsc::UnboundedSender<Result<Bytes, FlightError>>) -> R,
    ) -> Self {
        let (out, chunks) = mpsc::unbounded_channel();
        Self { chunks, _reading: AbortOnDropHandle::new(tokio::spawn(read(out))) }
    }
}

type Chunks = BoxStream<'static, Result<Bytes, UpstreamError>>;

/// Reads a range to its end; where it breaks off, asks for the rest of it.
async fn read(
    source: Source,
    mut part: Part,
    mut body: Chunks,
    out: mpsc::UnboundedSender<Result<Bytes, FlightError>>,
) {
    let until = part.until.unwrap_or(u64::MAX);
    for tried in 1..=TRIES {
        let broken = match copy(&mut part.from, until, body, &out).await {
            Ok(()) if part.from == until => return,
            Ok(()) => FlightError::Integrity(format!("a range ended at {}", part.from)),
            Err(error) => error,
        };
        let again = match tried < TRIES {
            true => source.part(part).await.map_err(FlightError::from),
            false => Err(broken),
        };
        body = match again {
            Ok(again) => again.stream.boxed(),
            // Nobody may be listening any more.
            Err(error) => return drop(out.send(Err(error))),
        };
    }
}

async fn copy(
    at: &mut u64,
    until: u64,
    mut body: Chunks,
    out: &mpsc::UnboundedSender<Result<Bytes, FlightError>>,
) -> Result<(), FlightError> {
    while let Some(chunk) = body.next().await {
        let chunk = chunk?;
        *at += chunk.len() as u64;
        if *at > until {
            return Err(FlightError::Integrity("a range is longer than asked for".to_owned()));
        }
        if out.send(Ok(chunk)).is_err() {
            break;
        }
    }
    Ok(())
}
