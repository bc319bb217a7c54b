//! How upstreams stand, for the API: by the guards of this process, or by what others told each
//! other where it asks no upstream itself.

use hydrant_bus::Bus;
use hydrant_control::{BreakerLine, QuotaLine, Standing, Standings};
use hydrant_rules::Upstream;
use hydrant_upstream::{BreakerState, Client, QuotaStanding, Upstreams, scope};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// Longest wait for the bus.
const LIMIT: Duration = Duration::from_secs(2);

/// By the clients of this process, if it asks upstreams, else by the bus.
pub fn standings(upstreams: Option<Upstreams>, bus: Bus) -> Standings {
    Standings::new(move |upstream| {
        let (upstreams, bus) = (upstreams.clone(), bus.clone());
        async move {
            match upstreams {
                Some(upstreams) => here(&upstreams, &upstream),
                None => by_others(&bus, &upstream).await,
            }
        }
    })
}

fn here(upstreams: &Upstreams, upstream: &Upstream) -> Option<Standing> {
    let all = upstreams.all();
    let client = all.iter().find(|client| client.upstream().name == upstream.name)?;
    Some(of_client(client))
}

fn of_client(client: &Client) -> Standing {
    let guard = client.guard();
    Standing {
        breaker: of_state(guard.breaker().state()),
        processes: guard.sharers(),
        concurrency: Some(client.concurrency()),
        quota: guard.quota_standing().map(of_quota),
    }
}

fn of_state(state: BreakerState) -> BreakerLine {
    match state {
        BreakerState::Closed => BreakerLine { state: "closed", retry_after_seconds: None },
        BreakerState::HalfOpen => BreakerLine { state: "half-open", retry_after_seconds: None },
        BreakerState::Open { until } => {
            open_for(until.saturating_duration_since(Instant::now().into()))
        }
    }
}

fn open_for(left: Duration) -> BreakerLine {
    BreakerLine { state: "open", retry_after_seconds: Some(left.as_secs() + 1) }
}

fn of_quota(quota: QuotaStanding) -> QuotaLine {
    QuotaLine {
        limit: quota.limit,
        remaining: quota.remaining,
        reserve: Some(quota.reserve),
        reset_seconds: quota.reset.as_secs(),
    }
}

async fn by_others(bus: &Bus, upstream: &Upstream) -> Option<Standing> {
    let (state, scope) = (bus.shared_state(), scope(upstream));
    let look = timeout(LIMIT, hydrant_fleet::look(&state, &scope)).await.ok()?.ok()?;
    if look.processes == 0 && look.quota.is_none() {
        return None;
    }
    let closed = BreakerLine { state: "closed", retry_after_seconds: None };
    let quota = look.quota.map(|quota| QuotaLine {
        limit: quota.limit,
        remaining: quota.remaining,
        reserve: None,
        reset_seconds: quota.reset / 1_000,
    });
    Some(Standing {
        breaker: look.open.map_or(closed, open_for),
        processes: look.processes,
        concurrency: None,
        quota,
    })
}
