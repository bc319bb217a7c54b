//! `soak`: mixed traffic while processes are killed. Afterwards everything must come back to rest:
//! memory, open files, scratch space and the queue.

use super::{KIB, MIB};
use crate::{
    cluster::{Api, BusKind, Cluster, Shape, Victim},
    load::{self, Ask, Pace, Plan},
    metric::{Metric, Values},
    pull::{Model, Source, pull},
    report::Section,
    stage::Stage,
    timeline::Timeline,
    trials::{Outcome, Part},
    upstream::Inserted,
    usage::{MIB as MEBIBYTE, Watched},
    wire::{Request, Session},
};
use anyhow::{Context, Result, ensure};
use hydrant_testkit::WebhookSink;
use std::{collections::HashSet, time::Duration};
use tokio::time::{Instant, sleep};

const PART: &str = "at rest";
const BEFORE: &str = "before";
const AFTER: &str = "after";
const TRAFFIC: &str = "traffic";
const WARM: &str = "warm requests";
const COLD: &str = "cold pulls";
const LARGE: &str = "cold pulls of a large layer";
const BACKGROUND: &str = "hydrations nobody waits for";
const WEBHOOKS: &str = "images announced by webhook";
const KILLS: &str = "kills";
/// How long what is left to do may take after the traffic has ended.
const REST_LIMIT: Duration = Duration::from_secs(300);
/// Longer than anything is kept for the next who asks.
const KEPT: Duration = Duration::from_secs(75);
/// How often a client tries again, as container runtimes do, with another frontend each time.
const TRIES: usize = 5;
/// Warm requests per second.
const RATE: f64 = 50.0;
/// Every so many cold pulls, one is of a layer whose spool file has a name, to be gone on with.
const LARGE_EVERY: usize = 8;
const LARGE_LAYER: u64 = 48 * MIB;
/// Between two hydrations that nobody waits for.
const BACKGROUND_EVERY: Duration = Duration::from_secs(2);
/// What the allocator may keep of busier times.
const MORE_MEMORY: f64 = 64.0;
const MORE_DESCRIPTORS: f64 = 32.0;
/// Writes that one kill may cut off: three blobs of each of the eight jobs that an importer has.
const CUT_OFF: f64 = 24.0;

const METRICS: [Metric; 5] =
    [Metric::Memory, Metric::Descriptors, Metric::Disk, Metric::Queue, Metric::Unfinished];

pub async fn play(stage: &mut Stage) -> Result<()> {
    let minutes = stage.options.soak_minutes;
    let time = Duration::from_secs(stage.effort().pick(20, 60, minutes * 60));
    settings(stage, time);
    let about =
        "Before the traffic, and when all of it is over and nothing is kept for it any more.";
    stage.section.parts.push(Part::new(PART, about, &METRICS));
    let sink = WebhookSink::start().await;
    let shape = Shape::roles(stage.upstream.url(), 2, 2, BusKind::Synced);
    let mut cluster = Cluster::start(&Shape { webhook: Some(&sink), ..shape }).await?;
    let warm = warm(stage, &cluster).await?;
    at_rest(stage, &cluster, BEFORE).await?;
    let watched = cluster.watched();
    let timeline = Timeline::start(watched, &stage.upstream, Some(cluster.api().clone()));
    let done = traffic(stage, &mut cluster, warm, time).await?;
    stage.progress.doing("waiting for rest");
    let announced = announced(&cluster, &sink, &done.local).await;
    stage.section.parts.push(done.part(announced));
    at_rest(stage, &cluster, AFTER).await?;
    let charts = timeline.charts("soak").await;
    stage.section.put_charts(charts);
    judge(&stage.section)
}

fn settings(stage: &mut Stage, time: Duration) {
    stage.section.note(
        "Writes that a kill cut off are swept hours later; until then they are counted as \
         unfinished, and there may be a few for each kill.",
    );
    let section = &mut stage.section;
    section.set("time", format!("{time:?}"));
    section.set(
        "processes",
        "2 frontends, 2 importers, control, notifier, nats-server with every write synced; a directory",
    );
    section.set("warm", format!("{RATE} requests/s: a manifest, a blob, and a part of it"));
    section.set(
        "cold",
        format!(
            "one pull after the other, every {LARGE_EVERY}th of a layer of {} MiB",
            LARGE_LAYER / MIB
        ),
    );
    section.set("background", format!("an image by API every {BACKGROUND_EVERY:?}"));
}

async fn warm(stage: &Stage, cluster: &Cluster) -> Result<Vec<Ask>> {
    let image = stage.image(&[64 * KIB]).await?;
    let mut asks = Vec::new();
    for source in cluster.sources() {
        pull(&source, &image.repository, &image.tag, Model::Docker).await?;
        let blob = source.blob(&image.repository, image.largest().0);
        for request in [
            Request::get(source.manifest(&image.repository, &image.tag)),
            Request::get(&blob),
            Request::part(&blob, 10_000..30_000),
        ] {
            let answer = Session::default().fetch(&source.authority, &request, |_| {}).await?;
            let authority = source.authority.clone();
            asks.push(Ask { authority, request, length: answer.length });
        }
    }
    cluster.api().hydrated(&image.name(), REST_LIMIT).await?;
    Ok(asks)
}

/// What was done, and how much of it failed.
#[derive(Default)]
struct Tally {
    done: usize,
    failed: usize,
}

struct Done {
    warm: load::Outcome,
    cold: Tally,
    large: Tally,
    background: Tally,
    kills: usize,
    time: Duration,
    /// What must be local, and announced, when all is over.
    local: Vec<Inserted>,
}

impl Done {
    fn part(&self, announced: usize) -> Part {
        let about = "Everything at once, while one process after the other is killed; warm requests \
                     fail where their frontend is down, pulls when all tries did.";
        let mut part = Part::new(TRAFFIC, about, &[Metric::Count, Metric::Errors, Metric::Rate]);
        let warm = Tally {
            done: self.warm.done as usize,
            failed: (self.warm.failures() + self.warm.unserved) as usize,
        };
        let webhooks = Tally { done: announced, failed: self.local.len() - announced };
        let kills = Tally { done: self.kills, failed: 0 };
        for (name, tally) in [
            (WARM, &warm),
            (COLD, &self.cold),
            (LARGE, &self.large),
            (BACKGROUND, &self.background),
            (WEBHOOKS, &webhooks),
            (KILLS, &kills),
        ] {
            let values = Values::from([
                (Metric::Count, tally.done as f64),
                (Metric::Errors, tally.failed as f64),
                (Metric::Rate, tally.done as f64 / self.time.as_secs_f64()),
            ]);
            part.add(0, name, Outcome::Measured(values));
        }
        part
    }
}

/// Everything at once until the time is over; what came of it.
async fn traffic(
    stage: &Stage,
    cluster: &mut Cluster,
    warm: Vec<Ask>,
    time: Duration,
) -> Result<Done> {
    let until = Instant::now() + time;
    let plan = Plan { pace: Pace::Open(RATE), connections: 16, time, most: u64::MAX };
    let (sources, api) = (cluster.sources(), cluster.api().clone());
    let (warm, pulls, asked, kills) = tokio::join!(
        load::run(plan, warm),
        pulls(stage, &sources, until),
        background(stage, &api, until),
        kills(stage, cluster, until),
    );
    let ((mut local, cold, large), (asked, background)) = (pulls?, asked?);
    local.extend(asked);
    stage.progress.told(&format!(
        "{} warm requests ({} failed, of frontends that were down), {} cold pulls, {kills} kills",
        warm.done,
        warm.failures(),
        cold.done + large.done
    ));
    for image in &local {
        api.hydrated(&image.name(), REST_LIMIT).await?;
    }
    Ok(Done { warm, cold, large, background, kills, time, local })
}

/// Cold pulls one after the other: what came, of small images and of those with a large layer.
async fn pulls(
    stage: &Stage,
    sources: &[Source],
    until: Instant,
) -> Result<(Vec<Inserted>, Tally, Tally)> {
    let (mut pulled, mut small, mut large) = (Vec::new(), Tally::default(), Tally::default());
    for number in 0.. {
        if Instant::now() >= until {
            break;
        }
        let is_large = number % LARGE_EVERY == LARGE_EVERY - 1;
        let first = if is_large { LARGE_LAYER } else { 2 * MIB };
        let image = stage.image(&[first, 256 * KIB]).await?;
        let tally = if is_large { &mut large } else { &mut small };
        match retried(sources, &image, number).await {
            Ok(()) => {
                tally.done += 1;
                pulled.push(image);
            }
            Err(error) => {
                tally.failed += 1;
                stage.progress.told(&format!("{}: {error:#}", image.name()));
            }
        }
    }
    Ok((pulled, small, large))
}

/// Images asked for by API that no client waits for.
async fn background(stage: &Stage, api: &Api, until: Instant) -> Result<(Vec<Inserted>, Tally)> {
    let (mut asked, mut tally) = (Vec::new(), Tally::default());
    while Instant::now() + BACKGROUND_EVERY < until {
        sleep(BACKGROUND_EVERY).await;
        let image = stage.image(&[4 * MIB, 100 * KIB]).await?;
        match insisted(api, &image).await {
            Ok(()) => {
                tally.done += 1;
                asked.push(image);
            }
            Err(error) => {
                tally.failed += 1;
                stage.progress.told(&format!("hydrate {}: {error:#}", image.name()));
            }
        }
    }
    Ok((asked, tally))
}

/// Asks until it is taken: the bus may just be starting again.
async fn insisted(api: &Api, image: &Inserted) -> Result<()> {
    let mut last = None;
    for _ in 0..TRIES {
        match api.hydrate(&image.name()).await {
            Ok(()) => return Ok(()),
            Err(error) => last = Some(error),
        }
        sleep(Duration::from_secs(1)).await;
    }
    Err(last.context("there was a try")?)
}

/// How many of `images` were announced, once all are or none more comes.
async fn announced(cluster: &Cluster, sink: &WebhookSink, images: &[Inserted]) -> usize {
    let deadline = Instant::now() + REST_LIMIT;
    let prefix = &cluster.api().prefix;
    loop {
        let received = sink.received();
        let told = received.iter().map(|request| {
            request.json()["data"]["repository"].as_str().unwrap_or_default().to_owned()
        });
        let told: HashSet<String> = told.collect();
        let is_told = |image: &&Inserted| told.contains(&format!("{prefix}{}", image.repository));
        let count = images.iter().filter(is_told).count();
        if count == images.len() || Instant::now() >= deadline {
            return count;
        }
        sleep(Duration::from_millis(500)).await;
    }
}

async fn retried(sources: &[Source], image: &Inserted, first: usize) -> Result<()> {
    let mut last = None;
    for attempt in 0..TRIES {
        let source = &sources[(first + attempt) % sources.len()];
        match pull(source, &image.repository, &image.tag, Model::Docker).await {
            Ok(_) => return Ok(()),
            Err(error) => last = Some(error),
        }
        sleep(Duration::from_millis(500)).await;
    }
    Err(last.context("there was a try")?)
}

/// Kills one process after the other and starts it again.
async fn kills(stage: &Stage, cluster: &mut Cluster, until: Instant) -> usize {
    let pause = Duration::from_secs(stage.effort().pick(3, 10, 10));
    let victims = [
        Victim::Importer(0),
        Victim::Frontend(0),
        Victim::Importer(1),
        Victim::Frontend(1),
        Victim::Bus,
    ];
    let mut count = 0;
    while Instant::now() + pause < until {
        sleep(pause).await;
        cluster.restart(victims[count % victims.len()]).await;
        count += 1;
    }
    count
}

/// Waits until nothing is to be done, and measures.
async fn at_rest(stage: &mut Stage, cluster: &Cluster, when: &str) -> Result<()> {
    let deadline = Instant::now() + REST_LIMIT;
    let mut queue = cluster.api().queue().await?;
    while queue > 0 && Instant::now() < deadline {
        sleep(Duration::from_millis(200)).await;
        queue = cluster.api().queue().await?;
    }
    // Connections, open files and what landed in a spool are kept for a minute.
    if when == AFTER {
        stage.progress.doing("waiting until what is kept for a minute is let go");
        sleep(KEPT).await;
    }
    let usages: Vec<_> = cluster.hydrants().iter().map(Watched::usage).collect();
    let memory = usages.iter().map(|usage| usage.memory).max().unwrap_or(0);
    let descriptors: u64 = usages.iter().map(|usage| usage.descriptors).sum();
    let values = Values::from([
        (Metric::Queue, queue as f64),
        (Metric::Memory, memory as f64 / MEBIBYTE),
        (Metric::Descriptors, descriptors as f64),
        (Metric::Unfinished, cluster.unfinished_writes().await? as f64),
        (Metric::Disk, cluster.scratch_bytes() as f64 / MEBIBYTE),
    ]);
    let parts = &mut stage.section.parts;
    let part = parts.iter_mut().find(|part| part.name == PART).context("the part was begun")?;
    part.add(0, when, Outcome::Measured(values));
    Ok(())
}

/// What does not come back is a failure of the run, not a figure.
fn judge(section: &Section) -> Result<()> {
    let value = |part: &str, who: &str, metric| {
        let spread = section.part(part).and_then(|part| part.spread(who, metric));
        let spread = spread.with_context(|| format!("{part}, {who} was not measured"))?;
        anyhow::Ok(spread.median)
    };
    let rest = |metric| anyhow::Ok((value(PART, BEFORE, metric)?, value(PART, AFTER, metric)?));
    ensure!(rest(Metric::Queue)?.1 == 0.0, "jobs were left in the queue");
    let scratch = rest(Metric::Disk)?.1;
    ensure!(scratch < 1.0, "{scratch:.1} MiB of scratch files were left");
    for who in [COLD, LARGE, BACKGROUND, WEBHOOKS] {
        let errors = value(TRAFFIC, who, Metric::Errors)?;
        ensure!(errors == 0.0, "{who}: {errors} failed in every try");
    }
    let (before, after) = rest(Metric::Descriptors)?;
    ensure!(after <= before + MORE_DESCRIPTORS, "open files rose from {before} to {after}");
    let (before, after) = rest(Metric::Memory)?;
    ensure!(after <= before + MORE_MEMORY, "memory rose from {before:.0} to {after:.0} MiB");
    let (kills, (before, after)) =
        (value(TRAFFIC, KILLS, Metric::Count)?, rest(Metric::Unfinished)?);
    ensure!(
        after <= before + kills * CUT_OFF,
        "{after} writes are unfinished, after {kills} kills and {before} before"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What [`judge`] says of values after the traffic and of failures in it.
    fn judged(after: &[(Metric, f64)], failures: &[(&str, f64)]) -> Result<()> {
        let rest = [
            (Metric::Queue, 0.0),
            (Metric::Memory, 30.0),
            (Metric::Descriptors, 80.0),
            (Metric::Unfinished, 1.0),
            (Metric::Disk, 0.0),
        ];
        let mut part = Part::new(PART, "", &METRICS);
        part.add(0, BEFORE, Outcome::Measured(Values::from(rest)));
        let mut values = Values::from(rest);
        values.extend(after.iter().copied());
        part.add(0, AFTER, Outcome::Measured(values));
        let mut traffic = Part::new(TRAFFIC, "", &[]);
        for who in [WARM, COLD, LARGE, BACKGROUND, WEBHOOKS, KILLS] {
            let failed = failures.iter().find(|(name, _)| *name == who).map_or(0.0, |(_, n)| *n);
            let values = Values::from([(Metric::Count, 2.0), (Metric::Errors, failed)]);
            traffic.add(0, who, Outcome::Measured(values));
        }
        judge(&Section { parts: vec![part, traffic], ..Section::default() })
    }

    #[test]
    fn what_does_not_come_back_to_rest_is_told() {
        judged(&[], &[]).unwrap();
        let said = |after: (Metric, f64)| judged(&[after], &[]).unwrap_err().to_string();
        assert!(said((Metric::Queue, 1.0)).contains("in the queue"));
        assert!(said((Metric::Disk, 40.0)).contains("40.0 MiB of scratch"));
        assert!(said((Metric::Descriptors, 113.0)).contains("open files rose"));
        assert!(said((Metric::Memory, 95.0)).contains("memory rose from 30 to 95 MiB"));
        assert!(
            said((Metric::Unfinished, 50.0)).contains("50 writes are unfinished, after 2 kills")
        );
        judged(&[(Metric::Memory, 94.0), (Metric::Unfinished, 49.0)], &[]).unwrap();
    }

    #[test]
    fn a_pull_or_webhook_that_never_came_is_told_and_a_frontend_that_was_down_is_not() {
        for who in [COLD, LARGE, BACKGROUND, WEBHOOKS] {
            assert!(judged(&[], &[(who, 1.0)]).unwrap_err().to_string().starts_with(who));
        }
        judged(&[], &[(WARM, 40.0)]).unwrap();
        assert!(judge(&Section::default()).is_err());
    }
}
