//! How far a job is, for progress bars: kept here, told to the bus at most twice a second. A job that
//! is done before the first report is due tells only that.

use crate::closure::Closure;
use hydrant_bus::JobStates;
use hydrant_proto::{
    Descriptor, Digest, HydrationRequested,
    state::{BlobProgress, JobPhase, JobState, MAX_LISTED_BLOBS},
};
use jiff::Timestamp;
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

const PERIOD: Duration = Duration::from_millis(500);

/// The progress of one attempt.
#[derive(Debug)]
pub(crate) struct Progress {
    states: JobStates,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: JobState,
    blobs: BTreeMap<Digest, BlobProgress>,
    changed: bool,
}

impl Progress {
    /// The beginning of attempt number `attempt`.
    pub fn new(states: JobStates, request: &HydrationRequested, attempts: u32) -> Self {
        let queued = JobState::queued(request.clone(), Timestamp::now());
        let state = JobState { phase: JobPhase::Running, attempts, ..queued };
        Self { states, inner: Mutex::new(Inner { state, blobs: BTreeMap::new(), changed: true }) }
    }

    /// The blobs and bytes there are to settle.
    pub fn closure(&self, closure: &Closure) {
        let mut inner = self.lock();
        inner.state.digest = Some(closure.root().digest.clone());
        let blobs = closure.blobs.iter().map(|blob| {
            let (digest, size) = (blob.digest.clone(), blob.size);
            (digest.clone(), BlobProgress { digest, size, done: 0 })
        });
        inner.blobs = blobs.collect();
        inner.changed = true;
    }

    /// `done` bytes of a blob are here.
    pub fn blob(&self, blob: &Descriptor, done: u64) {
        let mut inner = self.lock();
        if let Some(progress) = inner.blobs.get_mut(&blob.digest) {
            progress.done = done.min(blob.size);
            inner.changed = true;
        }
    }

    pub fn blob_done(&self, blob: &Descriptor) {
        self.blob(blob, blob.size);
    }

    /// Tells the bus of changes for ever; to be raced against the work.
    pub async fn tell_regularly(&self) {
        let mut ticks = interval_at(Instant::now() + PERIOD, PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.lock().changed {
                self.tell().await;
            }
        }
    }

    /// The state as it is now.
    pub fn state(&self) -> JobState {
        let mut inner = self.lock();
        inner.changed = false;
        let mut state = inner.state.clone();
        let blobs = inner.blobs.values();
        state.blobs_total = inner.blobs.len() as u64;
        state.blobs_done = blobs.clone().filter(|blob| blob.done == blob.size).count() as u64;
        state.bytes_total = blobs.clone().map(|blob| blob.size).sum();
        state.bytes_done = blobs.clone().map(|blob| blob.done).sum();
        let (done, open): (Vec<_>, Vec<_>) =
            blobs.cloned().partition(|blob| blob.done == blob.size);
        state.blobs = open.into_iter().chain(done).take(MAX_LISTED_BLOBS).collect();
        state.updated_at = Timestamp::now();
        state
    }

    /// A lost progress report is no loss.
    async fn tell(&self) {
        let state = self.state();
        if let Err(error) = self.states.tell(&state).await {
            tracing::debug!(job.id = %state.job.id(), %error, "progress not told");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
