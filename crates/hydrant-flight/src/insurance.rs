//! Followers insure a flight: what the first of them has need not be fetched again when the leader
//! dies. So a leader stays close to it, within limits: a bad link costs the flight some speed, and
//! never more than that. So does storage, where its parts can be gone on with (`record.rs`): a flight
//! that no client waits for stays close to what is stored, and is none the later stored for that.

use crate::{error::FlightError, flight::Flight, load::Body};
use bytes::Bytes;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use hydrant_store::PART_BYTES;
use hydrant_upstream::Priority;
use std::{collections::BTreeMap, time::Duration};
use tokio::{sync::watch, time::timeout};

/// How far a leader runs ahead of the first of its followers, in bytes. With what sockets and
/// batches hold it stays below a part of 16 MiB.
pub(crate) const AHEAD: u64 = 4 * 1024 * 1024;
/// The same before storage, which has nothing of a part before it has all.
const AHEAD_OF_STORAGE: u64 = PART_BYTES as u64 + 3 * 1024 * 1024;
/// Longest wait for storage in each [`AHEAD`] bytes: it may be away.
const STORING: Duration = Duration::from_secs(10);
/// Longest wait for followers in each [`AHEAD`] bytes: the worst of links leaves 32 MiB/s.
const PATIENCE: Duration = Duration::from_millis(125);

/// How far the followers of a flight are.
#[derive(Debug, Default)]
pub(crate) struct Followers(watch::Sender<Positions>);

#[derive(Debug, Default)]
struct Positions {
    next: u64,
    /// Up to which byte of the blob each was given it.
    of: BTreeMap<u64, u64>,
    /// Up to which byte it is stored, for who comes after.
    stored: Option<u64>,
}

impl Followers {
    /// Waits while the first of them is too far behind `at`, and says whether it came along in
    /// time.
    async fn come_along(&self, at: u64) -> bool {
        let near = |positions: &Positions| is_near(positions.of.values().max().copied(), at);
        timeout(PATIENCE, self.0.subscribe().wait_for(near)).await.is_ok()
    }

    fn is_followed(&self) -> bool {
        !self.0.borrow().of.is_empty()
    }

    /// The same for what is stored.
    async fn is_stored(&self, at: u64) -> bool {
        let near = |positions: &Positions| {
            positions.stored.is_none_or(|stored| stored + AHEAD_OF_STORAGE >= at)
                || !positions.of.is_empty()
        };
        timeout(STORING, self.0.subscribe().wait_for(near)).await.is_ok()
    }
}

/// Whether a leader may go on from `at`, when the first of its followers, if any, has the bytes before
/// `first`.
pub(crate) fn is_near(first: Option<u64>, at: u64) -> bool {
    first.is_none_or(|first| first + AHEAD >= at)
}

/// Storage following a flight, until it is dropped.
pub(crate) struct Stored(Flight);

impl Stored {
    pub fn new(flight: &Flight) -> Self {
        Self(flight.clone())
    }

    pub fn upto(&self, at: u64) {
        self.0.0.followers.0.send_modify(|positions| positions.stored = Some(at));
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        self.0.0.followers.0.send_modify(|positions| positions.stored = None);
    }
}

/// One follower reading, until it is dropped.
pub(crate) struct Follower {
    flight: Flight,
    id: u64,
}

impl Follower {
    /// One that has the bytes before `at`.
    pub fn new(flight: &Flight, at: u64) -> Self {
        let mut id = 0;
        flight.0.followers.0.send_modify(|positions| {
            id = positions.next;
            positions.next += 1;
            positions.of.insert(id, at);
        });
        Self { flight: flight.clone(), id }
    }

    pub fn given(&self, bytes: usize) {
        self.flight.0.followers.0.send_modify(|positions| {
            if let Some(at) = positions.of.get_mut(&self.id) {
                *at += bytes as u64;
            }
        });
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.flight.0.followers.0.send_modify(|positions| {
            positions.of.remove(&self.id);
        });
    }
}

/// `body`, taken no faster than the first follower comes along.
pub(crate) fn insured(flight: &Flight, body: Body) -> Body {
    let Body { offset, stream } = body;
    let paced = Paced { flight: flight.clone(), chunks: stream, at: offset, alone_until: 0 };
    let stream = stream::unfold(paced, |mut paced| async move {
        let chunk = paced.next().await?;
        Some((chunk, paced))
    });
    Body { offset, stream: stream.boxed() }
}

struct Paced {
    flight: Flight,
    chunks: BoxStream<'static, Result<Bytes, FlightError>>,
    at: u64,
    /// Up to where nobody is waited for, after a wait in vain.
    alone_until: u64,
}

impl Paced {
    async fn next(&mut self) -> Option<Result<Bytes, FlightError>> {
        if self.at >= self.alone_until && !is_insured(&self.flight, self.at).await {
            self.alone_until = self.at + AHEAD;
        }
        let chunk = self.chunks.next().await?;
        self.at += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        Some(chunk)
    }
}

/// Waits until what came before `at` is safe with another, and says whether that came in time.
async fn is_insured(flight: &Flight, at: u64) -> bool {
    let (followers, urgency) = (&flight.0.followers, flight.urgency());
    if followers.is_followed() || urgency.now() == Priority::Interactive {
        return followers.come_along(at).await;
    }
    tokio::select! {
        is_stored = followers.is_stored(at) => is_stored,
        // A client came.
        () = urgency.raised() => true,
    }
}
