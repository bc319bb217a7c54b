//! `herd`: many clients at once, and what they cost the upstream.

use super::{KIB, MIB, clients};
use crate::{
    bars::{self, Figure},
    contestant::{Contestant, STATIC_AND_CACHE},
    memory,
    metric::{Metric, Values},
    pull::Model,
    report::Section,
    stage::{Stage, sync_disks},
    timeline::Timeline,
    trials::Part,
    upstream::{Behaviour, Inserted},
    usage::Meter,
};
use anyhow::{Result, ensure};

const FRONTENDS: usize = 3;
const FIFTY: &str = "a herd, one image";
const MANY: &str = "a large herd, one image";
const ONE: &str = "a herd at one process";
const MIX: &str = "a herd over a mix of images";
const STREAMS: &str = "cold streams at once";

const METRICS: [Metric; 9] = [
    Metric::Amplification,
    Metric::MostGets,
    Metric::RangedGets,
    Metric::UpstreamRequests,
    Metric::Wall,
    Metric::P50,
    Metric::P99,
    Metric::PeakMemory,
    Metric::Errors,
];

const CONTESTANTS: [Contestant; 3] =
    [Contestant::Hydrant, Contestant::NginxCache, Contestant::Registry];

pub async fn play(stage: &mut Stage) -> Result<()> {
    stage
        .section
        .set("instances", format!("{FRONTENDS}; hydrant: frontends over one store, one importer"));
    stage.section.set("upstream", "20 ms, 100 MB/s a connection");
    stage.section.set("memory", memory::TOUCHED);
    stage.section.set("nginx", STATIC_AND_CACHE);
    let effort = stage.effort();
    let layers =
        effort.pick(vec![MIB, 64 * KIB], vec![4 * MIB, MIB], vec![20 * MIB, 8 * MIB, 4 * MIB]);
    one_image(stage, FIFTY, effort.pick(8, 50, 50), FRONTENDS, &layers).await;
    if !stage.options.is_external() || effort > crate::arguments::Effort::Quick {
        one_image(stage, MANY, effort.pick(16, 200, 200), FRONTENDS, &layers).await;
    }
    // Layers that land while some of the herd are still on their way to them.
    one_image(stage, ONE, effort.pick(16, 50, 50), 1, &[MIB, 100 * KIB]).await;
    mix(stage).await;
    streams(stage).await;
    Ok(())
}

async fn one_image(stage: &mut Stage, name: &str, count: usize, instances: usize, layers: &[u64]) {
    let about = format!("{count} clients pull one image; instances: {instances}.");
    let part = Part::new(name, &about, &METRICS);
    let contestants = stage.contestants(&CONTESTANTS);
    stage
        .rounds(part, &contestants, async |stage, contestant, _| {
            let image = stage.image(layers).await?;
            trial(stage, name, *contestant, instances, &vec![&image; count]).await
        })
        .await;
}

/// Popular images are pulled often, others once in a while.
async fn mix(stage: &mut Stage) {
    let (kinds, count) = stage.effort().pick((4, 8), (10, 40), (30, 150));
    let about = format!(
        "{count} clients pull {kinds} images through {FRONTENDS} instances; the n-th image is \
         pulled 1/n as often as the first (Zipf)."
    );
    let part = Part::new(MIX, &about, &METRICS);
    let contestants = stage.contestants(&CONTESTANTS);
    stage
        .rounds(part, &contestants, async |stage, contestant, round| {
            let images = stage.images(kinds, &[2 * MIB, 256 * KIB]).await?;
            let chosen = zipf(kinds, count, u64::from(round));
            let wanted: Vec<&Inserted> = chosen.into_iter().map(|n| &images[n]).collect();
            trial(stage, MIX, *contestant, FRONTENDS, &wanted).await
        })
        .await;
}

/// Different images, each slow, so that all streams are open together.
async fn streams(stage: &mut Stage) {
    let count = stage.effort().pick(20, 100, 500);
    let about = format!(
        "{count} clients, each with an image of its own, through one instance; open together are \
         answers of the upstream that were under way at one moment."
    );
    let part = Part::new(
        STREAMS,
        &about,
        &[Metric::PeakMemory, Metric::PeakOpen, Metric::Wall, Metric::P99, Metric::Errors],
    );
    let all = [Contestant::HydrantWide, Contestant::NginxCache, Contestant::Registry];
    let contestants = stage.contestants(&all);
    stage
        .rounds(part, &contestants, async |stage, contestant, _| {
            let images = stage.images(count, &[2 * MIB]).await?;
            trial(stage, STREAMS, *contestant, 1, &images.iter().collect::<Vec<_>>()).await
        })
        .await;
}

/// Everybody pulls at once from somebody who has nothing.
pub async fn trial(
    stage: &mut Stage,
    part: &str,
    contestant: Contestant,
    instances: usize,
    images: &[&Inserted],
) -> Result<Values> {
    let running = contestant.start(stage, instances).await?;
    sync_disks().await?;
    memory::touch(clients::bytes(images) * instances as u64).await?;
    let rate = if part == STREAMS { 512 * KIB } else { 100_000_000 };
    let shaped = Behaviour { connection_rate: Some(rate), ..Behaviour::latency(20) };
    stage.upstream.behave(shaped).await?;
    stage.upstream.reset().await?;
    let timeline = Timeline::start(running.watched.clone(), &stage.upstream, running.api.clone());
    let meter = Meter::start(&running.watched);
    let pulls = clients::at_once(&running, images, Model::Docker).await;
    let mut values = pulls.values();
    meter.read_machine(&mut values);
    clients::ended(stage, &running, images).await?;
    meter.read(pulls.bytes(), &mut values);
    clients::cost(stage, images, &mut values).await?;
    stage.upstream.behave(Behaviour::default()).await?;
    let charts = timeline.charts(&format!("{part}, {contestant}")).await;
    if contestant.is_hydrant() {
        stage.section.put_charts(charts);
    }
    if let Some(complaint) = pulls.complaint() {
        ensure!(!contestant.is_hydrant(), "{complaint}");
        stage.section.note(format!("{part}, {contestant}: {complaint}."));
    }
    Ok(values)
}

/// `count` choices among `kinds`, the n-th with weight 1/n; the same for the same seed.
fn zipf(kinds: usize, count: usize, seed: u64) -> Vec<usize> {
    let weights: Vec<f64> = (1..=kinds).map(|n| 1.0 / n as f64).collect();
    let total: f64 = weights.iter().sum();
    let choose = |n: usize| {
        // Low-discrepancy points spread evenly over the weights (multiples of the golden ratio).
        let point = ((n as f64 + seed as f64 * 0.1) * 0.618_033_988_749_895).fract() * total;
        let mut below = 0.0;
        let at = weights.iter().position(|weight| {
            below += weight;
            point < below
        });
        at.unwrap_or(kinds - 1)
    };
    (0..count).map(choose).collect()
}

pub fn figures(section: &Section) -> Vec<Figure> {
    let hydrant = Contestant::Hydrant.name();
    let empty = Part::default();
    let part = |name| section.part(name).unwrap_or(&empty);
    let (fifty, many) = (part(FIFTY), part(MANY));
    vec![
        bars::HERD_BYTES.value(fifty, hydrant, Metric::Amplification),
        bars::HERD_GETS.value(fifty, hydrant, Metric::MostGets),
        bars::HERD_MANY_BYTES.value(many, hydrant, Metric::Amplification),
        bars::HERD_MANY_GETS.value(many, hydrant, Metric::MostGets),
        bars::HERD_ONE.value(part(ONE), hydrant, Metric::Amplification),
        bars::MEMORY_STREAMS.value(
            part(STREAMS),
            Contestant::HydrantWide.name(),
            Metric::PeakMemory,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_image_is_pulled_most() {
        let chosen = zipf(5, 1_000, 3);
        let count = |n| chosen.iter().filter(|chosen| **chosen == n).count();
        assert!(count(0) > count(1) && count(1) > count(4) && count(4) > 0);
    }
}
