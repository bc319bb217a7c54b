//! What happens over time while a scenario runs: memory and CPU of each process, bytes from the
//! upstream beside bytes to clients, and the queue.

use crate::{
    cluster::Api,
    report::{Chart, Line},
    upstream::Upstream,
    usage::{MIB, Processes, Watched},
    wire,
};
use reqwest::Client;
use std::time::{Duration, Instant};
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

const EVERY: Duration = Duration::from_millis(200);
/// A line of fewer points tells nothing.
const FEWEST_POINTS: usize = 5;
/// Points of a line; more are thinned out by half.
const MOST_POINTS: usize = 480;

/// A recording under way; dropping it ends it.
pub struct Timeline {
    end: oneshot::Sender<()>,
    task: JoinHandle<Recorded>,
}

struct Recorded {
    memory: Vec<Line>,
    cpu: Vec<Line>,
    bytes: [Line; 2],
    queue: Line,
}

impl Timeline {
    /// Of these processes, the upstream and the load generator.
    pub fn start(mut watched: Vec<Watched>, upstream: &Upstream, api: Option<Api>) -> Self {
        watched.extend(upstream.watched());
        watched.push(Watched::ourselves());
        let (end, ended) = oneshot::channel();
        let recorder = Recorder::new(watched, upstream.counters_url(), api);
        Self { end, task: tokio::spawn(recorder.run(ended)) }
    }

    /// Ends it; `what` begins the titles.
    pub async fn charts(self, what: &str) -> Vec<Chart> {
        // The recorder may have ended by itself.
        let _ = self.end.send(());
        self.task.await.map(|recorded| recorded.charts(what)).unwrap_or_default()
    }
}

struct Recorder {
    watched: Vec<Watched>,
    upstream: String,
    api: Option<Api>,
    client: Client,
    started: Instant,
    /// Upstream's and clients' bytes as it began.
    before: [u64; 2],
    cpu_before: Vec<(f64, f64)>,
    recorded: Recorded,
}

impl Recorder {
    fn new(watched: Vec<Watched>, upstream: String, api: Option<Api>) -> Self {
        let line = |name: &str| Line { name: name.to_owned(), points: Vec::new() };
        let lines: Vec<_> = watched.iter().map(|watched| line(&watched.name)).collect();
        let recorded = Recorded {
            memory: lines.clone(),
            cpu: lines,
            bytes: [line("from the upstream"), line("to clients")],
            queue: line("jobs waiting or running"),
        };
        Self {
            cpu_before: watched.iter().map(|watched| (0.0, watched.usage().cpu_s)).collect(),
            watched,
            upstream,
            api,
            client: Client::new(),
            started: Instant::now(),
            before: [0, wire::received()],
            recorded,
        }
    }

    async fn run(mut self, mut ended: oneshot::Receiver<()>) -> Recorded {
        self.before[0] = self.upstream_bytes().await.unwrap_or(0);
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = &mut ended => break,
                _ = ticks.tick() => self.sample().await,
            }
        }
        self.sample().await;
        self.recorded
    }

    async fn sample(&mut self) {
        let at = self.started.elapsed().as_secs_f64();
        let processes = Processes::read();
        for (n, watched) in self.watched.iter().enumerate() {
            let usage = watched.among(&processes);
            self.recorded.memory[n].add(at, usage.memory as f64 / MIB);
            let (before_at, before) = self.cpu_before[n];
            if at - before_at > 0.1 {
                let cores = (usage.cpu_s - before).max(0.0) / (at - before_at);
                self.recorded.cpu[n].add(at, cores);
                self.cpu_before[n] = (at, usage.cpu_s);
            }
        }
        let upstream = self.upstream_bytes().await;
        for (n, now) in [upstream, Some(wire::received())].into_iter().enumerate() {
            if let Some(now) = now {
                // A counter that was reset in between begins again.
                let since = now.saturating_sub(self.before[n]);
                self.recorded.bytes[n].add(at, since as f64 / 1e6);
            }
        }
        if let Some(api) = &self.api
            && let Ok(queue) = api.queue().await
        {
            self.recorded.queue.add(at, queue as f64);
        }
    }

    async fn upstream_bytes(&self) -> Option<u64> {
        let answer = self.client.get(&self.upstream).send().await.ok()?;
        let counters: crate::upstream::Counters = answer.json().await.ok()?;
        Some(counters.bytes)
    }
}

impl Line {
    /// Adds a point; every second one goes when there are too many.
    fn add(&mut self, at: f64, value: f64) {
        self.points.push((at, value));
        if self.points.len() > MOST_POINTS {
            let mut keep = false;
            self.points.retain(|_| {
                keep = !keep;
                keep
            });
        }
    }

    /// How fast it rises between its points; where it falls it began anew.
    fn per_second(&self) -> Self {
        let pairs = self.points.windows(2).filter(|pair| pair[1].0 > pair[0].0);
        let rise = |pair: &[(f64, f64)]| {
            let ((from, before), (to, after)) = (pair[0], pair[1]);
            (to, (after - before).max(0.0) / (to - from))
        };
        Self { name: self.name.clone(), points: pairs.map(rise).collect() }
    }
}

impl Recorded {
    fn charts(self, what: &str) -> Vec<Chart> {
        let throughput = self.bytes.iter().map(Line::per_second).collect();
        let chart = |title: &str, unit: &str, lines: Vec<Line>| {
            let lines: Vec<_> =
                lines.into_iter().filter(|line| line.points.len() >= FEWEST_POINTS).collect();
            let title = format!("{what}: {title}");
            (!lines.is_empty()).then(|| Chart { lines, ..Chart::new(&title, "s", unit) })
        };
        [
            chart("memory per process", "MiB", self.memory),
            chart("CPU per process", "cores", self.cpu),
            chart("throughput", "MB/s", throughput),
            chart("upstream bytes and served bytes", "MB", self.bytes.into()),
            chart("queue depth", "jobs", vec![self.queue]),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throughput_is_what_the_bytes_rise_by() {
        let points = vec![(0.0, 0.0), (0.5, 10.0), (0.5, 10.0), (2.5, 50.0), (3.5, 0.0)];
        let bytes = Line { name: "to clients".to_owned(), points };
        let throughput = bytes.per_second();
        assert_eq!(throughput.points, [(0.5, 20.0), (2.5, 20.0), (3.5, 0.0)]);
        assert_eq!(throughput.name, "to clients");
    }
}
