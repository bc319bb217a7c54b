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
    /// When the time of the load is over.
    ends: Instant,
    /// By the second in which a request was due, so that those of a stall stand where it was.
    seconds: Vec<Tick>,
    errors: BTreeMap<String, u64>,
    done: u64,
    bytes: u64,
    done_in_time: u64,
    bytes_in_time: u64,
    unserved: u64,
}

struct Tick {
    latencies: Histogram<u64>,
    done: u64,
    errors: u64,
}

impl Recorder {
    pub fn new(started: Instant, ends: Instant) -> Self {
        Self {
            started,
            ends,
            latencies: histogram(3),
            seconds: Vec::new(),
            errors: BTreeMap::new(),
            done: 0,
            bytes: 0,
            done_in_time: 0,
            bytes_in_time: 0,
            unserved: 0,
        }
    }

    /// A right answer, whole by now; so many of its bytes came before the time was over.
    pub fn done(&mut self, due: Instant, bytes: u64, bytes_in_time: u64) {
        self.done += 1;
        self.bytes += bytes;
        self.done_in_time += u64::from(Instant::now() <= self.ends);
        self.bytes_in_time += bytes_in_time;
        self.waited(due, due.elapsed()).done += 1;
    }

    /// A request that failed waited too: leaving it out would make failing look fast.
    pub fn error(&mut self, due: Instant, kind: &str) {
        self.waited(due, due.elapsed()).errors += 1;
        self.failed(kind);
    }

    pub fn failed(&mut self, kind: &str) {
        let is_known = self.errors.contains_key(kind) || self.errors.len() < MOST_KINDS;
        *self.errors.entry(if is_known { kind } else { "others" }.to_owned()).or_default() += 1;
    }

    /// A request that was due and never sent waited until `now` at least.
    pub fn unserved(&mut self, due: Instant, now: Instant) {
        self.waited(due, now.saturating_duration_since(due));
        self.unserved += 1;
    }

    /// Records a wait, in all and in the second in which the request was due.
    fn waited(&mut self, due: Instant, waited: Duration) -> &mut Tick {
        let waited = micros(waited);
        self.latencies.saturating_record(waited);
        let since = due.saturating_duration_since(self.started);
        let second = usize::try_from(since.as_secs()).unwrap_or(0);
        while self.seconds.len() <= second {
            self.seconds.push(Tick::new());
        }
        let tick = &mut self.seconds[second];
        tick.latencies.saturating_record(waited);
        tick
    }

    pub fn merge(&mut self, other: Self) {
        self.latencies.add(other.latencies).expect("both have the same bounds");
        while self.seconds.len() < other.seconds.len() {
            self.seconds.push(Tick::new());
        }
        for (tick, theirs) in self.seconds.iter_mut().zip(other.seconds) {
            tick.latencies.add(theirs.latencies).expect("both have the same bounds");
            tick.done += theirs.done;
            tick.errors += theirs.errors;
        }
        for (kind, count) in other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
        self.done += other.done;
        self.bytes += other.bytes;
        self.done_in_time += other.done_in_time;
        self.bytes_in_time += other.bytes_in_time;
        self.unserved += other.unserved;
    }

    /// `took` is how much of its time the load needed.
    pub fn finish(self, took: Duration) -> Outcome {
        let seconds = (0..).zip(&self.seconds).map(|(at, tick)| tick.second(at)).collect();
        Outcome {
            latencies: self.latencies,
            seconds,
            errors: self.errors,
            done: self.done,
            bytes: self.bytes,
            done_in_time: self.done_in_time,
            bytes_in_time: self.bytes_in_time,
            unserved: self.unserved,
            took,
        }
    }
}

impl Tick {
    fn new() -> Self {
        Self { latencies: histogram(2), done: 0, errors: 0 }
    }

    fn second(&self, at: u64) -> Second {
        let ms = |quantile| {
            let is_known = !self.latencies.is_empty();
            is_known.then(|| self.latencies.value_at_quantile(quantile) as f64 / 1e3)
        };
        Second { at, done: self.done, errors: self.errors, p50_ms: ms(0.5), p99_ms: ms(0.99) }
    }
}

/// What came of the requests that were due in one second of a load.
#[derive(Clone, Copy, Debug)]
pub struct Second {
    /// Since its start.
    pub at: u64,
    pub done: u64,
    pub errors: u64,
    /// `None` where no request was due.
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
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
    /// What of it came before the time of the load was over: rates are of this alone.
    done_in_time: u64,
    bytes_in_time: u64,
    /// Due and never sent.
    pub unserved: u64,
    /// Within the time of the load.
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

    /// Something of every whole second that has it.
    pub fn over_time(&self, what: impl Fn(&Second) -> Option<f64>) -> Vec<(f64, f64)> {
        let whole = self.seconds.iter().take_while(|second| second.at < self.took.as_secs());
        whole.filter_map(|second| Some((second.at as f64, what(second)?))).collect()
    }

    pub fn failures(&self) -> u64 {
        self.errors.values().sum()
    }

    /// What went wrong, most frequent first; `None` when every request was answered right.
    pub fn complaint(&self) -> Option<String> {
        let mut kinds: Vec<_> =
            self.errors.iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
        kinds.extend((self.unserved > 0).then_some(("due and never sent", self.unserved)));
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let kinds: Vec<_> = kinds.iter().map(|(kind, count)| format!("{count} × {kind}")).collect();
        (!kinds.is_empty()).then(|| kinds.join(", "))
    }

    pub fn values(&self) -> Values {
        let seconds = self.took.as_secs_f64();
        Values::from([
            (Metric::Rate, self.done_in_time as f64 / seconds),
            (Metric::Throughput, self.bytes_in_time as f64 / 1e6 / seconds),
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

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_request_stands_in_the_second_in_which_it_was_due() {
        let ended = Instant::now();
        let started = ended - 5 * SECOND;
        let mut recorder = Recorder::new(started, ended);
        // Due in the first second and answered just now, in the sixth.
        recorder.done(started + SECOND / 2, 10, 10);
        recorder.unserved(started + 3 * SECOND, ended);
        let outcome = recorder.finish(5 * SECOND);
        let p99 = outcome.over_time(|second| second.p99_ms);
        // Nothing was due in the seconds between, which is no latency of 0.
        assert_eq!(p99.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [0.0, 3.0]);
        assert!(p99[0].1 >= 4_400.0 && (1_900.0..2_100.0).contains(&p99[1].1), "{p99:?}");
        assert_eq!(outcome.over_time(|second| Some(second.done as f64))[3], (3.0, 0.0));
        assert_eq!(outcome.complaint().as_deref(), Some("1 × due and never sent"));
    }

    #[test]
    fn what_comes_after_the_time_is_in_no_rate() {
        let now = Instant::now();
        let mut recorder = Recorder::new(now - 2 * SECOND, now + 60 * SECOND);
        recorder.done(now, 1_000_000, 1_000_000);
        let mut late = Recorder::new(now - 2 * SECOND, now - SECOND);
        late.done(now - 2 * SECOND, 1_000_000, 600_000);
        recorder.merge(late);
        let outcome = recorder.finish(SECOND);
        assert_eq!((outcome.done, outcome.bytes), (2, 2_000_000));
        let values = outcome.values();
        assert_eq!((values[&Metric::Rate], values[&Metric::Throughput]), (1.0, 1.6));
    }
}
