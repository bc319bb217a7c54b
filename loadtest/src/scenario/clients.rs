//! Clients that pull at the same time, and what their pulls cost the upstream.

use crate::{
    contestant::Running,
    metric::{Metric, Values},
    pull::{Model, Pulled, pull},
    spread::quantile,
    stage::Stage,
    upstream::{Inserted, Upstream},
};
use anyhow::{Context, Result};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use tokio::{task::JoinSet, time::sleep};

/// How long hydration may take after the last client is served.
const HYDRATION_LIMIT: Duration = Duration::from_secs(300);
/// How long an upstream is asked nothing when nobody reads on behind the clients.
const STILL: Duration = Duration::from_millis(300);
/// How long that may take.
const STILL_LIMIT: Duration = Duration::from_secs(30);

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

    /// How many failed, and how the first did; `None` when all came.
    pub fn complaint(&self) -> Option<String> {
        let first = self.errors.first()?;
        let (failed, all) = (self.errors.len(), self.errors.len() + self.done.len());
        Some(format!("{failed} of {all} pulls failed, as {first}"))
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

/// Waits until what goes on behind the clients is done, so that it is in the counters, and in no
/// other's turn.
pub async fn ended(stage: &mut Stage, running: &Running, images: &[&Inserted]) -> Result<()> {
    hydrated(running, images).await?;
    if running.api.is_none() && !still(&stage.upstream).await? {
        stage.section.note(format!(
            "The upstream was still read {STILL_LIMIT:?} after the last client of {}.",
            running.source(0).authority
        ));
    }
    Ok(())
}

/// Whether the upstream came to be read by nobody.
async fn still(upstream: &Upstream) -> Result<bool> {
    let started = Instant::now();
    let mut earlier = upstream.counters().await?;
    while started.elapsed() < STILL_LIMIT {
        sleep(STILL).await;
        let now = upstream.counters().await?;
        if now.stands_still_since(&earlier) {
            return Ok(true);
        }
        earlier = now;
    }
    Ok(false)
}

/// Bytes of `images`, each counted once.
pub fn bytes(images: &[&Inserted]) -> u64 {
    let distinct: HashMap<_, _> = images.iter().map(|i| (i.name(), i.bytes)).collect();
    distinct.values().sum()
}

/// What `images`, each counted once, cost the upstream since its counters were reset.
pub async fn cost(stage: &Stage, images: &[&Inserted], values: &mut Values) -> Result<()> {
    let counters = stage.upstream.counters().await?;
    values.insert(Metric::Amplification, counters.bytes as f64 / bytes(images) as f64);
    values.insert(Metric::MostGets, counters.most_gets as f64);
    values.insert(Metric::RangedGets, counters.ranged_gets as f64);
    values.insert(Metric::PeakOpen, counters.peak_open as f64);
    values.insert(Metric::UpstreamRequests, counters.requests() as f64);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_pull_is_told_with_how_many_there_were() {
        let pulled = Pulled { took: Duration::ZERO, first_byte: Duration::ZERO, bytes: 1 };
        let mut pulls = Pulls { done: vec![pulled; 3], errors: Vec::new(), took: Duration::ZERO };
        assert_eq!(pulls.complaint(), None);
        pulls.errors = vec!["status 502".to_owned(), "status 503".to_owned()];
        assert_eq!(pulls.complaint().unwrap(), "2 of 5 pulls failed, as status 502");
    }
}
