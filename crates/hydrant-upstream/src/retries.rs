//! How often a failed request may be repeated: at most 20 % of first attempts plus one a second,
//! over any minute. A full budget means no repetition, never a wait.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Repetitions one first attempt pays for.
const PER_ATTEMPT: f64 = 0.2;
/// Repetitions a second pays for. With the savings below, a minute never sees more than 60 of them.
const PER_SECOND: f64 = 0.8;
/// Most repetitions saved up.
const MOST: f64 = 10.0;
/// Repetitions a new upstream may spend at once.
const AT_FIRST: f64 = 1.0;

/// The budget of one upstream.
#[derive(Debug)]
pub struct RetryBudget(Mutex<Balance>);

#[derive(Debug)]
struct Balance {
    saved: f64,
    at: Instant,
}

impl RetryBudget {
    pub fn new() -> Self {
        Self(Mutex::new(Balance { saved: AT_FIRST, at: Instant::now() }))
    }

    /// A first attempt was made.
    pub fn attempted(&self) {
        self.with(|balance| balance.earn(PER_ATTEMPT));
    }

    /// Whether one repetition may be made; it is paid for when the answer is yes.
    pub fn take(&self) -> bool {
        self.with(|balance| balance.take(Instant::now()))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Balance) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Balance {
    fn earn(&mut self, amount: f64) {
        self.saved = (self.saved + amount).min(MOST);
    }

    fn take(&mut self, now: Instant) -> bool {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.earn(seconds * PER_SECOND);
        let enough = self.saved >= 1.0;
        if enough {
            self.saved -= 1.0;
        }
        enough
    }
}

/// The pause before a repetition: 100 to 300 ms, at random.
pub fn pause() -> Duration {
    Duration::from_millis(rand::random_range(100..=300))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_minute_sees_more_than_a_fifth_and_one_a_second() {
        let budget = RetryBudget::new();
        for attempts_a_second in [0, 1, 10, 100] {
            tokio::time::advance(Duration::from_secs(300)).await;
            let mut taken = 0;
            for _ in 0..60 {
                (0..attempts_a_second).for_each(|_| budget.attempted());
                taken += (0..1000).filter(|_| budget.take()).count();
                tokio::time::advance(Duration::from_secs(1)).await;
            }
            let allowed = 60 * attempts_a_second / 5 + 60;
            assert!(taken <= allowed, "{taken} of {allowed} at {attempts_a_second}/s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_upstream_gets_its_first_repetition() {
        let budget = RetryBudget::new();
        assert!(budget.take());
        assert!(!budget.take());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(budget.take());
    }
}
