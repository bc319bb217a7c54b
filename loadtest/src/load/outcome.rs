//! What came of a load: latencies, in all and per second, bytes and errors.

use crate::metric::{Metric, Values};
use hdrhistogram::Histogram;
use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

/// Latencies are recorded in microseconds up to this; longer ones count as this.
const LONGEST: u64 = 120_000_000;
/// Kinds of errors that are told apart.
const MOST_KINDS: usize = 12;

fn histogram(digits: u8) -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, digits).expect("the bounds are valid")
}

/// Written while the load runs; one for each worker.
pub(super) struct Recorder {
    started: Instant,
    latencies: Histogram<u64>,
    seconds: Vec<Tick>,
    errors: BTreeMap<String, u64>,
    done: u64,
    bytes: u64,
    unserved: u64,
}

struct Tick {
    latencies: Histogram<u64>,
    errors: u64,
}

impl Recorder {
    pub fn new(started: Instant) -> Self {
        Self {
            started,
            latencies: histogram(3),
            seconds: Vec::new(),
            errors: BTreeMap::new(),
            done: 0,
            bytes: 0,
            unserved: 0,
        }
    }

    pub fn done(&mut self, due: Instant, bytes: u64) {
        let took = micros(due.elapsed());
        self.latencies.saturating_record(took);
        self.done += 1;
        self.bytes += bytes;
        let tick = self.tick();
        tick.latencies.saturating_record(took);
    }

    /// A request that failed waited too: leaving it out would make failing look fast.
    pub fn error(&mut self, due: Instant, kind: &str) {
        let took = micros(due.elapsed());
        self.latencies.saturating_record(took);
        let tick = self.tick();
        tick.latencies.saturating_record(took);
        tick.errors += 1;
        self.failed(kind);
    }

    pub fn failed(&mut self, kind: &str) {
        let is_known = self.errors.contains_key(kind) || self.errors.len() < MOST_KINDS;
        *self.errors.entry(if is_known { kind } else { "others" }.to_owned()).or_default() += 1;
    }

    pub fn unserved(&mut self, waited: Duration) {
        self.latencies.saturating_record(micros(waited));
        self.unserved += 1;
    }

    pub fn merge(&mut self, other: Self) {
        self.latencies.add(other.latencies).expect("both have the same bounds");
        while self.seconds.len() < other.seconds.len() {
            self.seconds.push(Tick::new());
        }
        for (tick, theirs) in self.seconds.iter_mut().zip(other.seconds) {
            tick.latencies.add(theirs.latencies).expect("both have the same bounds");
            tick.errors += theirs.errors;
        }
        for (kind, count) in other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
        self.done += other.done;
        self.bytes += other.bytes;
        self.unserved += other.unserved;
    }

    pub fn finish(self, took: Duration) -> Outcome {
        let seconds = (0..).zip(&self.seconds).map(|(at, tick)| tick.second(at)).collect();
        Outcome {
            latencies: self.latencies,
            seconds,
            errors: self.errors,
            done: self.done,
            bytes: self.bytes,
            unserved: self.unserved,
            took,
        }
    }

    fn tick(&mut self) -> &mut Tick {
        let second = usize::try_from(self.started.elapsed().as_secs()).unwrap_or(0);
        while self.seconds.len() <= second {
            self.seconds.push(Tick::new());
        }
        &mut self.seconds[second]
    }
}

impl Tick {
    fn new() -> Self {
        Self { latencies: histogram(2), errors: 0 }
    }

    fn second(&self, at: u64) -> Second {
        let ms = |quantile| self.latencies.value_at_quantile(quantile) as f64 / 1e3;
        Second {
            at,
            requests: self.latencies.len(),
            errors: self.errors,
            p50_ms: ms(0.5),
            p99_ms: ms(0.99),
        }
    }
}

/// One second of a load.
#[derive(Clone, Copy, Debug)]
pub struct Second {
    /// Since its start.
    pub at: u64,
    pub requests: u64,
    pub errors: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

/// All of a load that has ended.
pub struct Outcome {
    latencies: Histogram<u64>,
    seconds: Vec<Second>,
    /// How often by what went wrong.
    pub errors: BTreeMap<String, u64>,
    /// Right answers, and the bytes of their bodies.
    pub done: u64,
    pub bytes: u64,
    /// Due and never sent.
    pub unserved: u64,
    pub took: Duration,
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quantiles = [0.5, 0.9, 0.99, 1.0].map(|quantile| self.milliseconds(quantile));
        write!(f, "{} done, {} unserved, ", self.done, self.unserved)?;
        write!(f, "{:?}, p50 p90 p99 max {quantiles:?} ms", self.errors)
    }
}

impl Outcome {
    /// Latency at a quantile.
    pub fn milliseconds(&self, quantile: f64) -> f64 {
        self.latencies.value_at_quantile(quantile) as f64 / 1e3
    }

    /// How many took longer than `limit`.
    #[cfg(test)]
    pub fn slow(&self, limit: Duration) -> u64 {
        self.latencies.len() - self.latencies.count_between(0, micros(limit))
    }

    /// Something of every whole second.
    pub fn over_time(&self, what: impl Fn(&Second) -> f64) -> Vec<(f64, f64)> {
        let whole = self.seconds.iter().take_while(|second| second.at < self.took.as_secs());
        whole.map(|second| (second.at as f64, what(second))).collect()
    }

    pub fn failures(&self) -> u64 {
        self.errors.values().sum()
    }

    /// What went wrong, most frequent first; `None` when nothing did.
    pub fn complaint(&self) -> Option<String> {
        let mut kinds: Vec<_> = self.errors.iter().collect();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let kinds: Vec<_> = kinds.iter().map(|(kind, count)| format!("{count} × {kind}")).collect();
        (!kinds.is_empty()).then(|| kinds.join(", "))
    }

    pub fn values(&self) -> Values {
        let seconds = self.took.as_secs_f64();
        Values::from([
            (Metric::Rate, self.done as f64 / seconds),
            (Metric::Throughput, self.bytes as f64 / 1e6 / seconds),
            (Metric::P50, self.milliseconds(0.5)),
            (Metric::P99, self.milliseconds(0.99)),
            (Metric::P999, self.milliseconds(0.999)),
            (Metric::Slowest, self.milliseconds(1.0)),
            (Metric::Errors, self.failures() as f64),
            (Metric::Unserved, self.unserved as f64),
        ])
    }
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(LONGEST)
}
