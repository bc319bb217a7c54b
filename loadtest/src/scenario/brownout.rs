//! `brownout`: whether those who read what is cached notice that an upstream is in trouble.

use super::{KIB, MIB, clients};
use crate::{
    bars::{self, Figure},
    cluster::{Api, Cluster, Shape},
    contestant::Running,
    load::{self, Ask, Outcome, Pace, Plan},
    metric::{Metric, Values},
    pull::{Model, pull},
    report::{Chart, Section},
    stage::Stage,
    timeline::Timeline,
    trials::Part,
    upstream::{Behaviour, Fault, Inserted, Upstream},
    wire::{Request, Session},
};
use anyhow::{Context, Result, ensure};
use std::{
    fmt, mem,
    time::{Duration, Instant},
};
use tokio::time::sleep;

const PART: &str = "warm traffic";
/// Requests per second for images of the upstream in trouble that nobody has asked for before.
const COLD_RATE: f64 = 50.0;
/// Of the warm load, and of the misses.
const CONNECTIONS: usize = 64;
/// Images of it that are asked for in the background in each phase, to be local when all is over.
const ASKED: usize = 10;
/// Clients of a herd.
const HERD: usize = 50;
/// Images for herds that are made before the phase, for each second of it: making them takes CPU of the
/// machine on which the herds are measured.
const HERDS_A_SECOND: usize = 2;
/// How long that may take then.
const RECOVERY: Duration = Duration::from_secs(300);
/// How long the upstream is well before the next trouble: a breaker that opens again sooner stays open
/// for longer than before, and would be measured by two troubles.
const WELL: Duration = Duration::from_secs(31);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Quiet,
    Slow,
    Errors,
    Limited,
    BlackHole,
    Flapping,
    Herd,
    /// The same clients and the same image without hydrant in between: what they alone take of the
    /// machine.
    HerdDirect,
}

const PHASES: [Phase; 8] = [
    Phase::Quiet,
    Phase::Slow,
    Phase::Errors,
    Phase::Limited,
    Phase::BlackHole,
    Phase::Flapping,
    Phase::Herd,
    Phase::HerdDirect,
];

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quiet => "quiet",
            Self::Slow => "other upstream answers after 3 s",
            Self::Errors => "other upstream answers 503",
            Self::Limited => "other upstream answers 429",
            Self::BlackHole => "other upstream is a black hole",
            Self::Flapping => "other upstream flaps",
            Self::Herd => "a herd is cold",
            Self::HerdDirect => "a herd pulls from the upstream itself",
        })
    }
}

impl Phase {
    fn is_herd(self) -> bool {
        matches!(self, Self::Herd | Self::HerdDirect)
    }

    /// Whether the page has plots of its processes, bytes and queue.
    fn is_drawn(self) -> bool {
        matches!(self, Self::BlackHole | Self::Herd)
    }

    fn behaviour(self) -> Behaviour {
        match self {
            Self::Quiet | Self::Herd | Self::HerdDirect => Behaviour::default(),
            Self::Slow => Behaviour::latency(3_000),
            Self::Errors => Behaviour::fault(Fault::Status { code: 503, retry_after_s: None }),
            Self::Limited => Behaviour::fault(Fault::Status { code: 429, retry_after_s: Some(2) }),
            Self::BlackHole => Behaviour::fault(Fault::BlackHole),
            Self::Flapping => Behaviour::fault(Fault::Flapping { period_ms: 1_000 }),
        }
    }
}

/// hydrant with two upstreams, and what is warm in it.
struct Lab {
    running: Running,
    troubled: Upstream,
    warm: Vec<Ask>,
    /// Names of what is to be local after the phase.
    asked: Vec<String>,
}

impl Lab {
    fn api(&self) -> Result<Api> {
        let api = self.running.api.as_ref().context("it is a cluster of ours")?;
        Ok(api.behind("other/"))
    }
}

pub async fn play(stage: &mut Stage) -> Result<()> {
    let rate = stage.effort().pick(50.0, 200.0, 500.0);
    let about = format!(
        "{rate} requests/s for cached manifests and 64 KiB blobs, due at fixed times, while \
         {COLD_RATE} requests/s miss at another upstream and {ASKED} of its images are hydrated, or \
         herds of {HERD} clients pull one cold image after the other, through hydrant or from the \
         upstream itself, until the phase is over. Upstream requests are those at the other upstream."
    );
    settings(stage, rate);
    let mut lab = prepare(stage).await?;
    let metrics = [
        Metric::P99,
        Metric::P50,
        Metric::P999,
        Metric::Slowest,
        Metric::Unserved,
        Metric::Errors,
        Metric::UpstreamRequests,
        Metric::Herds,
    ];
    let part = Part::new(PART, &about, &metrics).against(&Phase::Quiet.to_string());
    stage
        .rounds(part, &PHASES, async |stage, phase, _| {
            lab.troubled.reset().await?;
            lab.troubled.behave(phase.behaviour()).await?;
            let work = work(stage, &mut lab, *phase).await?;
            let timeline = timeline(stage, &lab, *phase)?;
            let measured = measure(stage, &lab, work, *phase, rate).await;
            let charts = timeline.charts(&phase.to_string()).await;
            let asked = lab.troubled.counters().await?;
            // What hangs and what the breaker remembers would fall on the next phase.
            recovery(stage, &mut lab, *phase).await?;
            if phase.is_drawn() {
                stage.section.put_charts(charts);
            }
            let (outcome, herds) = measured?;
            chart(stage, *phase, &outcome);
            let mut values = values(&outcome)?;
            values.insert(Metric::UpstreamRequests, (asked.requests() + asked.spoilt) as f64);
            values.extend(herds.map(|herds| (Metric::Herds, herds as f64)));
            Ok(values)
        })
        .await;
    Ok(())
}

fn settings(stage: &mut Stage, rate: f64) {
    let section = &mut stage.section;
    section
        .set("processes", "hydrant up with the nats-server it starts, a directory, two upstreams");
    section.set("configuration", "as it is by default, with fresh_for = \"1h\"");
    section.set("warm", format!("{rate} requests/s over {CONNECTIONS} connections, due evenly"));
    section.set(
        "misses",
        format!("{COLD_RATE} requests/s, each for an image nobody asked for before"),
    );
    let size = herd_layer(stage) / KIB;
    stage
        .section
        .set("herds", format!("{HERD} clients each, one layer of {size} KiB, back to back"));
    stage.section.set("phase", format!("{:?}", length(stage)));
}

/// Requests for what is cached, that fail because another upstream is in trouble, are what must not
/// be: then there is no latency to tell.
fn values(warm: &Outcome) -> Result<Values> {
    if let Some(complaint) = warm.complaint() {
        anyhow::bail!(
            "of {} warm requests: {complaint}",
            warm.done + warm.failures() + warm.unserved
        );
    }
    Ok(warm.values())
}

/// What is there to see beside the latency; everybody's time is told alike, since looking takes CPU.
fn timeline(stage: &Stage, lab: &Lab, phase: Phase) -> Result<Timeline> {
    let (watched, api) = (lab.running.watched.clone(), lab.running.api.clone());
    let api = api.context("it is a cluster of ours")?;
    Ok(match phase {
        Phase::Quiet | Phase::Herd | Phase::HerdDirect => {
            Timeline::start(watched, &stage.upstream, Some(api))
        }
        // Where jobs for the upstream in trouble wait.
        _ => Timeline::start(watched, &lab.troubled, Some(api.of_upstream("other"))),
    })
}

/// Ends the trouble. Everything that was asked for in it becomes local.
async fn recovery(stage: &mut Stage, lab: &mut Lab, phase: Phase) -> Result<()> {
    lab.troubled.behave(Behaviour::default()).await?;
    let (api, began, asked) = (lab.api()?, Instant::now(), mem::take(&mut lab.asked));
    for name in &asked {
        api.hydrated(name, RECOVERY.saturating_sub(began.elapsed())).await?;
    }
    if !asked.is_empty() {
        let (count, took) = (asked.len(), began.elapsed().as_secs_f64());
        stage.section.note(format!(
            "{phase}: all {count} images asked for in it were local {took:.1} s after its end"
        ));
        sleep(WELL).await;
    }
    Ok(())
}

async fn prepare(stage: &mut Stage) -> Result<Lab> {
    let troubled = Upstream::start().await?;
    let upstreams = vec![stage.upstream.url().to_owned(), troubled.url().to_owned()];
    let shape = Shape { upstreams, ..Shape::one(stage.upstream.url()) };
    let running = Running::of_cluster(Cluster::start(&shape).await?);
    let image = stage.image(&[64 * KIB]).await?;
    let source = running.source(0);
    pull(source, &image.repository, &image.tag, Model::Docker).await?;
    clients::hydrated(&running, &[&image]).await?;
    let paths = [
        source.manifest(&image.repository, &image.tag),
        source.blob(&image.repository, image.largest().0),
    ];
    let (mut warm, mut session) = (Vec::new(), Session::default());
    for request in paths.map(Request::get) {
        let length = session.fetch(&source.authority, &request, |_| {}).await?.length;
        warm.push(Ask { authority: source.authority.clone(), request, length });
    }
    Ok(Lab { running, troubled, warm, asked: Vec::new() })
}

/// The warm load, with what else goes on in the phase; and how many herds there were, if any.
async fn measure(
    stage: &Stage,
    lab: &Lab,
    work: Work,
    phase: Phase,
    rate: f64,
) -> Result<(Outcome, Option<usize>)> {
    let time = length(stage);
    let connections = CONNECTIONS;
    let plan = Plan { pace: Pace::Open(rate), connections, time, most: u64::MAX };
    let warm = load::warmed(plan, lab.warm.clone()).await.run();
    match work {
        Work::None => Ok((warm.await, None)),
        Work::Misses(misses) => {
            let most = misses.len() as u64;
            let cold = Plan { pace: Pace::Open(COLD_RATE), connections, time, most };
            let (outcome, _) = tokio::join!(warm, load::run(cold, misses));
            Ok((outcome, None))
        }
        Work::Herds(images) => {
            let direct = Running::direct(&stage.upstream);
            let running = if phase == Phase::Herd { &lab.running } else { &direct };
            let until = Instant::now() + time;
            let (outcome, pulled) = tokio::join!(warm, herds(stage, running, images, until));
            let pulled = pulled?;
            clients::hydrated(running, &pulled.iter().collect::<Vec<_>>()).await?;
            Ok((outcome, Some(pulled.len())))
        }
    }
}

/// One herd after the other pulls an image that is new to all, without a pause between them, until the
/// warm load is over: a herd of a second would be in one of a hundred warm requests, or in none.
async fn herds(
    stage: &Stage,
    running: &Running,
    images: Vec<Inserted>,
    until: Instant,
) -> Result<Vec<Inserted>> {
    let (mut images, mut pulled) = (images.into_iter(), Vec::new());
    while Instant::now() < until {
        let image = match images.next() {
            Some(image) => image,
            None => stage.image(&[herd_layer(stage)]).await?,
        };
        let pulls = clients::at_once(running, &vec![&image; HERD], Model::Docker).await;
        if let Some(complaint) = pulls.complaint() {
            anyhow::bail!("herd {}: {complaint}", pulled.len() + 1);
        }
        pulled.push(image);
    }
    ensure!(!pulled.is_empty(), "there was no time for a herd");
    Ok(pulled)
}

fn herd_layer(stage: &Stage) -> u64 {
    stage.effort().pick(MIB, 8 * MIB, 64 * MIB)
}

/// A 99th percentile needs some thousands of requests.
fn length(stage: &Stage) -> Duration {
    stage.effort().pick(1, 3, 3) * stage.options.phase()
}

/// What goes on beside the warm load.
enum Work {
    None,
    Misses(Vec<Ask>),
    /// Images for as many herds as there may be.
    Herds(Vec<Inserted>),
}

async fn work(stage: &Stage, lab: &mut Lab, phase: Phase) -> Result<Work> {
    match phase {
        Phase::Quiet => Ok(Work::None),
        phase if phase.is_herd() => {
            let count = HERDS_A_SECOND * length(stage).as_secs() as usize;
            Ok(Work::Herds(stage.images(count, &[herd_layer(stage)]).await?))
        }
        _ => Ok(Work::Misses(misses(stage, lab).await?)),
    }
}

/// Asks for images that are new to everybody, one after the other; what the clients are answered does
/// not matter here. Some are wanted in the background besides.
async fn misses(stage: &Stage, lab: &mut Lab) -> Result<Vec<Ask>> {
    let count = (COLD_RATE * length(stage).as_secs_f64()) as usize;
    let images = lab.troubled.insert(&stage.specs(count + ASKED, &[200])).await?;
    let (cold, asked) = images.split_at(count);
    for image in asked {
        lab.api()?.hydrate(&image.name()).await?;
        lab.asked.push(image.name());
    }
    let authority = lab.running.source(0).authority.clone();
    let ask = |image: &Inserted| Ask {
        authority: authority.clone(),
        request: Request::get(format!("/v2/other/{}/manifests/{}", image.repository, image.tag)),
        length: 0,
    };
    Ok(cold.iter().map(ask).collect())
}

fn chart(stage: &mut Stage, phase: Phase, outcome: &Outcome) {
    let p99 = Chart::new("p99 of warm traffic over time", "s", "ms");
    stage.section.put_line(p99, &phase.to_string(), outcome.over_time(|second| second.p99_ms));
    let errors = outcome.over_time(|second| Some(second.errors as f64));
    if errors.iter().any(|(_, count)| *count > 0.0) {
        let chart = Chart::new("failed warm requests over time", "s", "per s");
        stage.section.put_line(chart, &phase.to_string(), errors);
    }
}

pub fn figures(section: &Section) -> Vec<Figure> {
    let empty = Part::default();
    let part = section.part(PART).unwrap_or(&empty);
    let figure = |bar: bars::Bar, phase: Phase| {
        bar.ratio(part, &phase.to_string(), &Phase::Quiet.to_string(), Metric::P99)
    };
    vec![
        figure(bars::BROWNOUT_BLACK_HOLE, Phase::BlackHole),
        figure(bars::BROWNOUT_HERD, Phase::Herd),
    ]
}
