//! `brownout`: whether those who read what is cached notice that an upstream is in trouble.

use super::{KIB, MIB, clients};
use crate::{
    bars::{self, Figure},
    cluster::{Api, Cluster, Shape},
    contestant::Running,
    load::{self, Ask, Outcome, Pace, Plan},
    metric::Metric,
    pull::{Model, pull},
    report::{Chart, Section},
    stage::Stage,
    trials::Part,
    upstream::{Behaviour, Fault, Inserted, Upstream},
    wire::{Request, Session},
};
use anyhow::{Context, Result};
use std::{
    fmt, mem,
    time::{Duration, Instant},
};
use tokio::time::sleep;

const PART: &str = "warm traffic";
/// Requests per second for images of the upstream in trouble that nobody has asked for before.
const COLD_RATE: f64 = 50.0;
/// Images of it that are asked for in the background in each phase, to be local when all is over.
const ASKED: usize = 10;
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
         50 clients pull a cold image, through hydrant or from the upstream itself. Upstream requests are those at the other upstream."
    );
    let mut lab = prepare(stage).await?;
    let metrics = [
        Metric::P99,
        Metric::P50,
        Metric::P999,
        Metric::Slowest,
        Metric::Unserved,
        Metric::Errors,
        Metric::UpstreamRequests,
    ];
    let part = Part::new(PART, &about, &metrics).against(&Phase::Quiet.to_string());
    stage
        .rounds(part, &PHASES, async |stage, phase, _| {
            lab.troubled.reset().await?;
            lab.troubled.behave(phase.behaviour()).await?;
            let misses = misses(stage, &mut lab, *phase).await?;
            let outcome = measure(stage, &lab, misses, *phase, rate).await?;
            let asked = lab.troubled.counters().await?;
            // What hangs and what the breaker remembers would fall on the next phase.
            recovery(stage, &mut lab, *phase).await?;
            chart(stage, *phase, &outcome);
            let mut values = outcome.values();
            let requests = asked.heads + asked.manifest_gets + asked.blob_gets + asked.spoilt;
            values.insert(Metric::UpstreamRequests, requests as f64);
            Ok(values)
        })
        .await;
    Ok(())
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

/// The warm load, with what else goes on in the phase.
async fn measure(
    stage: &Stage,
    lab: &Lab,
    misses: Vec<Ask>,
    phase: Phase,
    rate: f64,
) -> Result<Outcome> {
    let time = length(stage);
    let plan = Plan { pace: Pace::Open(rate), connections: 64, time, most: u64::MAX };
    let warm = load::run(plan, lab.warm.clone());
    Ok(match phase {
        Phase::Quiet => warm.await,
        Phase::Herd => herd(stage, &lab.running, warm).await?,
        Phase::HerdDirect => herd(stage, &Running::direct(&stage.upstream), warm).await?,
        _ => {
            let most = misses.len() as u64;
            let cold = Plan { pace: Pace::Open(COLD_RATE), connections: 64, time, most };
            let (outcome, _) = tokio::join!(warm, load::run(cold, misses));
            outcome
        }
    })
}

/// 50 clients pull one new image at once, as the warm load begins.
async fn herd(
    stage: &Stage,
    running: &Running,
    warm: impl Future<Output = Outcome>,
) -> Result<Outcome> {
    let size = stage.effort().pick(MIB, 8 * MIB, 64 * MIB);
    let image = stage.image(&[size]).await?;
    let herd = vec![&image; 50];
    let (outcome, _) = tokio::join!(warm, clients::at_once(running, &herd, Model::Docker));
    clients::hydrated(running, &[&image]).await?;
    Ok(outcome)
}

/// A 99th percentile needs some thousands of requests.
fn length(stage: &Stage) -> Duration {
    stage.effort().pick(1, 3, 3) * stage.options.phase()
}

/// Asks for images that are new to everybody, one after the other; what the clients are answered does
/// not matter here. Some are wanted in the background besides.
async fn misses(stage: &Stage, lab: &mut Lab, phase: Phase) -> Result<Vec<Ask>> {
    if matches!(phase, Phase::Quiet | Phase::Herd | Phase::HerdDirect) {
        return Ok(Vec::new());
    }
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
    let errors = outcome.over_time(|second| second.errors as f64);
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
