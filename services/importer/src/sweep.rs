//! Brings lost work back: what the miss log still holds after a while is put on the queue again.
//! The queue refuses what is there already, so sweeping is harmless and every importer does it.

use crate::worker::Worker;
use futures::TryStreamExt;
use hydrant_bus::{BusError, Published};
use hydrant_store::{MissRecord, StoreError};
use std::{collections::BTreeSet, pin::pin, time::Duration};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// How often, and how old a miss must be. Together well below the 15 minutes within which a miss
/// is hydrated or dead-lettered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub every: Duration,
    pub older_than: Duration,
}

#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error("read the miss log: {0}")]
    Store(#[from] StoreError),
    #[error("publish a job: {0}")]
    Bus(#[from] BusError),
}

/// An unfinished write as old as this belongs to a process that died: nothing takes so long.
const DEAD_WRITE: Duration = Duration::from_secs(6 * 60 * 60);

/// Sweeps at every return of the bus and from time to time, until `stop`.
pub(crate) async fn sweep_regularly(worker: Worker, times: Times, stop: CancellationToken) {
    let mut connected = worker.bus.connected();
    let work = async {
        // An error means that the bus is gone for good, with the process.
        while connected.wait_for(|connected| *connected).await.is_ok() {
            match sweep(&worker, times.older_than).await {
                Ok(0) => {}
                Ok(queued) => tracing::info!(queued, "misses put on the queue again"),
                Err(error) => tracing::warn!(%error, "sweep of the miss log not finished"),
            }
            tidy(&worker).await;
            // Not all importers at the same moment.
            let pause = times.every.mul_f64(0.8 + 0.4 * jitter());
            tokio::select! {
                () = sleep(pause) => {}
                _ = connected.wait_for(|connected| !*connected) => {}
            }
        }
    };
    stop.run_until_cancelled(work).await;
}

/// Removes what killed processes left in storage, and shows how deep the queue is. What fails is
/// done by the next sweep.
async fn tidy(worker: &Worker) {
    match worker.store.sweep_leftovers(DEAD_WRITE).await {
        Ok(0) => {}
        Ok(removed) => tracing::info!(removed, "unfinished writes of dead processes removed"),
        Err(error) => tracing::warn!(%error, "storage not tidied"),
    }
    if let Err(error) = worker.bus.take_stock().await {
        tracing::debug!(%error, "the queue was not looked at");
    }
}

/// Publishes the job of every miss that is old enough; returns how many were queued by it.
async fn sweep(worker: &Worker, older_than: Duration) -> Result<usize, SweepError> {
    let mut misses = pin!(worker.store.all_misses(older_than));
    let (mut seen, mut queued) = (BTreeSet::new(), 0);
    while let Some(miss) = misses.try_next().await? {
        if !seen.insert(miss.request.id()) {
            continue;
        }
        queued += usize::from(requeue(worker, miss).await?);
    }
    Ok(queued)
}

/// In its own lane: in another, the queue would not see that it is there already.
async fn requeue(worker: &Worker, miss: MissRecord) -> Result<bool, SweepError> {
    Ok(worker.bus.publish_job(&miss.request).await? == Published::Queued)
}

fn jitter() -> f64 {
    rand::random()
}
