//! The figures of misses on their way to the queue.

use super::{
    instruments::{counter, gauge},
    labels::MissOutcome,
};
use crate::names::{self, label};
use opentelemetry::{
    KeyValue,
    metrics::{Counter, Gauge, Meter},
};

/// Misses that a frontend writes down behind its answers.
#[derive(Debug)]
pub struct Misses {
    handled: Counter<u64>,
    waiting: Gauge<u64>,
}

impl Misses {
    pub(super) fn new(meter: &Meter) -> Self {
        Self {
            handled: counter(meter, names::MISSES, "Misses by what became of them"),
            waiting: gauge(meter, names::MISSES_WAITING, "Misses not yet on the queue"),
        }
    }

    pub fn handled(&self, outcome: MissOutcome) {
        self.handled.add(1, &[KeyValue::new(label::OUTCOME, outcome.as_str())]);
    }

    /// Misses that are neither queued nor given up at this moment.
    pub fn waiting(&self, misses: usize) {
        self.waiting.record(misses as u64, &[]);
    }
}
