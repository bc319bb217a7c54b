//! Misses, written down off the path of the answer: the manifest staged, the miss recorded, the job
//! published, in this order. Nothing here is waited for by a client, everything is bounded, and
//! what is dropped is counted: the next pull makes it again, and what was recorded is swept up by
//! the importers.

use crate::{
    board::{Board, Publishing},
    held::Held,
};
use hydrant_boot::retry::Schedule;
use hydrant_bus::Bus;
use hydrant_proto::{HydrationRequested, subject};
use hydrant_store::{MissRecord, Store, StoreError, Wanted};
use hydrant_telemetry::{metrics, metrics::MissOutcome, propagation};
use jiff::Timestamp;
use moka::sync::Cache;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// Misses that wait to be recorded.
const QUEUE: usize = 4_096;
/// KiB of manifests that wait with them; beyond, the importer fetches the manifest itself.
const STAGED_KIB: u32 = 64 * 1024;
/// Misses recorded or published at a time.
const AT_ONCE: usize = 128;
/// How long the same miss is not written down again.
const RECENT: Duration = Duration::from_secs(60);
/// How often storage is asked whether the manifest of such a miss is still there. It is gone when
/// it was found damaged.
const LOOKED: Duration = Duration::from_secs(5);
/// How long the job of an index waits for the client to say which platform it wants.
const CHILD_GRACE: Duration = Duration::from_secs(10);
/// Tries to record a miss before it is published without a record.
const RECORD_TRIES: u32 = 12;
/// For storage and bus alike: quick at first, then patient.
const SCHEDULE: Schedule = Schedule {
    initial: Duration::from_millis(200),
    max: Duration::from_secs(30),
    multiplier: 2.0,
    jitter: 0.3,
};

/// Somebody missed something.
pub struct Miss {
    pub request: HydrationRequested,
    pub wanted: Wanted,
    /// The manifest that was relayed, for the importer to find.
    pub held: Option<Arc<Held>>,
    /// Where the repository's content comes from; noted before anything is linked in it.
    pub origin: Arc<str>,
    pub publish: Publish,
}

/// When the job is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publish {
    Now,
    /// When the client asks for a child, which is a miss of its own, or after [`CHILD_GRACE`].
    AfterGrace,
}

/// Where misses are handed in.
pub struct Misses {
    sender: mpsc::Sender<Queued>,
    recent: Cache<String, ()>,
    looked: Cache<String, ()>,
    room: Arc<Semaphore>,
}

struct Queued {
    miss: Miss,
    /// Continues the trace of the pull in the job.
    trace: Vec<(String, String)>,
    /// It was written down a moment ago, and counts only if its manifest is gone since.
    again: bool,
    _room: Option<OwnedSemaphorePermit>,
}

/// The task behind [`Misses`].
pub struct Recorder {
    receiver: mpsc::Receiver<Queued>,
    store: Store,
    bus: Bus,
}

/// The queue and its worker.
pub fn misses(store: Store, bus: Bus) -> (Misses, Recorder) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let recent = Cache::builder().max_capacity(100_000).time_to_live(RECENT).build();
    let looked = Cache::builder().max_capacity(100_000).time_to_live(LOOKED).build();
    let room = Arc::new(Semaphore::new(STAGED_KIB as usize));
    (Misses { sender, recent, looked, room }, Recorder { receiver, store, bus })
}

impl Misses {
    /// Hands in a miss; never waits. One that was handed in a moment ago is let go, unless its
    /// manifest has got lost.
    pub fn push(&self, mut miss: Miss) {
        let key = identity(&miss);
        let again = self.recent.contains_key(&key);
        if again && (self.looked.contains_key(&key) || miss.held.is_none()) {
            return;
        }
        let kib = miss.held.as_ref().map_or(0, |held| held.weight() / 1024 + 1);
        let room = self.room.clone().try_acquire_many_owned(kib).ok();
        if room.is_none() {
            miss.held = None;
        }
        let queued = Queued { miss, trace: propagation::inject_current(), again, _room: room };
        match self.sender.try_send(queued) {
            Ok(()) if again => self.looked.insert(key, ()),
            Ok(()) => {
                self.looked.insert(key.clone(), ());
                self.recent.insert(key, ());
            }
            Err(_) => metrics().misses.handled(MissOutcome::Dropped),
        }
    }
}

fn identity(Miss { request, wanted, held, .. }: &Miss) -> String {
    let digest = held.as_ref().map(|held| held.digest.to_string()).unwrap_or_default();
    format!("{} {wanted:?} {digest}", request.id())
}

/// What one of the worker's tasks ended with.
enum Step {
    Recorded(Publishing, Publish),
    Published,
    /// There was nothing to do.
    Superfluous,
    /// The bus did not take it.
    Unpublished(Publishing),
}

impl Recorder {
    /// Works until `closing`, then finishes what it has, giving up what the bus does not take: it
    /// is in the miss log. The caller sets the deadline.
    pub async fn run(mut self, closing: CancellationToken) {
        let mut tasks: JoinSet<Step> = JoinSet::new();
        let mut board = Board::default();
        let mut connected = self.bus.connected();
        loop {
            while tasks.len() < AT_ONCE
                && let Some(publishing) = board.take_due()
            {
                tasks.spawn(publish(self.bus.clone(), publishing));
            }
            metrics().misses.waiting(self.receiver.len() + board.len() + tasks.len());
            if self.receiver.is_closed() && self.receiver.is_empty() && tasks.is_empty() {
                return;
            }
            tokio::select! {
                Some(queued) = self.receiver.recv(), if tasks.len() < AT_ONCE => {
                    tasks.spawn(record(self.store.clone(), queued, closing.clone()));
                }
                Some(step) = tasks.join_next() => {
                    settle(&mut board, step, &closing);
                }
                () = board.due(), if tasks.len() < AT_ONCE => {}
                Ok(()) = connected.changed() => {
                    if *connected.borrow_and_update() {
                        board.hurry();
                    }
                }
                () = closing.cancelled(), if !self.receiver.is_closed() => {
                    self.receiver.close();
                    board.hurry();
                }
            }
        }
    }
}

fn settle(
    board: &mut Board,
    step: Result<Step, tokio::task::JoinError>,
    closing: &CancellationToken,
) {
    let closing = closing.is_cancelled();
    match step.expect("recording and publishing do not panic") {
        Step::Recorded(publishing, Publish::AfterGrace) if !closing => {
            board.wait(publishing, CHILD_GRACE);
        }
        Step::Recorded(publishing, _) => board.wait(publishing, Duration::ZERO),
        Step::Published | Step::Superfluous => {}
        Step::Unpublished(publishing) if closing => {
            tracing::info!(job.id = %publishing.request.id(), "job left to the sweep");
        }
        Step::Unpublished(publishing) => {
            let pause = SCHEDULE.delay(publishing.attempts);
            board.again(publishing, pause);
        }
    }
}

/// Stages the manifest and records the miss, again and again while storage is away.
async fn record(store: Store, queued: Queued, closing: CancellationToken) -> Step {
    let Queued { miss, trace, again, _room } = queued;
    let (held, origin) = (miss.held.as_deref(), miss.origin);
    if again && !is_lost(&store, held).await {
        return Step::Superfluous;
    }
    let record = MissRecord {
        digest: held.map(|held| held.digest.clone()),
        ..MissRecord::new(miss.request, miss.wanted, Timestamp::now())
    };
    for attempt in 1..=RECORD_TRIES {
        let Err(error) = record_once(&store, &record, &origin, held).await else { break };
        let last = attempt == RECORD_TRIES || closing.is_cancelled();
        tracing::warn!(%error, attempt, last, job.id = %record.request.id(), "miss not recorded");
        if last {
            metrics().misses.handled(MissOutcome::Unrecorded);
            break;
        }
        closing.run_until_cancelled(tokio::time::sleep(SCHEDULE.delay(attempt))).await;
    }
    Step::Recorded(Publishing::new(record.request, trace), miss.publish)
}

/// Whether storage says for certain that it does not have the manifest.
async fn is_lost(store: &Store, held: Option<&Held>) -> bool {
    let Some(held) = held else { return false };
    matches!(store.blob_size(&held.digest).await, Ok(None))
}

async fn record_once(
    store: &Store,
    record: &MissRecord,
    origin: &str,
    held: Option<&Held>,
) -> Result<(), StoreError> {
    let staged = async {
        match held {
            Some(held) => store.stage_manifest(&held.digest, held.bytes.clone()).await,
            None => Ok(()),
        }
    };
    tokio::try_join!(staged, store.claim_origin(&record.request.repository, origin))?;
    store.record_miss(record).await
}

async fn publish(bus: Bus, mut publishing: Publishing) -> Step {
    let request = &publishing.request;
    let span = tracing::info_span!("publish job", otel.name = "publish HYDRANT_JOBS",
        otel.kind = "producer", messaging.system = "nats", messaging.operation.name = "publish",
        messaging.operation.type = "send",
        messaging.destination.name = subject::JOBS_STREAM, job.id = %request.id(),
        image.repository = %request.repository, upstream = %request.upstream);
    propagation::set_parent(&span, |name| publishing.header(name));
    match bus.publish_job(request).instrument(span).await {
        Ok(_) => {
            metrics().misses.handled(MissOutcome::Queued);
            Step::Published
        }
        Err(error) => {
            publishing.attempts += 1;
            if publishing.attempts == 1 {
                tracing::info!(%error, job.id = %publishing.request.id(), "job not queued yet");
            }
            Step::Unpublished(publishing)
        }
    }
}
