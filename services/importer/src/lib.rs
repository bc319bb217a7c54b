//! The import worker: a job from the queue made durable in storage.
//!
//! `import.rs` is the recipe of one attempt; `worker.rs` decides what becomes of the job
//! afterwards; `lanes.rs` runs one consume loop per upstream; `sweep.rs` brings lost work back.

mod announce;
mod blobs;
mod closure;
mod error;
mod failpoint;
mod import;
mod lanes;
mod platform;
mod progress;
mod standing;
mod sweep;
mod worker;

use hydrant_boot::{Context, Schedule};
use hydrant_flight::Flights;
use hydrant_upstream::Upstreams;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use worker::Worker;

/// Delays between attempts of a job that failed.
const SCHEDULE: Schedule = Schedule::doubling(Duration::from_secs(2), Duration::from_secs(300));

/// How long a job waits for bytes that do not come.
const PATIENCE: Duration = Duration::from_secs(120);

/// Works on jobs until `shutdown`, then finishes those under way within the drain deadline.
pub async fn run(
    context: Context,
    flights: Flights,
    upstreams: Upstreams,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (drain, work) = (context.settings.drain_deadline.0, context.settings.work.clone());
    let worker = Worker {
        bus: context.bus,
        store: context.store,
        flights,
        upstreams,
        feed: context.feed,
        schedule: SCHEDULE,
        patience: PATIENCE,
    };
    let pace = lanes::Pace { slots: usize::from(work.jobs), drain };
    let times = sweep::Times { every: work.sweep_every.0, older_than: work.sweep_after.0 };
    tokio::join!(
        lanes::run(worker.clone(), pace, shutdown.clone()),
        sweep::sweep_regularly(worker, times, shutdown),
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the time until a lost miss is found, less than the 15 minutes that are promised.
    #[test]
    fn no_pause_between_attempts_is_longer_than_eight_minutes() {
        let longest = SCHEDULE.max.mul_f64(1.0 + SCHEDULE.jitter);
        assert!(longest <= Duration::from_secs(8 * 60), "{longest:?}");
        for attempt in 1..100 {
            assert!(SCHEDULE.delay(attempt) <= longest);
        }
    }
}
