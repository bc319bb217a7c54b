//! `pipeline`: what queue, import, completion and webhook can do when the images weigh nothing, and
//! what limits them.

use crate::{
    bars::{self, Figure},
    cluster::{BusKind, Cluster, Shape},
    metric::{Metric, Values},
    pull::Source,
    raw,
    report::Section,
    spread::{Spread, quantile},
    stage::{Stage, sync_disks},
    timeline::Timeline,
    trials::Part,
    upstream::Inserted,
    usage::{Meter, Watched},
    wire::{Request, Session},
};
use anyhow::{Context, Result, ensure};
use hydrant_testkit::{NatsOptions, NatsServer, WebhookSink};
use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{task::JoinSet, time::sleep};

const BURST: &str = "as many as there are";
const PACED: &str = "a steady stream";
/// How long webhooks may keep us waiting without a single one arriving.
const PATIENCE: Duration = Duration::from_secs(60);
/// Jobs that the importer has under way at once: a job waits for the disk a dozen times.
const JOBS: usize = 128;
/// Clients that cause the misses of a burst, each asking again when it was answered.
const CLIENTS: usize = 8;
/// Those of a steady stream: so many that one who waits for an answer holds up no other miss.
const STEADY_CLIENTS: usize = 128;
/// A timer that is late by this much is no fault of the clients.
const LATE: Duration = Duration::from_millis(10);
/// Times each image is asked for: a job is queued once.
const TIMES: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    Hydrant(BusKind),
    /// Acknowledged publishes and nothing else.
    RawPublish(BusKind),
    /// Syncing a file after each small write.
    Disk,
}

const CONTENDERS: [Contender; 5] = [
    Contender::Hydrant(BusKind::Synced),
    Contender::Hydrant(BusKind::Default),
    Contender::RawPublish(BusKind::Synced),
    Contender::RawPublish(BusKind::Default),
    Contender::Disk,
];

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hydrant(BusKind::Synced) => "hydrant, bus synced",
            Self::Hydrant(BusKind::Default) => "hydrant, bus default",
            Self::RawPublish(BusKind::Synced) => "raw publish, bus synced",
            Self::RawPublish(BusKind::Default) => "raw publish, bus default",
            Self::Disk => "fsync of a file",
        })
    }
}

pub async fn play(stage: &mut Stage) -> Result<()> {
    let count = stage.effort().pick(20, 1_200, 3_000);
    stage.section.set("processes", "one frontend, one importer, control, notifier, nats-server");
    stage.section.set("importer", format!("{JOBS} jobs at once"));
    stage.section.set("raw publish", format!("300 bytes, {} unacknowledged", raw::nats::WINDOW));
    let metrics = [
        Metric::Rate,
        Metric::P50,
        Metric::P99,
        Metric::Messages,
        Metric::Stored,
        Metric::Cpu,
        Metric::Busy,
    ];
    let about = format!(
        "{count} images of two tiny blobs, each asked for {TIMES} times by {CLIENTS} clients; \
         lag is from the first answer to the webhook."
    );
    let part = Part::new(BURST, &about, &metrics);
    stage
        .rounds(part, &CONTENDERS, async |stage, contender, _| match *contender {
            Contender::Hydrant(bus) => burst(stage, bus, count, None).await,
            Contender::RawPublish(bus) => publishes(stage, bus).await,
            Contender::Disk => {
                Ok(Values::from([(Metric::Rate, raw::disk::syncs(stage.options.phase()).await?)]))
            }
        })
        .await;
    for kind in [BusKind::Synced, BusKind::Default] {
        tell_limit(stage, kind);
    }
    steady(stage).await;
    Ok(())
}

/// Lag where the pipeline is not full: at half the bar of each bus.
async fn steady(stage: &mut Stage) {
    let seconds = stage.options.phase().as_secs() as usize;
    let metrics = [Metric::P50, Metric::P99, Metric::Rate, Metric::Late, Metric::Busy];
    let about = "100 misses/s, or 300 with the bus's default flush, due at fixed times; lag is from when a \
                 miss was due to the webhook.";
    let part = Part::new(PACED, about, &metrics);
    let contenders = &CONTENDERS[..2];
    stage
        .rounds(part, contenders, async |stage, contender, _| {
            let (bus, rate) = match *contender {
                Contender::Hydrant(BusKind::Default) => (BusKind::Default, 300),
                _ => (BusKind::Synced, 100),
            };
            let rate = stage.effort().pick(10, rate, rate);
            burst(stage, bus, rate * seconds, Some(rate as f64)).await
        })
        .await;
}

async fn burst(
    stage: &mut Stage,
    kind: BusKind,
    count: usize,
    rate: Option<f64>,
) -> Result<Values> {
    let images = Arc::new(stage.single_images(count, &[200]).await?);
    let sink = WebhookSink::start().await;
    let shape = Shape {
        webhook: Some(&sink),
        importing: vec!["--jobs".to_owned(), JOBS.to_string()],
        ..Shape::roles(stage.upstream.url(), 1, 1, kind)
    };
    // What others left unwritten makes small writes be synced one by one, and slows each of them.
    sync_disks().await?;
    let cluster = Cluster::start(&shape).await?;
    let bus = Bus::read(&cluster).await;
    let timeline = Timeline::start(cluster.watched(), &stage.upstream, Some(cluster.api().clone()));
    let meter = Meter::start(&cluster.watched());
    let shares = Shares::start(cluster.watched(), stage.upstream.watched());
    let started = Instant::now();
    let asked = ask_all(&cluster, &images, rate).await?;
    let told = await_all(&sink, &asked.since).await?;
    let last = told.values().max().context("webhooks came")?;
    let took = last.saturating_duration_since(started).as_secs_f64();
    let mut lags: Vec<f64> = asked
        .since
        .iter()
        .filter_map(|(name, at)| Some(told.get(name)?.saturating_duration_since(*at)))
        .map(|lag| lag.as_secs_f64() * 1e3)
        .collect();
    lags.sort_by(f64::total_cmp);
    let mut values = Values::from([
        (Metric::Rate, count as f64 / took),
        (Metric::P50, quantile(&lags, 0.5)),
        (Metric::P99, quantile(&lags, 0.99)),
    ]);
    meter.read_machine(&mut values);
    meter.read(0, &mut values);
    let since = Bus::read(&cluster).await.since(&bus);
    let per_second = |count: u64| count as f64 / took;
    values.extend(since.received.map(|count| (Metric::Messages, per_second(count))));
    values.extend(since.stored.map(|count| (Metric::Stored, per_second(count))));
    let contender = Contender::Hydrant(kind);
    let charts = timeline.charts(&contender.to_string()).await;
    if rate.is_some() {
        values.insert(Metric::Late, asked.late as f64);
    } else {
        stage.section.put_charts(charts);
        let shares = shares.told(count as f64);
        stage.progress.told(&format!("{contender}: {shares}"));
        stage.section.set(&format!("CPU of a job, {contender}"), shares);
    }
    stage.keep(cluster.end());
    Ok(values)
}

/// What the bus has had to do.
struct Bus {
    /// Of any kind, acknowledgements and questions included.
    received: Option<u64>,
    /// Into streams on disk.
    stored: Option<u64>,
}

impl Bus {
    async fn read(cluster: &Cluster) -> Self {
        Self { received: cluster.bus_messages().await, stored: cluster.bus_stored().await }
    }

    fn since(&self, before: &Self) -> Self {
        let since = |now: Option<u64>, before| Some(now?.saturating_sub(before?));
        Self {
            received: since(self.received, before.received),
            stored: since(self.stored, before.stored),
        }
    }
}

/// Who takes the CPU.
struct Shares(Vec<(Watched, f64)>);

impl Shares {
    fn start(mut watched: Vec<Watched>, upstream: Option<Watched>) -> Self {
        watched.extend(upstream);
        watched.push(Watched::ourselves());
        let now = |watched: Watched| {
            let cpu = watched.usage().cpu_s;
            (watched, cpu)
        };
        Self(watched.into_iter().map(now).collect())
    }

    /// Milliseconds for each of `jobs`.
    fn told(&self, jobs: f64) -> String {
        let share = |(watched, before): &(Watched, f64)| {
            format!("{} {:.2} ms", watched.name, (watched.usage().cpu_s - before) / jobs * 1e3)
        };
        self.0.iter().map(share).collect::<Vec<_>>().join(", ")
    }
}

/// From when the lag of each repository counts.
struct Asked {
    /// When it was due, in a steady stream; in a burst, when it was first answered.
    since: HashMap<String, Instant>,
    /// Requests that were sent later than they were due, since no client was free.
    late: usize,
}

/// Asks for every image by its tag, [`TIMES`] times.
async fn ask_all(
    cluster: &Cluster,
    images: &Arc<Vec<Inserted>>,
    rate: Option<f64>,
) -> Result<Asked> {
    let source = cluster.sources().into_iter().next().context("there is a frontend")?;
    let queue = Arc::new(Queue {
        source,
        images: images.clone(),
        rate,
        next: AtomicUsize::new(0),
        late: AtomicUsize::new(0),
        started: Instant::now(),
    });
    let mut clients = JoinSet::new();
    for _ in 0..if rate.is_some() { STEADY_CLIENTS } else { CLIENTS } {
        clients.spawn(client(queue.clone()));
    }
    let mut since = HashMap::new();
    while let Some(asked) = clients.join_next().await {
        for (name, at) in asked.context("a client does not panic")?? {
            let held = since.entry(name).or_insert(at);
            *held = at.min(*held);
        }
    }
    Ok(Asked { since, late: queue.late.load(Relaxed) })
}

/// What the clients ask for, in turn.
struct Queue {
    source: Source,
    images: Arc<Vec<Inserted>>,
    /// Images per second; as fast as answers come where there is none.
    rate: Option<f64>,
    next: AtomicUsize,
    late: AtomicUsize,
    started: Instant,
}

impl Queue {
    /// The next image, and when it was due if there are times for that.
    async fn take(&self) -> Option<(&Inserted, Option<Instant>)> {
        let number = self.next.fetch_add(1, Relaxed) / TIMES;
        let image = self.images.get(number)?;
        let Some(rate) = self.rate else {
            return Some((image, None));
        };
        let due = self.started + Duration::from_secs_f64(number as f64 / rate);
        sleep(due.saturating_duration_since(Instant::now())).await;
        self.late.fetch_add(usize::from(due.elapsed() > LATE), Relaxed);
        Some((image, Some(due)))
    }
}

async fn client(queue: Arc<Queue>) -> Result<Vec<(String, Instant)>> {
    let (mut session, mut asked, source) = (Session::default(), Vec::new(), &queue.source);
    while let Some((image, due)) = queue.take().await {
        let request = Request::get(source.manifest(&image.repository, &image.tag));
        let answer = session.fetch(&source.authority, &request, |_| {}).await?;
        ensure!(answer.head.status == 200, "a miss was answered {}", answer.head.status);
        let name = format!("{}{}", source.prefix, image.repository);
        asked.push((name, due.unwrap_or_else(Instant::now)));
    }
    Ok(asked)
}

/// When each repository was announced first.
async fn await_all(
    sink: &WebhookSink,
    asked: &HashMap<String, Instant>,
) -> Result<HashMap<String, Instant>> {
    let (mut last_count, mut last_change) = (0, Instant::now());
    loop {
        let count = sink.count();
        if count != last_count {
            (last_count, last_change) = (count, Instant::now());
        }
        if count >= asked.len() {
            let mut told = HashMap::new();
            for request in &sink.received() {
                let name = request.json()["data"]["repository"].as_str().unwrap_or("").to_owned();
                told.entry(name).or_insert(request.at);
            }
            if asked.keys().all(|name| told.contains_key(name)) {
                return Ok(told);
            }
        }
        let waited = last_change.elapsed();
        ensure!(
            waited < PATIENCE,
            "{last_count} webhooks of {}, and none for {waited:?}",
            asked.len()
        );
        sleep(Duration::from_millis(20)).await;
    }
}

async fn publishes(stage: &Stage, bus: BusKind) -> Result<Values> {
    let nats: NatsServer = match bus {
        BusKind::Synced => NatsOptions::default().durable().start().await,
        BusKind::Default => NatsServer::start().await,
    };
    let rate = raw::nats::publishes(nats.port(), stage.options.phase()).await?;
    Ok(Values::from([(Metric::Rate, rate)]))
}

/// Says what bounded the burst, from what was measured beside it.
fn tell_limit(stage: &mut Stage, bus: BusKind) {
    let hydrant = Contender::Hydrant(bus).to_string();
    let Some(part) = stage.section.part(BURST) else { return };
    let median = |name: &str, metric| part.spread(name, metric).map(|s: Spread| s.median);
    let (Some(rate), Some(busy)) = (median(&hydrant, Metric::Rate), median(&hydrant, Metric::Busy))
    else {
        return;
    };
    let raw = median(&Contender::RawPublish(bus).to_string(), Metric::Rate);
    let messages = median(&hydrant, Metric::Messages);
    let limit = limit(busy, raw.zip(median(&hydrant, Metric::Stored)));
    let per_job = messages.map(|m| format!(", {:.1} bus messages a job", m / rate));
    let busy = busy * 100.0;
    stage.section.note(format!(
        "{hydrant}: {rate:.0} jobs/s at {busy:.0} % of the machine{}; limit: {limit}.",
        per_job.unwrap_or_default()
    ));
}

/// What is full, by the share of the cores that were busy, and by what the bus stores a second alone
/// and stored in the burst, where both are known. Other messages of the bus cost it little beside those.
fn limit(busy: f64, stores: Option<(f64, f64)>) -> String {
    match stores {
        _ if busy > 0.8 => "the cores are busy".to_owned(),
        Some((raw, stored)) if stored > 0.6 * raw => format!(
            "the bus stores {stored:.0} messages/s, against {raw:.0} acknowledged publishes/s alone"
        ),
        Some(_) => {
            "neither the cores nor the bus are full: steps of a job wait for each other".to_owned()
        }
        None => "not the cores; what the bus stores is not known".to_owned(),
    }
}

pub fn figures(section: &Section) -> Vec<Figure> {
    let empty = Part::default();
    let part = section.part(BURST).unwrap_or(&empty);
    let figure =
        |bar: bars::Bar, bus| bar.value(part, &Contender::Hydrant(bus).to_string(), Metric::Rate);
    vec![
        figure(bars::PIPELINE_SYNCED, BusKind::Synced),
        figure(bars::PIPELINE_DEFAULT, BusKind::Default),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bus_is_the_limit_only_by_what_it_stores() {
        assert_eq!(limit(0.85, Some((100.0, 90.0))), "the cores are busy");
        assert!(limit(0.7, Some((100.0, 90.0))).starts_with("the bus stores 90 messages/s"));
        assert!(limit(0.7, Some((100.0, 10.0))).starts_with("neither"));
        assert!(!limit(0.7, None).contains("the bus are full"));
    }

    #[tokio::test]
    async fn a_miss_that_no_client_was_free_for_is_late_and_counts_from_when_it_was_due() {
        let image = Inserted {
            repository: "app".to_owned(),
            tag: "1".to_owned(),
            digest: String::new(),
            child: String::new(),
            blobs: Vec::new(),
            bytes: 0,
        };
        let queue = Queue {
            source: Source { authority: String::new(), prefix: String::new() },
            images: Arc::new(vec![image; 2]),
            rate: Some(10.0),
            next: AtomicUsize::new(2 * TIMES - 1),
            late: AtomicUsize::new(0),
            started: Instant::now() - Duration::from_secs(1),
        };
        let (_, due) = queue.take().await.unwrap();
        assert_eq!(due, Some(queue.started + Duration::from_millis(100)));
        assert_eq!(queue.late.load(Relaxed), 1);
        assert!(queue.take().await.is_none());
    }
}
