//! Quotas: what an upstream told one process of its rate limit, all know.
//!
//! The newest word is right, so it is written over what was there; it is gone when the upstream's
//! budget is whole again.

use crate::announce;
use futures::StreamExt;
use hydrant_bus::{Bus, SharedState};
use hydrant_proto::{QuotaReport, codec, subject::StateKey};
use hydrant_upstream::Guard;
use std::{pin::pin, time::Duration};
use tokio::time::{sleep, timeout};

/// Least time between two words of one process.
const APART: Duration = Duration::from_millis(200);
const LIMIT: Duration = Duration::from_secs(2);
/// Shortest and longest life of a word.
const LIFETIME: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));

fn key(guard: &Guard) -> StateKey {
    StateKey::Quota(guard.scope().to_owned())
}

/// Tells what the upstream told this process.
pub async fn tell(bus: &Bus, state: &SharedState, guard: &Guard) {
    let (key, mut news) = (key(guard), guard.quota_news());
    while news.changed().await.is_ok() {
        if let Some(report) = guard.quota_report() {
            let life = Duration::from_millis(report.reset).clamp(LIFETIME.0, LIFETIME.1);
            let value = codec::encode(&report).into();
            let written = timeout(LIMIT, state.put_over(&key, value, life)).await;
            if !matches!(written, Ok(Ok(()))) {
                tracing::debug!(upstream = guard.upstream(), ?written, "quota not told");
            }
            if guard.quota_standing().is_some_and(|quota| quota.remaining <= quota.reserve) {
                announce::quota_low(bus, guard.upstream(), report.remaining).await;
            }
        }
        sleep(APART).await;
    }
}

/// Hears what the upstream told others.
pub async fn hear(state: &SharedState, guard: &Guard) {
    let Ok(words) = state.watch(&key(guard)) else { return };
    let mut words = pin!(words);
    while let Some(word) = words.next().await {
        let Some(entry) = word.filter(|entry| entry.owner != state.owner()) else { continue };
        if let Ok(report) = codec::decode::<QuotaReport>(&entry.value) {
            guard.hear_quota(&report);
        }
    }
}
