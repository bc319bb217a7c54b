//! Brings lost work back: what the miss log still holds after a while is put on the queue again.
//! The queue refuses what is there already, so sweeping is harmless and every importer does it.

use crate::worker::Worker;
use futures::TryStreamExt;
use hydrant_boot::Editor;
use hydrant_bus::{BusError, Published};
use hydrant_rules::Table;
use hydrant_store::{MissRecord, StoreError};
use std::{collections::BTreeSet, pin::pin, slice, time::Duration};
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

/// Removes what killed processes left in storage, and on the bus what upstreams left that are gone.
/// What fails is done by the next sweep.
async fn tidy(worker: &Worker) {
    match worker.store.sweep_leftovers(DEAD_WRITE).await {
        Ok(0) => {}
        Ok(removed) => tracing::info!(removed, "unfinished writes of dead processes removed"),
        Err(error) => tracing::warn!(%error, "storage not tidied"),
    }
    if let Some(upstreams) = upstreams(worker).await {
        let names: Vec<_> = upstreams.iter().map(String::as_str).collect();
        if let Err(error) = worker.bus.retain_upstreams(&names).await {
            tracing::debug!(%error, "jobs of upstreams that are gone not removed");
        }
    }
}

/// The upstreams there are, by the shared configuration as it is now and by what is in effect here.
/// `None` when there is none that can be read, as after the bus was wiped, or where a newer version
/// wrote it: then there may be more.
async fn upstreams(worker: &Worker) -> Option<BTreeSet<String>> {
    let editor = Editor::new(worker.bus.resources(), worker.feed.clone());
    let (shared, Some(_)) = editor.read().await.ok()? else { return None };
    let (shared, here) = (Table::compile(shared).ok()?, worker.table());
    let all = shared.resources().upstream.iter().chain(&here.resources().upstream);
    Some(all.map(|upstream| upstream.name.to_string()).collect())
}

/// Publishes the job of every miss that is old enough; returns how many were queued by it. Misses of
/// an upstream that is gone are forgotten: nobody would take their jobs.
async fn sweep(worker: &Worker, older_than: Duration) -> Result<usize, SweepError> {
    let upstreams = upstreams(worker).await;
    let is_gone = |miss: &MissRecord| {
        upstreams.as_ref().is_some_and(|known| !known.contains(&miss.request.upstream))
    };
    let mut misses = pin!(worker.store.all_misses(older_than));
    let (mut seen, mut queued) = (BTreeSet::new(), 0);
    while let Some(miss) = misses.try_next().await? {
        if is_gone(&miss) {
            worker.store.forget_misses(slice::from_ref(&miss)).await?;
            continue;
        }
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
