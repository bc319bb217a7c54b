//! `cold`: what a cache costs the first client.

use super::{GIB, KIB, MIB, clients};
use crate::{
    bars::{self, Figure},
    contestant::{Contestant, STATIC_AND_CACHE},
    memory,
    metric::{Metric, Values},
    pull::{Model, pull},
    report::Section,
    stage::{Stage, sync_disks},
    timeline::Timeline,
    trials::Part,
    upstream::Behaviour,
    usage::Meter,
};
use anyhow::Result;

const MEDIUM_SHAPED: &str = "five layers, 20 ms and 100 MB/s a connection";
const MEDIUM_BARE: &str = "five layers, bare loopback";
const LARGE_SHAPED: &str = "one large layer, 20 ms and 100 MB/s a connection";
const LARGE_RANGES: &str = "one large layer, by a client that asks in four ranges";
const LARGE_SLOW: &str = "one large layer, 20 MB/s a connection";
const SMALL_SHAPED: &str = "small image, 20 ms";

const METRICS: [Metric; 8] = [
    Metric::Wall,
    Metric::FirstByte,
    Metric::Amplification,
    Metric::UpstreamRequests,
    Metric::RangedGets,
    Metric::Cpu,
    Metric::PeakMemory,
    Metric::Busy,
];

struct Work {
    part: &'static str,
    about: &'static str,
    layers: Vec<u64>,
    upstream: Behaviour,
    model: Model,
    contestants: &'static [Contestant],
}

const ALL: [Contestant; 6] = [
    Contestant::Direct,
    Contestant::Hydrant,
    Contestant::HydrantS3,
    Contestant::NginxCache,
    Contestant::Registry,
    Contestant::RegistryS3,
];
const ON_FILES: [Contestant; 5] = [
    Contestant::Direct,
    Contestant::Hydrant,
    Contestant::HydrantRanges,
    Contestant::NginxCache,
    Contestant::Registry,
];
const IN_RANGES: [Contestant; 3] =
    [Contestant::Direct, Contestant::Hydrant, Contestant::HydrantRanges];
const BY_RANGES: [Contestant; 2] = [Contestant::Direct, Contestant::HydrantRanges];

fn works(stage: &Stage) -> Vec<Work> {
    let shaped = Behaviour::latency(20).megabytes_per_connection(100);
    // Quick runs keep the shape and shrink the sizes.
    let shrunk = stage.effort().pick(64, 8, 1);
    let medium: Vec<u64> = [200, 100, 40, 8, 2].map(|mib| mib * MIB / shrunk).into();
    let large = vec![2 * GIB / shrunk];
    let work = |part, about, layers: &[u64], upstream, contestants| Work {
        part,
        about,
        layers: layers.to_vec(),
        upstream,
        model: Model::Docker,
        contestants,
    };
    let small = [256 * KIB, 64 * KIB, 4 * KIB];
    vec![
        work(SMALL_SHAPED, "Three small layers.", &small, Behaviour::latency(20), &ALL),
        work(MEDIUM_SHAPED, "Five layers from a usual registry.", &medium, shaped, &ALL),
        work(
            MEDIUM_BARE,
            "Five layers as fast as loopback goes: hashing and storing share the cores.",
            &medium,
            Behaviour::default(),
            &ALL,
        ),
        work(
            LARGE_SHAPED,
            "One layer, which a single connection bounds.",
            &large,
            shaped,
            &ON_FILES,
        ),
        Work {
            model: Model::Containerd,
            ..work(LARGE_RANGES, "containerd's parallel ranges.", &large, shaped, &IN_RANGES)
        },
        work(
            LARGE_SLOW,
            "One layer from a registry that gives each connection little.",
            &[512 * MIB / shrunk],
            Behaviour::default().megabytes_per_connection(20),
            &BY_RANGES,
        ),
    ]
}

pub async fn play(stage: &mut Stage) -> Result<()> {
    stage
        .section
        .set("client", "HEAD tag, index, manifest, three layers at a time, digests verified");
    stage.section.set("store and processes", "new and empty for each pull; disks synced before");
    stage.section.set("memory", memory::TOUCHED);
    stage.section.set("nginx", STATIC_AND_CACHE);
    for work in works(stage) {
        let size: u64 = work.layers.iter().sum();
        let about = format!("{} {:.1} MiB of layers.", work.about, size as f64 / MIB as f64);
        let part = Part::new(work.part, &about, &METRICS).against(Contestant::Direct.name());
        let contestants = stage.contestants(work.contestants);
        stage
            .rounds(part, &contestants, async |stage, contestant, _| {
                trial(stage, *contestant, &work).await
            })
            .await;
    }
    Ok(())
}

async fn trial(stage: &mut Stage, contestant: Contestant, work: &Work) -> Result<Values> {
    let image = stage.image(&work.layers).await?;
    let running = contestant.start(stage, 1).await?;
    sync_disks().await?;
    memory::touch(work.layers.iter().sum()).await?;
    stage.upstream.behave(work.upstream).await?;
    stage.upstream.reset().await?;
    let timeline = Timeline::start(running.watched.clone(), &stage.upstream, None);
    let meter = Meter::start(&running.watched);
    let pulled = pull(running.source(0), &image.repository, &image.tag, work.model).await?;
    let mut values = Values::from([
        (Metric::Wall, pulled.took.as_secs_f64()),
        (Metric::FirstByte, pulled.first_byte.as_secs_f64() * 1e3),
    ]);
    meter.read_machine(&mut values);
    // The work behind the pull belongs to it as well.
    clients::ended(stage, &running, &[&image]).await?;
    meter.read(pulled.bytes, &mut values);
    clients::cost(stage, &[&image], &mut values).await?;
    stage.upstream.behave(Behaviour::default()).await?;
    // Everybody is watched alike; the page has room for one.
    let charts = timeline.charts(&format!("{}, {contestant}", work.part)).await;
    if contestant == Contestant::Hydrant {
        stage.section.put_charts(charts);
    }
    Ok(values)
}

pub fn figures(section: &Section) -> Vec<Figure> {
    let (direct, hydrant, s3) =
        (Contestant::Direct.name(), Contestant::Hydrant.name(), Contestant::HydrantS3.name());
    let empty = Part::default();
    let part = |name| section.part(name).unwrap_or(&empty);
    let (shaped, bare) = (part(MEDIUM_SHAPED), part(MEDIUM_BARE));
    let (large, slow) = (part(LARGE_SHAPED), part(LARGE_SLOW));
    let ranges = Contestant::HydrantRanges.name();
    vec![
        bars::COLD_SHAPED.ratio(shaped, hydrant, direct, Metric::Wall),
        bars::COLD_SHAPED_S3.ratio(shaped, s3, direct, Metric::Wall),
        bars::COLD_LARGE.ratio(large, ranges, direct, Metric::Wall),
        bars::COLD_SLOW.ratio(slow, ranges, direct, Metric::Wall),
        bars::COLD_BARE.ratio(bare, hydrant, direct, Metric::Wall),
        bars::COLD_BARE_S3.ratio(bare, s3, direct, Metric::Wall),
        bars::COLD_FIRST_BYTE.difference(shaped, hydrant, direct, Metric::FirstByte),
        bars::MEMORY_LARGE.value(large, hydrant, Metric::PeakMemory),
    ]
}
