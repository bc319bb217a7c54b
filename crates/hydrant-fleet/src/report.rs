//! Reports: each process writes its own, under a key of its own, and reads those of all others.

use crate::announce::Announcer;
use futures::StreamExt;
use hydrant_bus::{Bus, SharedState, Told};
use hydrant_proto::{UpstreamReport, codec};
use hydrant_upstream::Guard;
use std::{pin::pin, time::Duration};
use tokio::{
    sync::watch,
    time::{interval, sleep, timeout},
};

/// Least time between two reports; what happens meanwhile is in the next.
const APART: Duration = Duration::from_millis(50);
/// Most time between two reports of a process that asks the upstream.
const RENEW: Duration = Duration::from_secs(15);
/// How long a report outlives its process.
const LIFETIME: Duration = Duration::from_secs(45);
/// Longest wait for the bus to take a report. The next one says it all again.
const LIMIT: Duration = Duration::from_secs(2);
/// How long a report outlives a process that ended in order.
const GONE: Duration = Duration::from_secs(1);
const LEAVE_LIMIT: Duration = Duration::from_millis(500);
/// How often sharers are counted anew.
const COUNT: Duration = Duration::from_secs(1);

/// Writes what this process saw, soon after it has something to say.
pub async fn tell(bus: &Bus, state: &SharedState, guard: &Guard) {
    let key = state.own_breaker(guard.scope());
    let (mut news, mut connected) = (guard.news(), bus.connected());
    let mut announcer = Announcer::new(bus.clone(), guard.clone());
    loop {
        news.borrow_and_update();
        if let Some(report) = guard.report() {
            let value = codec::encode(&report).into();
            let written = timeout(LIMIT, state.put_over(&key, value, LIFETIME)).await;
            if !matches!(written, Ok(Ok(()))) {
                tracing::debug!(upstream = guard.upstream(), ?written, "report not told");
            }
            announcer.announce(&report).await;
        }
        sleep(APART).await;
        tokio::select! {
            _ = news.changed() => {}
            () = reconnected(&mut connected) => {}
            () = sleep(RENEW) => {}
        }
    }
}

/// Makes room for those who stay: the report is gone in a moment.
pub async fn leave(state: &SharedState, guard: &Guard) {
    if let Some(report) = guard.report() {
        let (key, value) = (state.own_breaker(guard.scope()), codec::encode(&report).into());
        // If it fails, the report expires later.
        let _ = timeout(LEAVE_LIMIT, state.put_over(&key, value, GONE)).await;
    }
}

/// Ends when the bus has come back.
async fn reconnected(connected: &mut watch::Receiver<bool>) {
    let down = connected.wait_for(|up| !up).await.is_ok();
    if !down || connected.wait_for(|up| *up).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Reads what others saw.
pub async fn hear(bus: &Bus, state: &SharedState, guard: &Guard) {
    let Ok(reports) = state.watch_breakers(guard.scope()) else {
        tracing::error!(upstream = guard.upstream(), "its name cannot be shared");
        return;
    };
    let (mut reports, own) = (pin!(reports), state.process());
    let (connected, mut count) = (bus.connected(), interval(COUNT));
    loop {
        tokio::select! {
            Some(told) = reports.next() => if told.process != own {
                take(guard, told);
                guard.count_sharers();
            },
            _ = count.tick() => if *connected.borrow() {
                guard.count_sharers();
            },
        }
    }
}

/// What cannot be read comes from another version, which counts as a sharer no less.
fn take(guard: &Guard, told: Told) {
    match told.entry {
        None => guard.forget(&told.process),
        Some(entry) => {
            let report: UpstreamReport = codec::decode(&entry.value).unwrap_or_default();
            guard.hear(&told.process, &report);
        }
    }
}
