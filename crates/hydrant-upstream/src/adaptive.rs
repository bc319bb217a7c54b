//! How many calls wait for their answers at once: up to the configured ceiling while all is well, half as
//! many after each failure, and one more for each round of good answers (AIMD). Pure but for the
//! lock.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// The limit of one upstream.
#[derive(Debug)]
pub struct Adaptive {
    ceiling: f64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limit: f64,
    lowered_at: Option<Instant>,
    /// The shortest answer, forgotten slowly, so that it follows an upstream that moves.
    fastest: Option<f64>,
}

/// How a call went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Went {
    /// Answered after so long.
    Well(Duration),
    Badly,
}

/// The limit never falls below this, or the ceiling if that is lower.
const FLOOR: f64 = 2.0;
/// The limit is lowered once in this time: what was under way then fails together.
const APART: Duration = Duration::from_secs(1);
/// An answer is late when it took so many times the shortest, and this long at least.
const LATE: (f64, Duration) = (8.0, Duration::from_secs(1));

impl Adaptive {
    pub fn new(ceiling: u32) -> Self {
        let ceiling = f64::from(ceiling.max(1));
        let state = State { limit: ceiling, lowered_at: None, fastest: None };
        Self { ceiling, state: Mutex::new(state) }
    }

    pub fn limit(&self) -> u32 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).limit as u32
    }

    pub fn heed(&self, went: Went, now: Instant) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let factor = match went {
            Went::Badly => Some(0.5),
            Went::Well(took) => state.is_late(took).then_some(0.8),
        };
        match factor {
            Some(factor) => state.lower(factor, self.ceiling, now),
            None => state.limit = (state.limit + 1.0 / state.limit).min(self.ceiling),
        }
    }
}

impl State {
    fn is_late(&mut self, took: Duration) -> bool {
        let seconds = took.as_secs_f64();
        let fastest = self.fastest.map_or(seconds, |fastest| (fastest * 1.01).min(seconds));
        self.fastest = Some(fastest.max(0.001));
        took >= LATE.1 && seconds > fastest * LATE.0
    }

    fn lower(&mut self, factor: f64, ceiling: f64, now: Instant) {
        if self.lowered_at.is_none_or(|at| now.duration_since(at) >= APART) {
            self.lowered_at = Some(now);
            self.limit = (self.limit * factor).max(FLOOR.min(ceiling));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn failures_halve_it_and_good_answers_bring_it_back() {
        let (adaptive, mut now) = (Adaptive::new(64), Instant::now());
        assert_eq!(adaptive.limit(), 64);
        for expected in [32, 16, 8, 4, 2, 2] {
            (0..50).for_each(|_| adaptive.heed(Went::Badly, now));
            assert_eq!(adaptive.limit(), expected);
            now += APART;
        }
        (0..100).for_each(|_| adaptive.heed(Went::Well(20 * MILLI), now));
        assert!((10..20).contains(&adaptive.limit()), "{}", adaptive.limit());
        (0..5_000).for_each(|_| adaptive.heed(Went::Well(20 * MILLI), now));
        assert_eq!(adaptive.limit(), 64);
    }

    #[test]
    fn answers_that_get_late_lower_it_but_a_slow_upstream_does_not() {
        let now = Instant::now();
        let slow = Adaptive::new(64);
        (0..100).for_each(|_| slow.heed(Went::Well(3_000 * MILLI), now));
        assert_eq!(slow.limit(), 64);
        let late = Adaptive::new(64);
        (0..100).for_each(|_| late.heed(Went::Well(50 * MILLI), now));
        late.heed(Went::Well(3_000 * MILLI), now);
        assert_eq!(late.limit(), 51);
    }

    #[test]
    fn a_low_ceiling_is_kept() {
        let one = Adaptive::new(1);
        one.heed(Went::Badly, Instant::now());
        assert_eq!(one.limit(), 1);
    }
}
