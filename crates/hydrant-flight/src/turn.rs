//! Whose turn it is: of all processes that need a blob one leads its flight, by a lease on the bus.
//!
//! A lease only saves work. Whoever cannot ask for one, because the bus is away or slow, flies
//! alone, and nothing but a second read comes of it.

use crate::flight::Flight;
use hydrant_bus::{BusError, Claimed, Entry, Held, Revision, SharedState};
use hydrant_proto::{Digest, FlightRecord, codec, subject::StateKey};
use std::{
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};

/// How long a leader that was killed keeps the flight from others.
pub(crate) const LEASE: Duration = Duration::from_secs(5);
/// How long it stays known that a blob was stored. Whoever looked into storage before, and did not
/// find it, asks for a turn sooner than that.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Longest wait for the bus to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same, while it is known to be slow.
const WARY: Duration = Duration::from_millis(20);
/// How long a bus that did not answer is taken to be slow.
const DOUBT: Duration = Duration::from_secs(5);
/// Looks at a lease that changes under our hands, before flying alone.
const LOOKS: u32 = 4;
/// Pause of a leader without a lease before it asks for one again.
const AGAIN: Duration = Duration::from_secs(1);

/// What the process is to do next about a flight.
#[derive(Debug)]
pub(crate) enum Turn {
    /// Fetch and store.
    Lead(Tenure),
    /// Read along with the process that leads.
    Follow(Leader),
    /// Look into storage: it was stored a moment ago.
    Look(Leader),
}

/// What a leader hears of its lease.
pub(crate) enum News {
    /// It has it, after a time without.
    Seated,
    /// Another process leads, or has finished.
    Deposed(Turn),
}

/// The process that leads a flight, or has led it to its end.
#[derive(Clone, Debug)]
pub(crate) struct Leader {
    pub record: FlightRecord,
    owner: String,
    revision: Revision,
}

impl Leader {
    /// Whether it is the same flight of the same process.
    pub fn is(&self, other: &Self) -> bool {
        self.owner == other.owner && self.record.key == other.record.key
    }
}

/// How this process takes part in its cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Where leases are.
    pub state: SharedState,
    /// Where other processes reach this one.
    pub address: SocketAddr,
}

/// Gives turns.
#[derive(Debug)]
pub(crate) struct Turns {
    /// `None`: this process is alone.
    cluster: Option<Cluster>,
    /// When the bus last failed to answer in time.
    doubted: Mutex<Option<Instant>>,
}

impl Turns {
    pub fn new(cluster: Option<Cluster>) -> Self {
        Self { cluster, doubted: Mutex::default() }
    }

    /// Asks for the lead.
    pub async fn take(&self, flight: &Flight, upstream: &str) -> Turn {
        let Some(cluster) = &self.cluster else { return Turn::Lead(Tenure::Sole) };
        let seat = Seat::new(cluster, flight, upstream);
        for _ in 0..LOOKS {
            match self.in_time(seat.claim()).await {
                Some(Ok(Claimed::Mine(held))) => return Turn::Lead(Tenure::of(seat, Some(held))),
                Some(Ok(Claimed::Taken(entry))) => {
                    if let Some(turn) = self.behind(&seat, entry).await {
                        return turn;
                    }
                }
                Some(Err(_)) | None => break,
            }
        }
        Turn::Lead(Tenure::of(seat, None))
    }

    /// The turn of who was not the first; `None` when that has changed meanwhile.
    async fn behind(&self, seat: &Seat, entry: Entry) -> Option<Turn> {
        let Some(leader) = leader(entry) else { return Some(Turn::Lead(Tenure::Apart)) };
        match leader.record.stored {
            Some(_) => Some(Turn::Look(leader)),
            // What a former flight of this process left, or a claim whose answer came late.
            None if leader.owner == seat.cluster.state.owner() => {
                self.replace(seat, leader.revision).await
            }
            None => Some(Turn::Follow(leader)),
        }
    }

    /// Asks for the lead of a flight that `past` ended, but of which nothing is stored.
    pub async fn after(&self, past: &Leader, flight: &Flight, upstream: &str) -> Turn {
        let Some(cluster) = &self.cluster else { return Turn::Lead(Tenure::Sole) };
        let seat = Seat::new(cluster, flight, upstream);
        match self.replace(&seat, past.revision).await {
            Some(turn) => turn,
            None => self.take(flight, upstream).await,
        }
    }

    /// Who leads the flight of `digest`, if anybody is known to; it may be over by now.
    pub async fn leader(&self, digest: &Digest) -> Option<Leader> {
        let state = self.state()?;
        let key = StateKey::Flight(digest.clone());
        let entry = self.in_time(state.get(&key)).await?.ok()??;
        leader(entry).filter(|leader| leader.owner != state.owner())
    }

    /// Where other processes reach this one.
    pub fn address(&self) -> Option<SocketAddr> {
        self.cluster.as_ref().map(|cluster| cluster.address)
    }

    /// Where other values are shared than who leads.
    pub fn state(&self) -> Option<&SharedState> {
        self.cluster.as_ref().map(|cluster| &cluster.state)
    }

    /// `None` when somebody else was quicker.
    async fn replace(&self, seat: &Seat, former: Revision) -> Option<Turn> {
        match self.in_time(seat.claim_over(former)).await {
            Some(Ok(held)) => Some(Turn::Lead(Tenure::of(seat.clone(), Some(held)))),
            Some(Err(BusError::Conflict { .. })) => None,
            Some(Err(_)) | None => Some(Turn::Lead(Tenure::of(seat.clone(), None))),
        }
    }

    /// A bus that hangs costs one pull two seconds, and those after it next to nothing.
    pub async fn in_time<T>(&self, asked: impl Future<Output = T>) -> Option<T> {
        let doubted = *self.doubted.lock().unwrap_or_else(PoisonError::into_inner);
        let doubtful = doubted.is_some_and(|since| since.elapsed() < DOUBT);
        let answer = timeout(if doubtful { WARY } else { PATIENCE }, asked).await.ok();
        let doubt = match &answer {
            Some(_) => None,
            None if doubtful => doubted,
            None => Some(Instant::now()),
        };
        *self.doubted.lock().unwrap_or_else(PoisonError::into_inner) = doubt;
        answer
    }
}

/// A record of another version is not understood, and its writer not followed.
fn leader(entry: Entry) -> Option<Leader> {
    let record = codec::decode::<FlightRecord>(&entry.value)
        .inspect_err(|error| tracing::warn!(%error, owner = entry.owner, "flight record not read"))
        .ok()?;
    Some(Leader { record, owner: entry.owner, revision: entry.revision })
}

/// What a claim is made of.
#[derive(Clone, Debug)]
struct Seat {
    cluster: Cluster,
    flight: Flight,
    upstream: String,
}

impl Seat {
    fn new(cluster: &Cluster, flight: &Flight, upstream: &str) -> Self {
        let (cluster, flight) = (cluster.clone(), flight.clone());
        Self { cluster, flight, upstream: upstream.to_owned() }
    }

    async fn claim(&self) -> Result<Claimed<Held>, BusError> {
        self.cluster.state.hold(&self.key(), self.record(None), LEASE).await
    }

    async fn claim_over(&self, former: Revision) -> Result<Held, BusError> {
        self.cluster.state.hold_over(&self.key(), self.record(None), former, LEASE).await
    }

    /// The turn of a leader when the key is another process's.
    fn other(&self, entry: Entry) -> Option<Turn> {
        let leader = leader(entry)?;
        match leader.record.stored {
            Some(_) => Some(Turn::Look(leader)),
            None if leader.owner == self.cluster.state.owner() => None,
            None => Some(Turn::Follow(leader)),
        }
    }

    fn key(&self) -> StateKey {
        StateKey::Flight(self.flight.digest().clone())
    }

    fn record(&self, stored: Option<u64>) -> bytes::Bytes {
        let record = FlightRecord {
            peer: self.cluster.address.to_string(),
            key: self.flight.key().to_owned(),
            upstream: self.upstream.clone(),
            grants: self.flight.granted(),
            stored,
        };
        codec::encode(&record).into()
    }
}

/// The time in which this process leads a flight.
#[derive(Debug)]
pub(crate) enum Tenure {
    /// There is no other process.
    Sole,
    /// For itself, without asking anybody: who leads cannot be reached.
    Apart,
    /// By a lease, or until one is to be had.
    Seated(Standing),
}

#[derive(Debug)]
pub(crate) struct Standing {
    seat: Seat,
    held: Option<Held>,
}

impl Tenure {
    fn of(seat: Seat, held: Option<Held>) -> Self {
        Self::Seated(Standing { seat, held })
    }

    /// Whether it is for the whole cluster.
    pub fn is_held(&self) -> bool {
        match self {
            Self::Sole => true,
            Self::Apart => false,
            Self::Seated(standing) => standing.held.is_some(),
        }
    }

    /// Whether the one before died, or was cut off, in the middle of it.
    pub fn is_a_dead_ones(&self) -> bool {
        match self {
            Self::Sole | Self::Apart => false,
            Self::Seated(standing) => standing.held.as_ref().is_some_and(Held::is_after_expiry),
        }
    }

    /// Keeps the lease, tells of new grants, and asks for it again where it was lost. Returns when
    /// that changes something.
    pub async fn news(&mut self) -> News {
        let Self::Seated(standing) = self else { return std::future::pending().await };
        loop {
            standing.keep().await;
            standing.held = None;
            match standing.seat.claim().await {
                Ok(Claimed::Mine(held)) => {
                    standing.held = Some(held);
                    return News::Seated;
                }
                Ok(Claimed::Taken(entry)) => match standing.seat.other(entry) {
                    Some(turn) => return News::Deposed(turn),
                    None => sleep(AGAIN).await,
                },
                Err(_) => sleep(AGAIN).await,
            }
        }
    }

    /// Gives up the lead of a blob that is stored now.
    pub async fn stored(self, size: u64) {
        let Self::Seated(Standing { seat, held: Some(held) }) = self else { return };
        // If it fails, the lease expires.
        let _ = held.bequeath(seat.record(Some(size)), REMEMBERED).await;
    }
}

impl Standing {
    /// Ends when the lease is lost.
    async fn keep(&self) {
        let Some(held) = &self.held else { return };
        loop {
            tokio::select! {
                _ = held.lost() => return,
                () = self.seat.flight.granted_more() => {
                    // What is refused as too long is not told; those repositories ask upstream.
                    let _ = held.set(self.seat.record(None));
                }
            }
        }
    }
}
