//! `smoke`: a little of everything in under a minute, judged by counts: requests, bytes, errors.
//! It has no opinion on time.

use super::{KIB, MIB, clients, herd};
use crate::{
    cluster::{BusKind, Cluster, Shape},
    contestant::{Contestant, Running},
    load::{self, Ask, Pace, Plan},
    metric::{Metric, Values},
    pull::{Model, pull},
    report::Section,
    stage::Stage,
    trials::Part,
    upstream::Inserted,
    wire::{Request, Session},
};
use anyhow::{Context, Result, ensure};
use hydrant_testkit::WebhookSink;
use std::{collections::HashSet, time::Duration};

const HERD: &str = "herd";
const COLD: &str = "cold, in ranges";
const WARM: &str = "warm";
const WEBHOOKS: &str = "webhooks";
const REQUESTS: u64 = 200;
const IMAGES: usize = 10;
const LIMIT: Duration = Duration::from_secs(45);

pub async fn play(stage: &mut Stage) -> Result<()> {
    let all = [Contestant::Hydrant, Contestant::NginxCache, Contestant::Registry];
    let all = stage.contestants(&all);
    let part = Part::new(
        HERD,
        "10 clients at once through two instances.",
        &[Metric::Amplification, Metric::MostGets, Metric::RangedGets, Metric::Errors],
    );
    stage
        .rounds(part, &all, async |stage, contestant, _| {
            let image = stage.image(&[MIB, 100 * KIB]).await?;
            herd::trial(stage, HERD, *contestant, 2, &[&image; 10]).await
        })
        .await;
    let part = Part::new(COLD, "One client in parallel ranges.", &[Metric::Amplification]);
    stage
        .rounds(part, &[Contestant::Hydrant], async |stage, contestant, _| {
            ranges(stage, *contestant).await
        })
        .await;
    let part = Part::new(WARM, "Requests at a rate.", &[Metric::Errors, Metric::UpstreamRequests]);
    stage
        .rounds(part, &[Contestant::Hydrant], async |stage, contestant, _| {
            warm(stage, *contestant).await
        })
        .await;
    let part = Part::new(WEBHOOKS, "Images asked for by API.", &[Metric::Queue, Metric::Errors]);
    stage.rounds(part, &[Contestant::Hydrant], async |stage, _, _| webhooks(stage).await).await;
    judge(&stage.section)
}

async fn ranges(stage: &mut Stage, contestant: Contestant) -> Result<Values> {
    let image = stage.image(&[40 * MIB]).await?;
    let running = contestant.start(stage, 1).await?;
    stage.upstream.reset().await?;
    pull(running.source(0), &image.repository, &image.tag, Model::Containerd).await?;
    clients::hydrated(&running, &[&image]).await?;
    let mut values = Values::new();
    clients::cost(stage, &[&image], &mut values).await?;
    Ok(values)
}

async fn warm(stage: &mut Stage, contestant: Contestant) -> Result<Values> {
    let image = stage.image(&[64 * KIB]).await?;
    let running = contestant.start(stage, 1).await?;
    pull(running.source(0), &image.repository, &image.tag, Model::Docker).await?;
    clients::hydrated(&running, &[&image]).await?;
    let asks = asks(&running, &image).await?;
    stage.upstream.reset().await?;
    let plan = Plan { pace: Pace::Open(100.0), connections: 8, time: LIMIT, most: REQUESTS };
    let outcome = load::run(plan, asks).await;
    let counters = stage.upstream.counters().await?;
    let mut values = outcome.values();
    values.insert(Metric::Errors, (REQUESTS - outcome.done) as f64);
    values.insert(Metric::UpstreamRequests, counters.requests() as f64);
    Ok(values)
}

async fn asks(running: &Running, image: &Inserted) -> Result<Vec<Ask>> {
    let (source, digest) = (running.source(0), image.largest().0);
    let mut asks = Vec::new();
    for request in [
        Request::get(source.manifest(&image.repository, &image.tag)),
        Request::get(source.manifest(&image.repository, &image.child)),
        Request::get(source.blob(&image.repository, digest)),
        Request::part(source.blob(&image.repository, digest), 100..2_100),
    ] {
        let answer = Session::default().fetch(&source.authority, &request, |_| {}).await?;
        ensure!(matches!(answer.head.status, 200 | 206), "{} {}", request.path, answer.head.status);
        let length = answer.length;
        asks.push(Ask { authority: source.authority.clone(), request, length });
    }
    Ok(asks)
}

/// Errors are images that were not announced.
async fn webhooks(stage: &mut Stage) -> Result<Values> {
    let images = stage.images(IMAGES, &[1_000]).await?;
    let sink = WebhookSink::start().await;
    let shape = Shape::roles(stage.upstream.url(), 0, 2, BusKind::Default);
    let cluster = Cluster::start(&Shape { webhook: Some(&sink), ..shape }).await?;
    for image in images.iter().chain(&images) {
        cluster.api().hydrate(&image.name()).await?;
    }
    let received = sink.wait_for(IMAGES, LIMIT).await;
    let told = received.iter().map(|request| request.json()["data"]["repository"].to_string());
    let told: HashSet<String> = told.collect();
    let queue = cluster.api().queue().await?;
    Ok(Values::from([
        (Metric::Errors, IMAGES.saturating_sub(told.len()) as f64),
        (Metric::Queue, queue as f64),
    ]))
}

fn judge(section: &Section) -> Result<()> {
    let hydrant = Contestant::Hydrant.name();
    let value = |part: &str, metric: Metric| {
        let part = section.part(part).with_context(|| format!("{part} was not measured"))?;
        if let Some(why) = part.failure(hydrant) {
            anyhow::bail!("{}: {why}", part.name);
        }
        let spread = part.spread(hydrant, metric);
        spread.map(|spread| spread.max).with_context(|| format!("{} lacks a value", part.name))
    };
    for part in [HERD, COLD] {
        let amplification = value(part, Metric::Amplification)?;
        ensure!((0.99..=1.01).contains(&amplification), "{part}: {amplification} times its bytes");
    }
    ensure!(value(HERD, Metric::MostGets)? == 1.0, "a blob or manifest was fetched again");
    ensure!(value(HERD, Metric::RangedGets)? == 0.0, "a blob was fetched in parts");
    for part in [HERD, WARM, WEBHOOKS] {
        let errors = value(part, Metric::Errors)?;
        ensure!(errors == 0.0, "{part}: {errors} errors");
    }
    let requests = value(WARM, Metric::UpstreamRequests)?;
    ensure!(requests == 0.0, "{requests} requests reached the upstream for what is cached");
    Ok(())
}
