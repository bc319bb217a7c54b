//! Probe slots: of all processes one at a time asks an upstream whose breaker is not closed.
//!
//! The slot is a key that is created, which the bus lets one process do. It expires by itself, so a
//! killed prober is in nobody's way for long.

use hydrant_bus::{BusError, Claimed, Revision, SharedState};
use hydrant_proto::subject::StateKey;
use hydrant_upstream::{BreakerState, Granted, Guard, PROBE_PAUSE};
use std::time::Duration;
use tokio::time::{error::Elapsed, sleep, timeout};

/// How long a slot is kept for a process that does not give it back: the time to use it, and the
/// probe's own deadline, with something to spare.
const LIFETIME: Duration = Duration::from_secs(15);
/// How long a process that has the slot may wait for a call to use it.
const UNUSED: Duration = Duration::from_secs(1);
/// First and longest pause after a slot that nobody used.
const IDLE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(32));
/// Longest wait for the bus to say who has the slot. After it the process goes alone, as it does
/// without a bus.
const LIMIT: Duration = Duration::from_secs(1);
/// How long the slot is kept after a probe failed, so that nobody takes it who has not heard.
const AFTERMATH: Duration = Duration::from_secs(1);

/// Takes the slot whenever this process would probe, and gives it back.
pub async fn take_turns(state: &SharedState, guard: &Guard) {
    let key = StateKey::Probe(guard.scope().to_owned());
    let mut idle = IDLE.0;
    loop {
        guard.leave_wanted().await;
        let value = state.owner().to_owned().into();
        let slot = timeout(LIMIT, state.create(&key, value, LIFETIME)).await;
        let slot = match slot {
            Ok(Ok(Claimed::Taken(_))) => {
                guard.wait_longer(PROBE_PAUSE);
                continue;
            }
            Ok(Ok(Claimed::Mine(revision))) => Some(revision),
            failed => {
                alone(guard, failed);
                None
            }
        };
        if guard.grant() == Granted::Taken {
            idle = match used(guard, idle).await {
                Use::Probe => IDLE.0,
                Use::None => (2 * idle).min(IDLE.1),
            };
        }
        give_back(state, &key, slot).await;
    }
}

fn alone(guard: &Guard, failed: Result<Result<Claimed<Revision>, BusError>, Elapsed>) {
    tracing::debug!(upstream = guard.upstream(), ?failed, "probes without asking the others");
}

enum Use {
    Probe,
    None,
}

/// Waits until the leave is used up.
async fn used(guard: &Guard, idle: Duration) -> Use {
    loop {
        match timeout(UNUSED, guard.probed()).await {
            Ok(BreakerState::Closed | BreakerState::HalfOpen) => return Use::Probe,
            Ok(BreakerState::Open { .. }) => {
                sleep(AFTERMATH).await;
                return Use::Probe;
            }
            Err(_) => guard.return_unused(idle),
        }
        if matches!(guard.breaker().state(), BreakerState::Open { .. }) {
            return Use::None;
        }
    }
}

async fn give_back(state: &SharedState, key: &StateKey, slot: Option<Revision>) {
    if let Some(revision) = slot {
        // If it fails, the slot expires.
        let _ = timeout(LIMIT, state.remove(key, revision)).await;
    }
}
