//! The events of an upstream's protection: each told by the process whose own experience decided.

use hydrant_bus::Bus;
use hydrant_proto::{Event, EventData, EventKind, FailureClass, UpstreamReport, Verdict};
use hydrant_upstream::{BreakerState, Guard};
use jiff::Timestamp;
use std::time::Duration;
use tokio::time::timeout;

/// Longest wait for the bus to take an event; what matters will be told again.
const LIMIT: Duration = Duration::from_secs(2);
const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;

/// Tells of the decisions of one guard.
pub struct Announcer {
    bus: Bus,
    guard: Guard,
    /// The last decision seen.
    seq: u64,
    said: Said,
}

/// What was told last. A breaker that opens again after a bad probe is no news.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Said {
    Opened,
    Closed,
}

impl Announcer {
    pub fn new(bus: Bus, guard: Guard) -> Self {
        Self { bus, guard, seq: 0, said: Said::Closed }
    }

    /// Tells of the report's decision, if it is a new one.
    pub async fn announce(&mut self, report: &UpstreamReport) {
        let is_new = report.seq != self.seq;
        self.seq = report.seq;
        let now = match report.verdict {
            Verdict::Open { .. } if is_new => Said::Opened,
            Verdict::Closed if is_new => Said::Closed,
            _ if self.guard.breaker().state() == BreakerState::Closed => {
                // Somebody else's probe closed it.
                self.said = Said::Closed;
                return;
            }
            _ => return,
        };
        // The first of a series is news even if the end of the last one was not noticed here.
        let first = matches!(report.verdict, Verdict::Open { streak: 0 | 1, .. });
        if now == Said::Closed || self.said == Said::Closed || first {
            mention(&self.bus, &event(self.guard.upstream(), now)).await;
        }
        self.said = now;
    }
}

/// Little is left of an upstream's budget: one event an hour, whoever finds out.
pub async fn quota_low(bus: &Bus, upstream: &str, remaining: u64) {
    let reason = Some(format!("{remaining} requests are left, kept for clients"));
    let (upstream, class) = (Some(upstream.to_owned()), Some(FailureClass::UpstreamLimit));
    let seq = periods(HOUR);
    let data = EventData { upstream, class, reason, seq, ..EventData::default() };
    mention(bus, &Event::new(EventKind::QuotaLow, Timestamp::now(), data)).await;
}

/// Tells of something; when the bus is away it is not told.
async fn mention(bus: &Bus, event: &Event) {
    let told = timeout(LIMIT, bus.publish_event(event)).await;
    if !matches!(told, Ok(Ok(_))) {
        tracing::debug!(kind = %event.kind, ?told, "event not published");
    }
}

fn event(upstream: &str, said: Said) -> Event {
    let (kind, class) = match said {
        Said::Opened => (EventKind::BreakerOpened, Some(FailureClass::BreakerOpen)),
        Said::Closed => (EventKind::BreakerClosed, None),
    };
    let upstream = Some(upstream.to_owned());
    let data = EventData { upstream, class, seq: periods(MINUTE), ..EventData::default() };
    Event::new(kind, Timestamp::now(), data)
}

/// How many periods of so many seconds have passed since the epoch: what several processes find
/// out within the same one is one event.
fn periods(seconds: u64) -> u64 {
    u64::try_from(Timestamp::now().as_second()).unwrap_or_default() / seconds
}
