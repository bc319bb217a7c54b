//! `brownout`: whether those who read what is cached notice that an upstream is in trouble.

use super::{KIB, MIB, clients};
use crate::{
    bars::{self, Figure},
    cluster::{Cluster, Shape},
    contestant::Running,
    load::{self, Ask, Outcome, Pace, Plan},
    metric::Metric,
    pull::{Model, pull},
    report::{Chart, Section},
    stage::Stage,
    trials::Part,
    upstream::{Behaviour, Fault, Upstream},
    wire::{Request, Session},
};
use anyhow::Result;
use std::{fmt, time::Duration};
use tokio::time::sleep;

const PART: &str = "warm traffic";
/// Requests per second to the upstream in trouble.
const COLD_RATE: f64 = 20.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Quiet,
    Slow,
    Errors,
    Limited,
    BlackHole,
    Flapping,
    Herd,
}

const PHASES: [Phase; 7] = [
    Phase::Quiet,
    Phase::Slow,
    Phase::Errors,
    Phase::Limited,
    Phase::BlackHole,
    Phase::Flapping,
    Phase::Herd,
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
        })
    }
}

impl Phase {
    fn behaviour(self) -> Behaviour {
        match self {
            Self::Quiet | Self::Herd => Behaviour::default(),
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
}

pub async fn play(stage: &mut Stage) -> Result<()> {
    let rate = stage.effort().pick(50.0, 200.0, 500.0);
    let about = format!(
        "{rate} requests/s for cached manifests and 64 KiB blobs, due at fixed times, while \
         {COLD_RATE} requests/s miss at another upstream, or 50 clients pull a cold image."
    );
    let lab = prepare(stage).await?;
    let metrics =
        [Metric::P99, Metric::P50, Metric::P999, Metric::Slowest, Metric::Unserved, Metric::Errors];
    let part = Part::new(PART, &about, &metrics).against(&Phase::Quiet.to_string());
    stage
        .rounds(part, &PHASES, async |stage, phase, _| {
            lab.troubled.behave(phase.behaviour()).await?;
            let outcome = measure(stage, &lab, *phase, rate).await?;
            lab.troubled.behave(Behaviour::default()).await?;
            // What hangs and what the breaker remembers would fall on the next phase.
            sleep(stage.effort().pick(
                Duration::ZERO,
                Duration::from_secs(2),
                Duration::from_secs(10),
            ))
            .await;
            chart(stage, *phase, &outcome);
            Ok(outcome.values())
        })
        .await;
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
    Ok(Lab { running, troubled, warm })
}

/// The warm load, with what else goes on in the phase.
async fn measure(stage: &Stage, lab: &Lab, phase: Phase, rate: f64) -> Result<Outcome> {
    let time = stage.options.phase();
    let plan = Plan { pace: Pace::Open(rate), connections: 64, time, most: u64::MAX };
    let warm = load::run(plan, lab.warm.clone());
    Ok(match phase {
        Phase::Quiet => warm.await,
        Phase::Herd => {
            let size = stage.effort().pick(MIB, 8 * MIB, 64 * MIB);
            let image = stage.image(&[size]).await?;
            let herd = vec![&image; 50];
            let (outcome, _) =
                tokio::join!(warm, clients::at_once(&lab.running, &herd, Model::Docker));
            clients::hydrated(&lab.running, &[&image]).await?;
            outcome
        }
        _ => {
            let cold = Plan { pace: Pace::Open(COLD_RATE), connections: 64, time, most: 10_000 };
            let (outcome, _) = tokio::join!(warm, load::run(cold, misses(stage, lab)));
            outcome
        }
    })
}

/// Tags that nobody has; what they are answered does not matter here.
fn misses(stage: &Stage, lab: &Lab) -> Vec<Ask> {
    let authority = lab.running.source(0).authority.clone();
    let ask = |n: u64| Ask {
        authority: authority.clone(),
        request: Request::get(format!("/v2/other/app-{}/manifests/{n}", stage.new_seed())),
        length: 0,
    };
    (0..1_000).map(ask).collect()
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
