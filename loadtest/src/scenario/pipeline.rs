//! `pipeline`: what queue, import, completion and webhook can do when the images weigh nothing, and
//! what limits them.

use crate::{
    bars::{self, Figure},
    cluster::{BusKind, Cluster, Shape},
    metric::{Metric, Values},
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
/// Clients that cause the misses.
const CLIENTS: usize = 8;
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
    let metrics =
        [Metric::Rate, Metric::P50, Metric::P99, Metric::Messages, Metric::Cpu, Metric::Busy];
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
    let metrics = [Metric::P50, Metric::P99, Metric::Rate, Metric::Busy];
    let part = Part::new(PACED, "100 misses/s, or 300 with the bus's default flush.", &metrics);
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

async fn burst(stage: &mut Stage, bus: BusKind, count: usize, rate: Option<f64>) -> Result<Values> {
    let images = Arc::new(stage.single_images(count, &[200]).await?);
    let sink = WebhookSink::start().await;
    let shape = Shape {
        webhook: Some(&sink),
        importing: vec!["--jobs".to_owned(), JOBS.to_string()],
        ..Shape::roles(stage.upstream.url(), 1, 1, bus)
    };
    // What others left unwritten makes small writes be synced one by one, and slows each of them.
    sync_disks().await?;
    let cluster = Cluster::start(&shape).await?;
    let messages = cluster.bus_messages().await;
    let timeline = Timeline::start(cluster.watched(), &stage.upstream, Some(cluster.api().clone()));
    let meter = Meter::start(&cluster.watched());
    let shares = Shares::start(cluster.watched(), stage.upstream.watched());
    let started = Instant::now();
    let asked = ask_all(&cluster, &images, rate).await?;
    let told = await_all(&sink, &asked).await?;
    let last = told.values().max().context("webhooks came")?;
    let took = last.saturating_duration_since(started).as_secs_f64();
    let mut lags: Vec<f64> = asked
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
    meter.read(0, &mut values);
    if let (Some(before), Some(after)) = (messages, cluster.bus_messages().await) {
        values.insert(Metric::Messages, after.saturating_sub(before) as f64 / took);
    }
    let charts = timeline.charts(&Contender::Hydrant(bus).to_string()).await;
    if rate.is_none() {
        stage.section.put_charts(charts);
        let shares = shares.told(count as f64);
        stage.progress.told(&format!("{}: {shares}", Contender::Hydrant(bus)));
        stage.section.set(&format!("CPU of a job, {}", Contender::Hydrant(bus)), shares);
    }
    stage.keep(cluster.end());
    Ok(values)
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

/// Asks for every image by its tag, [`TIMES`] times; when each was first answered.
async fn ask_all(
    cluster: &Cluster,
    images: &Arc<Vec<Inserted>>,
    rate: Option<f64>,
) -> Result<HashMap<String, Instant>> {
    let source = cluster.sources().into_iter().next().context("there is a frontend")?;
    let (next, started) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (source, images, next) = (source.clone(), images.clone(), next.clone());
        clients.spawn(async move {
            let (mut session, mut answered) = (Session::default(), Vec::new());
            loop {
                let number = next.fetch_add(1, Relaxed);
                let Some(image) = images.get(number / TIMES) else {
                    return Ok::<_, anyhow::Error>(answered);
                };
                if let Some(rate) = rate {
                    let due = Duration::from_secs_f64((number / TIMES) as f64 / rate);
                    sleep(due.saturating_sub(started.elapsed())).await;
                }
                let request = Request::get(source.manifest(&image.repository, &image.tag));
                let answer = session.fetch(&source.authority, &request, |_| {}).await?;
                ensure!(answer.head.status == 200, "a miss was answered {}", answer.head.status);
                answered.push((format!("{}{}", source.prefix, image.repository), Instant::now()));
            }
        });
    }
    let mut first = HashMap::new();
    while let Some(answered) = clients.join_next().await {
        for (name, at) in answered.context("a client does not panic")?? {
            let held = first.entry(name).or_insert(at);
            *held = at.min(*held);
        }
    }
    Ok(first)
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
    let limit = match (busy, raw.zip(messages)) {
        (busy, _) if busy > 0.9 => "the cores are busy".to_owned(),
        (_, Some((raw, messages))) if messages > 0.6 * raw => format!(
            "the bus takes {messages:.0} messages/s, against {raw:.0} acknowledged publishes/s alone"
        ),
        _ => {
            "neither the cores nor the bus are full: steps of a job wait for each other".to_owned()
        }
    };
    let per_job = messages.map(|m| format!(", {:.1} bus messages a job", m / rate));
    let busy = busy * 100.0;
    stage.section.note(format!(
        "{hydrant}: {rate:.0} jobs/s at {busy:.0} % of the machine{}; limit: {limit}.",
        per_job.unwrap_or_default()
    ));
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
