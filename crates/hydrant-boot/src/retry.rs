//! Retry schedules: how long to wait before an attempt. Deadlines, the number of attempts and
//! cancellation belong to the caller. The one place that knows the `backoff` crate.

use backoff::{ExponentialBackoff, backoff::Backoff as _};
use std::time::{Duration, Instant};

/// Delays that grow from `initial` by `multiplier` up to `max`, each moved at random by up to
/// `jitter` of itself in either direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    pub initial: Duration,
    pub max: Duration,
    /// At least 1.
    pub multiplier: f64,
    /// 0 (none) to 1.
    pub jitter: f64,
}

impl Schedule {
    /// Doubles, with a jitter of one half.
    pub const fn doubling(initial: Duration, max: Duration) -> Self {
        Self { initial, max, multiplier: 2.0, jitter: 0.5 }
    }

    /// The delay before try `attempt + 1`: `delay(1)` follows the first failure.
    pub fn delay(&self, attempt: u32) -> Duration {
        let exponent = f64::from(attempt.saturating_sub(1).min(1_000));
        let grown = self.initial.as_secs_f64() * self.multiplier.max(1.0).powf(exponent);
        let interval = Duration::try_from_secs_f64(grown).map_or(self.max, |d| d.min(self.max));
        let mut policy = ExponentialBackoff {
            current_interval: interval,
            initial_interval: interval,
            randomization_factor: self.jitter.clamp(0.0, 1.0),
            multiplier: 1.0,
            max_interval: self.max,
            max_elapsed_time: None,
            clock: backoff::SystemClock::default(),
            start_time: Instant::now(),
        };
        policy.next_backoff().expect("a policy without a time limit always answers")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn delays_double_up_to_the_maximum() {
        let schedule =
            Schedule { jitter: 0.0, ..Schedule::doubling(SECOND, Duration::from_secs(60)) };
        let delays: Vec<_> = [0, 1, 2, 3, 6, 7, 8, 1_000, u32::MAX]
            .map(|attempt| schedule.delay(attempt).as_secs())
            .into();
        assert_eq!(delays, [1, 1, 2, 4, 32, 60, 60, 60, 60]);
    }

    #[test]
    fn jitter_stays_within_its_share() {
        let schedule = Schedule { jitter: 0.25, ..Schedule::doubling(SECOND, 4 * SECOND) };
        let delays: Vec<_> = (0..200).map(|_| schedule.delay(2).as_secs_f64()).collect();
        assert!(delays.iter().all(|delay| (1.5..=2.51).contains(delay)), "{delays:?}");
        assert!(delays.iter().any(|delay| *delay < 1.9) && delays.iter().any(|d| *d > 2.1));
    }
}
