//! Clients that pull at the same time, and what their pulls cost the upstream.

use crate::{
    contestant::Running,
    metric::{Metric, Values},
    pull::{Model, Pulled, pull},
    spread::quantile,
    stage::Stage,
    upstream::Inserted,
};
use anyhow::{Context, Result};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// How long hydration may take after the last client is served.
const HYDRATION_LIMIT: Duration = Duration::from_secs(300);

/// What a number of pulls came to.
pub struct Pulls {
    pub done: Vec<Pulled>,
    pub errors: Vec<String>,
    /// Until the last was done.
    pub took: Duration,
}

/// Client `n` pulls the `n`th of `images`, all at once.
pub async fn at_once(running: &Running, images: &[&Inserted], model: Model) -> Pulls {
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for (n, image) in images.iter().enumerate() {
        let (source, image) = (running.source(n).clone(), (*image).clone());
        clients.spawn(async move { pull(&source, &image.repository, &image.tag, model).await });
    }
    let mut pulls = Pulls { done: Vec::new(), errors: Vec::new(), took: Duration::ZERO };
    while let Some(pulled) = clients.join_next().await {
        match pulled.context("a client does not panic").flatten() {
            Ok(pulled) => pulls.done.push(pulled),
            Err(error) => pulls.errors.push(format!("{error:#}")),
        }
    }
    pulls.took = started.elapsed();
    pulls
}

impl Pulls {
    pub fn bytes(&self) -> u64 {
        self.done.iter().map(|pulled| pulled.bytes).sum()
    }

    pub fn values(&self) -> Values {
        let mut seconds: Vec<_> = self.done.iter().map(|p| p.took.as_secs_f64()).collect();
        seconds.sort_by(f64::total_cmp);
        let mut values = Values::from([
            (Metric::Wall, self.took.as_secs_f64()),
            (Metric::Errors, self.errors.len() as f64),
        ]);
        if !seconds.is_empty() {
            values.insert(Metric::P50, quantile(&seconds, 0.5) * 1e3);
            values.insert(Metric::P99, quantile(&seconds, 0.99) * 1e3);
        }
        values
    }
}

/// Waits until what was pulled is durable, where there is somebody to ask.
pub async fn hydrated(running: &Running, images: &[&Inserted]) -> Result<()> {
    let Some(api) = &running.api else {
        return Ok(());
    };
    let distinct: HashMap<String, ()> = images.iter().map(|image| (image.name(), ())).collect();
    for name in distinct.keys() {
        api.hydrated(name, HYDRATION_LIMIT).await?;
    }
    Ok(())
}

/// What `images`, each counted once, cost the upstream since its counters were reset.
pub async fn cost(stage: &Stage, images: &[&Inserted], values: &mut Values) -> Result<()> {
    let counters = stage.upstream.counters().await?;
    let distinct: HashMap<_, _> = images.iter().map(|i| (i.name(), i.bytes)).collect();
    let bytes: u64 = distinct.values().sum();
    values.insert(Metric::Amplification, counters.bytes as f64 / bytes as f64);
    values.insert(Metric::MostGets, counters.most_gets as f64);
    let requests = counters.heads + counters.manifest_gets + counters.blob_gets;
    values.insert(Metric::UpstreamRequests, requests as f64);
    Ok(())
}
