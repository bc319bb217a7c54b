//! `soak`: mixed traffic while processes are killed. Afterwards everything must come back to rest:
//! memory, open files, scratch space and the queue.

use super::{KIB, MIB};
use crate::{
    cluster::{BusKind, Cluster, Shape},
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
use std::time::Duration;
use tokio::time::{Instant, sleep};

const PART: &str = "at rest";
const BEFORE: &str = "before";
const AFTER: &str = "after";
/// How long what is left to do may take after the traffic has ended.
const REST_LIMIT: Duration = Duration::from_secs(300);
/// Longer than anything is kept for the next who asks.
const KEPT: Duration = Duration::from_secs(75);
/// How often a client tries again, as container runtimes do, with another frontend each time.
const TRIES: usize = 5;

const METRICS: [Metric; 7] = [
    Metric::Memory,
    Metric::Descriptors,
    Metric::Disk,
    Metric::Queue,
    Metric::Unfinished,
    Metric::Errors,
    Metric::Rate,
];

pub async fn play(stage: &mut Stage) -> Result<()> {
    let minutes = stage.options.soak_minutes;
    let time = stage.effort().pick(
        Duration::from_secs(20),
        Duration::from_secs(60),
        Duration::from_secs(minutes * 60),
    );
    stage.section.set("time", format!("{time:?}"));
    stage.section.note(
        "Writes that a kill cut off are swept hours later; until then they are counted as \
         unfinished, and there may be a few for each kill.",
    );
    stage.section.set("processes", "2 frontends, 2 importers, control, nats-server; a directory");
    let about = "Warm requests at a rate, cold pulls one after the other, and a kill -9 of a \
                 process every ten seconds.";
    stage.section.parts.push(Part::new(PART, about, &METRICS));
    let mut cluster =
        Cluster::start(&Shape::roles(stage.upstream.url(), 2, 2, BusKind::Synced)).await?;
    let warm = warm(stage, &cluster).await?;
    at_rest(stage, &cluster, BEFORE, Values::new()).await?;
    let watched = cluster.watched();
    let timeline = Timeline::start(watched, &stage.upstream, Some(cluster.api().clone()));
    let done = traffic(stage, &mut cluster, warm, time).await?;
    stage.progress.doing("waiting for rest");
    at_rest(stage, &cluster, AFTER, done).await?;
    let charts = timeline.charts("soak").await;
    stage.section.put_charts(charts);
    judge(stage)
}

async fn warm(stage: &Stage, cluster: &Cluster) -> Result<Vec<Ask>> {
    let image = stage.image(&[64 * KIB]).await?;
    let mut asks = Vec::new();
    for source in cluster.sources() {
        pull(&source, &image.repository, &image.tag, Model::Docker).await?;
        let request = Request::get(source.manifest(&image.repository, &image.tag));
        let answer = Session::default().fetch(&source.authority, &request, |_| {}).await?;
        asks.push(Ask { authority: source.authority, request, length: answer.length });
    }
    cluster.api().hydrated(&image.name(), REST_LIMIT).await?;
    Ok(asks)
}

/// Everything at once until the time is over; what came of it.
async fn traffic(
    stage: &Stage,
    cluster: &mut Cluster,
    warm: Vec<Ask>,
    time: Duration,
) -> Result<Values> {
    let until = Instant::now() + time;
    let plan = Plan { pace: Pace::Open(50.0), connections: 16, time, most: u64::MAX };
    let sources = cluster.sources();
    let (outcome, pulls, kills) = tokio::join!(
        load::run(plan, warm),
        pulls(stage, &sources, until),
        kills(stage, cluster, until),
    );
    let (pulled, failed) = pulls?;
    let kills = kills?;
    stage.progress.told(&format!(
        "{} warm requests ({} failed, of frontends that were down), {} cold pulls, {kills} kills",
        outcome.done,
        outcome.failures(),
        pulled.len()
    ));
    for image in &pulled {
        cluster.api().hydrated(&image.name(), REST_LIMIT).await?;
    }
    Ok(Values::from([
        (Metric::Errors, failed as f64),
        (Metric::Rate, pulled.len() as f64 / time.as_secs_f64()),
    ]))
}

/// Cold pulls one after the other; those that failed in all tries are counted.
async fn pulls(
    stage: &Stage,
    sources: &[Source],
    until: Instant,
) -> Result<(Vec<Inserted>, usize)> {
    let (mut pulled, mut failed) = (Vec::new(), 0);
    while Instant::now() < until {
        let image = stage.image(&[2 * MIB, 256 * KIB]).await?;
        match retried(sources, &image, pulled.len()).await {
            Ok(()) => pulled.push(image),
            Err(error) => {
                failed += 1;
                stage.progress.told(&format!("{}: {error:#}", image.name()));
            }
        }
    }
    Ok((pulled, failed))
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
async fn kills(stage: &Stage, cluster: &mut Cluster, until: Instant) -> Result<usize> {
    let pause = stage.effort().pick(
        Duration::from_secs(3),
        Duration::from_secs(10),
        Duration::from_secs(10),
    );
    let mut count = 0;
    while Instant::now() + pause < until {
        sleep(pause).await;
        match count % 5 {
            n @ (0 | 2) => cluster.importers[n / 2].restart().await,
            n @ (1 | 3) => cluster.frontends[n / 2].restart().await,
            _ => {
                if let Some(nats) = &mut cluster.nats {
                    nats.restart().await;
                }
            }
        }
        count += 1;
    }
    Ok(count)
}

/// Waits until nothing is to be done, and measures.
async fn at_rest(
    stage: &mut Stage,
    cluster: &Cluster,
    when: &str,
    mut values: Values,
) -> Result<()> {
    let deadline = Instant::now() + REST_LIMIT;
    let mut queue = cluster.api().queue().await?;
    while queue > 0 && Instant::now() < deadline {
        sleep(Duration::from_millis(200)).await;
        queue = cluster.api().queue().await?;
    }
    values.insert(Metric::Queue, queue as f64);
    // Connections, open files and what landed in a spool are kept for a minute.
    if when == AFTER {
        stage.progress.doing("waiting until what is kept for a minute is let go");
        sleep(KEPT).await;
    }
    let usages: Vec<_> = cluster.hydrants().iter().map(Watched::usage).collect();
    let memory = usages.iter().map(|usage| usage.memory).max().unwrap_or(0);
    let descriptors: u64 = usages.iter().map(|usage| usage.descriptors).sum();
    values.insert(Metric::Memory, memory as f64 / MEBIBYTE);
    values.insert(Metric::Descriptors, descriptors as f64);
    values.insert(Metric::Unfinished, cluster.unfinished_writes().await? as f64);
    values.insert(Metric::Disk, cluster.scratch_bytes() as f64 / MEBIBYTE);
    let part = stage.section.parts.last_mut().context("the part was begun")?;
    part.add(0, when, Outcome::Measured(values));
    Ok(())
}

/// What does not come back is a failure of the run, not a figure.
fn judge(stage: &Stage) -> Result<()> {
    let section: &Section = &stage.section;
    let part = section.part(PART).context("both were measured")?;
    let value = |when, metric| part.spread(when, metric).map_or(0.0, |spread| spread.median);
    ensure!(value(AFTER, Metric::Queue) == 0.0, "jobs were left in the queue");
    ensure!(value(AFTER, Metric::Disk) < 1.0, "scratch files were left");
    ensure!(value(AFTER, Metric::Errors) == 0.0, "cold pulls failed in every try");
    let (before, after) = (value(BEFORE, Metric::Descriptors), value(AFTER, Metric::Descriptors));
    ensure!(after <= before + 32.0, "open files rose from {before} to {after}");
    Ok(())
}
