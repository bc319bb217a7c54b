//! How often a failed request may be repeated: at most 20 % of first attempts plus one a second,
//! over any minute. A full budget means no repetition, never a wait.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Repetitions one first attempt pays for.
const PER_ATTEMPT: f64 = 0.2;
/// Repetitions a second pays for, over all processes. With the savings below, a minute never sees
/// more than 60 of them, up to 24 processes.
const PER_SECOND: f64 = 0.6;
/// Most repetitions saved up, over all processes; one each at least.
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

    /// Whether one repetition may be made; it is paid for when the answer is yes. `sharers`
    /// processes share what time pays.
    pub fn take(&self, sharers: usize) -> bool {
        self.with(|balance| balance.take(sharers.max(1) as f64, Instant::now()))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Balance) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Balance {
    fn earn(&mut self, amount: f64) {
        self.saved = (self.saved + amount).min(MOST);
    }

    fn take(&mut self, sharers: f64, now: Instant) -> bool {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.earn(seconds * PER_SECOND / sharers);
        self.saved = self.saved.min((MOST / sharers).max(1.0));
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
                taken += (0..1000).filter(|_| budget.take(1)).count();
                tokio::time::advance(Duration::from_secs(1)).await;
            }
            let allowed = 60 * attempts_a_second / 5 + 60;
            assert!(taken <= allowed, "{taken} of {allowed} at {attempts_a_second}/s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_fleet_repeats_no_more_than_one_process_may() {
        for processes in [2, 6, 20] {
            let budgets: Vec<_> = (0..processes).map(|_| RetryBudget::new()).collect();
            tokio::time::advance(Duration::from_secs(300)).await;
            let mut taken = 0;
            for _ in 0..60 {
                for budget in &budgets {
                    budget.attempted();
                    taken += (0..100).filter(|_| budget.take(processes)).count();
                }
                tokio::time::advance(Duration::from_secs(1)).await;
            }
            let allowed = 60 * processes / 5 + 60;
            assert!(taken <= allowed, "{taken} of {allowed} by {processes}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_upstream_gets_its_first_repetition() {
        let budget = RetryBudget::new();
        assert!(budget.take(1));
        assert!(!budget.take(1));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(budget.take(1));
    }
}
