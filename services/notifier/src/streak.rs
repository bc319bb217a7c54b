//! Since when an endpoint has failed without a break. Pure.

use hydrant_proto::{DeliveryAttempt, DeliveryOutcome};
use jiff::{SignedDuration, Timestamp};
use std::{sync::Mutex, time::Duration};

/// How long an endpoint may fail at everything before it is disabled; the five days of the
/// Standard Webhooks specification.
pub const PATIENCE: SignedDuration = SignedDuration::from_hours(5 * 24);

/// The first failure after the last success. Kept in memory and taken up again from the delivery
/// log, so it survives a restart of this process, though not of the whole bus: an endpoint then
/// gets five more days.
#[derive(Debug, Default)]
pub struct Streak(Mutex<Option<Timestamp>>);

impl Streak {
    /// Takes up what the log knows; `log` need not be in order.
    pub fn resume(&self, log: &[DeliveryAttempt]) {
        let last_success = succeeded(log).map(|attempt| attempt.at).max();
        let failures = log.iter().filter(|a| a.outcome != DeliveryOutcome::Delivered);
        let since = failures.map(|a| a.at).filter(|at| Some(*at) > last_success).min();
        *self.0.lock().expect("no holder panics") = since;
    }

    /// Since when there were only failures; `None` while there are none.
    pub fn since(&self) -> Option<Timestamp> {
        *self.0.lock().expect("no holder panics")
    }

    /// How long there were only failures; zero while there are none.
    pub fn length(&self, now: Timestamp) -> Duration {
        let length = self.since().map(|since| now.duration_since(since));
        length.and_then(|length| length.try_into().ok()).unwrap_or_default()
    }

    pub fn end(&self) {
        *self.0.lock().expect("no holder panics") = None;
    }

    /// A failure at `now`. Answers since when there were only failures, once that is longer than
    /// `patience`.
    pub fn failed(&self, now: Timestamp, patience: SignedDuration) -> Option<Timestamp> {
        let since = *self.0.lock().expect("no holder panics").get_or_insert(now);
        (now.duration_since(since) >= patience).then_some(since)
    }
}

/// Whether anybody, this process or another, got something delivered after `since`.
pub fn broken_since(log: &[DeliveryAttempt], since: Timestamp) -> bool {
    succeeded(log).any(|attempt| attempt.at > since)
}

fn succeeded(log: &[DeliveryAttempt]) -> impl Iterator<Item = &DeliveryAttempt> {
    log.iter().filter(|attempt| attempt.outcome == DeliveryOutcome::Delivered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hydrant_proto::EventKind;

    fn at(hour: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hour)
    }

    fn attempt(hour: i64, outcome: DeliveryOutcome) -> DeliveryAttempt {
        DeliveryAttempt {
            webhook: "ci".into(),
            event_id: "0".into(),
            kind: EventKind::ImageHydrated,
            attempt: 1,
            at: at(hour),
            status: None,
            error: None,
            duration_ms: 0,
            outcome,
        }
    }

    #[test]
    fn five_days_of_nothing_but_failures_are_too_many() {
        let streak = Streak::default();
        assert_eq!(streak.failed(at(0), PATIENCE), None);
        assert_eq!(streak.failed(at(119), PATIENCE), None);
        assert_eq!(streak.failed(at(120), PATIENCE), Some(at(0)));
        assert_eq!(streak.length(at(121)), Duration::from_secs(121 * 3600));
        streak.end();
        assert_eq!(streak.length(at(121)), Duration::ZERO);
        assert_eq!(streak.failed(at(121), PATIENCE), None);
    }

    #[test]
    fn the_log_tells_when_the_failures_began() {
        use DeliveryOutcome::{DeadLettered, Delivered};
        let retry = DeliveryOutcome::Retry { at: at(0) };
        let log =
            [attempt(1, retry), attempt(5, DeadLettered), attempt(2, Delivered), attempt(4, retry)];
        let streak = Streak::default();
        streak.resume(&log);
        assert_eq!(streak.failed(at(200), PATIENCE), Some(at(4)));
        assert!(broken_since(&log, at(1)));
        assert!(!broken_since(&log, at(2)));
        streak.resume(&log[2..3]);
        assert_eq!(streak.failed(at(200), PATIENCE), None);
    }
}
