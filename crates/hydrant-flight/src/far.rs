//! Parts of a blob that clients want long before its flight comes to them, such as the table of
//! contents at the end of a layer: each is fetched as that range, once for all who want it, and kept
//! until the flight has passed it.
//!
//! The flight reads them once more. HTTP cannot leave anything out of a body under way, and what is
//! on its way when a body is given up is more than such a part has. So there is little of it: a share
//! of the blob.

use crate::{
    aside::{Aside, Extract, Room},
    error::FlightError,
    flights::Source,
    load::Body,
    peers::{Answer, Peers, broken},
    turn::Leader,
};
use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared, WeakShared, ready},
};
use hydrant_proto::Digest;
use hydrant_telemetry::metrics::{FarOutcome, metrics};
use hydrant_upstream::{Part, Priority, UpstreamError};
use std::{
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::watch, time::timeout};

/// Longest part that is fetched so; a longer one waits for the flight.
const LONGEST: u64 = 4 * 1024 * 1024;
/// Parts begin and end at multiples of this: who wants what lies beside one has it then.
const GRID: u64 = 64 * 1024;
/// Bytes that a blob may cost the upstream so: a share of it, within bounds.
const SHARE: u64 = 32;
const LEAST: u64 = 256 * 1024;
const MOST: u64 = 16 * 1024 * 1024;
/// Failures after which a way is not tried again.
const FAILURES: u32 = 3;
/// Longest time for one part.
const WITHIN: Duration = Duration::from_secs(15);

/// Where parts come from.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    /// This process leads.
    Upstream(Source),
    /// Another one does, and asks the upstream for all.
    Leader(Leader, Arc<Peers>),
}

/// The parts of one blob.
#[derive(Debug)]
pub(crate) struct Far {
    digest: Digest,
    aside: Aside,
    way: watch::Sender<Option<Way>>,
    asked: Mutex<Asked>,
}

#[derive(Debug, Default)]
struct Asked {
    coming: Vec<Coming>,
    /// Bytes that the upstream was asked for.
    of_upstream: u64,
    /// Of the present way.
    failures: Arc<AtomicU32>,
}

/// A part on its way, as long as anybody waits for it.
#[derive(Debug)]
struct Coming {
    range: Range<u64>,
    fetch: WeakShared<Fetch>,
}

/// `None` when it failed.
type Fetch = BoxFuture<'static, Option<Extract>>;

impl Far {
    pub fn new(digest: &Digest, aside: &Aside) -> Self {
        let (digest, aside) = (digest.clone(), aside.clone());
        Self { digest, aside, way: watch::Sender::new(None), asked: Mutex::default() }
    }

    /// From now on parts come this way. What is on its way by another one may never come.
    pub fn come_by(&self, way: Way) {
        let mut asked = self.asked();
        (asked.coming, asked.failures) = (Vec::new(), Arc::default());
        drop(asked);
        self.way.send_replace(Some(way));
    }

    /// Told of each new way.
    pub fn ways(&self) -> watch::Receiver<Option<Way>> {
        self.way.subscribe()
    }

    /// The flight has what lies before `at`.
    pub fn passed(&self, at: u64) {
        self.aside.passed(&self.digest, at);
    }

    /// The flight is over.
    pub fn close(&self) {
        self.way.send_replace(None);
        self.passed(u64::MAX);
    }

    /// The bytes of `part`, of a blob of `size` bytes; `None` when they are to come with the flight.
    /// Dropped, it is not waited for any more.
    pub async fn fetch(&self, part: &Range<u64>, size: u64) -> Option<Bytes> {
        let Some(fetch) = self.begun(part, size) else {
            metrics().flights.far(FarOutcome::Refused);
            return None;
        };
        fetch.await?.cut(part)
    }

    fn begun(&self, part: &Range<u64>, size: u64) -> Option<Shared<Fetch>> {
        let mut asked = self.asked();
        // What has just come is kept before it is no longer coming.
        if let Some(fetch) = asked.coming(part) {
            return Some(fetch);
        }
        if let Some(bytes) = self.aside.get(&self.digest, part) {
            return Some(ready(Some(Extract { range: part.clone(), bytes })).boxed().shared());
        }
        let order = self.order(&mut asked, widened(part, size), size)?;
        let range = order.range.clone();
        let fetch = order.fetch().boxed().shared();
        asked.coming.push(Coming { range, fetch: fetch.downgrade()? });
        Some(fetch)
    }

    fn order(&self, asked: &mut Asked, range: Range<u64>, size: u64) -> Option<Order> {
        let length = range.end - range.start;
        let way = self.way.borrow().clone()?;
        let is_allowed = match &way {
            Way::Upstream(source) => {
                asked.of_upstream + length <= allowance(size)
                    && self.aside.knows_ranges(source.client.upstream().name.as_str())
            }
            // It decides for all.
            Way::Leader(..) => true,
        };
        if !is_allowed || !is_short(&range) || asked.failures.load(Relaxed) >= FAILURES {
            return None;
        }
        let room = self.aside.room(length)?;
        if let Way::Upstream(_) = way {
            asked.of_upstream += length;
        }
        let (digest, aside, failures) =
            (self.digest.clone(), self.aside.clone(), asked.failures.clone());
        Some(Order { digest, range, size, way, room, aside, failures })
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asked {
    fn coming(&mut self, part: &Range<u64>) -> Option<Shared<Fetch>> {
        self.coming.retain(|coming| coming.fetch.upgrade().is_some());
        let covers = |range: &Range<u64>| range.start <= part.start && part.end <= range.end;
        self.coming.iter().find(|coming| covers(&coming.range))?.fetch.upgrade()
    }
}

/// One part that is fetched.
struct Order {
    digest: Digest,
    range: Range<u64>,
    size: u64,
    way: Way,
    room: Room,
    aside: Aside,
    failures: Arc<AtomicU32>,
}

impl Order {
    async fn fetch(self) -> Option<Extract> {
        let Self { digest, range, size, way, room, aside, failures } = self;
        let late = |_| Err(broken("a range took too long"));
        let read = timeout(WITHIN, way.read(&digest, &range, size)).await.unwrap_or_else(late);
        match read {
            Ok(bytes) => {
                way.count(bytes.len() as u64);
                let extract = Extract { range, bytes: room.fill(bytes) };
                aside.keep(&digest, extract.clone());
                Some(extract)
            }
            Err(error) => {
                tracing::debug!(%digest, ?range, %error, "a range waits for the flight");
                metrics().flights.far(FarOutcome::Failed);
                failures.fetch_add(1, Relaxed);
                if let (Way::Upstream(source), true) = (&way, is_rangeless(&error)) {
                    aside.is_rangeless(source.client.upstream().name.as_str()).await;
                }
                None
            }
        }
    }
}

impl Way {
    async fn read(
        &self,
        digest: &Digest,
        range: &Range<u64>,
        size: u64,
    ) -> Result<Vec<u8>, FlightError> {
        let body = match self {
            Self::Upstream(source) => {
                let source = Source { urgency: Priority::Interactive.into(), ..source.clone() };
                let (from, until) = (range.start, Some(range.end));
                source.part(Part { from, until, of: Some(size) }).await?.into()
            }
            Self::Leader(leader, peers) => match peers.part(leader, digest, range).await {
                Answer::Here(along) => along.body,
                Answer::Gone => return Err(broken("it has no such flight")),
                Answer::Failed(report) => return Err(broken(report.reason)),
                Answer::Unreachable(why) => return Err(broken(why)),
            },
        };
        gathered(body, range.end - range.start).await
    }

    fn count(&self, bytes: u64) {
        metrics().flights.far(FarOutcome::Fetched);
        if let Self::Upstream(_) = self {
            metrics().flights.fetched_ahead(bytes);
        }
    }
}

/// All `length` bytes of a body that has neither more nor less.
async fn gathered(mut body: Body, length: u64) -> Result<Vec<u8>, FlightError> {
    let length = usize::try_from(length).map_err(broken)?;
    let mut bytes = Vec::with_capacity(length);
    while let Some(chunk) = body.stream.next().await.transpose()? {
        bytes.extend_from_slice(&chunk[..chunk.len().min(length + 1 - bytes.len())]);
    }
    match bytes.len() == length {
        true => Ok(bytes),
        false => Err(FlightError::Integrity("a range is not as long as asked for".to_owned())),
    }
}

fn is_rangeless(error: &FlightError) -> bool {
    matches!(error, FlightError::Upstream(error)
        if matches!(**error, UpstreamError::RangeNotHonoured { .. }))
}

/// To the grid, inside the blob.
fn widened(part: &Range<u64>, size: u64) -> Range<u64> {
    let start = part.start - part.start % GRID;
    start..part.end.next_multiple_of(GRID).min(size)
}

/// Whether a part is short, which the grid may have made longer.
fn is_short(wide: &Range<u64>) -> bool {
    wide.end - wide.start <= LONGEST + 2 * GRID
}

fn allowance(size: u64) -> u64 {
    (size / SHARE).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_on_a_grid_and_inside_the_blob() {
        let size = 10 * GRID + 5;
        for (part, wide) in [
            (1..2, 0..GRID),
            (GRID..GRID + 1, GRID..2 * GRID),
            (GRID - 1..GRID + 1, 0..2 * GRID),
            (size - 1..size, 10 * GRID..size),
        ] {
            assert_eq!(widened(&part, size), wide, "{part:?}");
            assert_eq!(widened(&wide, size), wide, "once is enough");
        }
    }

    #[test]
    fn a_short_part_is_short_wherever_it_begins_and_a_longer_one_nowhere() {
        for (part, short) in [
            (0..LONGEST, true),
            (GRID + 1..GRID + 1 + LONGEST, true),
            (GRID - 1..GRID - 1 + LONGEST, true),
            (GRID..3 * GRID + 1 + LONGEST, false),
        ] {
            assert_eq!(is_short(&widened(&part, u64::MAX / 2)), short, "{part:?}");
        }
    }

    #[test]
    fn a_blob_costs_a_share_of_itself_more() {
        let mib = 1024 * 1024;
        for (size, allowed) in
            [(0, LEAST), (mib, LEAST), (64 * mib, 2 * mib), (2_000_000 * mib, MOST)]
        {
            assert_eq!(allowance(size), allowed, "{size}");
        }
    }
}
