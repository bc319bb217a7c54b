//! `warm`: what is cached, as fast as it can be read, beside nginx reading the same files.

use super::{KIB, MIB, clients};
use crate::{
    bars::{self, Figure},
    contestant::{Contestant, Nginx, Running, STATIC_AND_CACHE},
    load::{self, Ask, Outcome, Pace, Plan},
    memory,
    metric::Metric,
    pull::{Model, Source, pull},
    report::{Chart, Section},
    stage::{Stage, sync_disks},
    timeline::Timeline,
    trials::Part,
    upstream::Inserted,
    usage::Meter,
    wire::{Request, Session},
};
use anyhow::{Context, Result, anyhow, ensure};

const MANIFEST_TAG: &str = "manifest by tag";
const MANIFEST_DIGEST: &str = "manifest by digest";
const SMALL: &str = "blob of 1 MiB";
const LARGE: &str = "large blob";
const RANGES: &str = "ranges of 64 KiB in a large blob";
const PACED: &str = "manifest by tag at half of hydrant's rate";

const CONTESTANTS: [Contestant; 6] = [
    Contestant::NginxStatic,
    Contestant::Hydrant,
    Contestant::HydrantS3,
    Contestant::HydrantRedirect,
    Contestant::NginxCache,
    Contestant::Registry,
];

const BY_COUNT: [Metric; 6] =
    [Metric::Rate, Metric::P50, Metric::P99, Metric::ClientCpu, Metric::Busy, Metric::Errors];
const BY_BYTES: [Metric; 6] = [
    Metric::Throughput,
    Metric::CpuPerGb,
    Metric::P50,
    Metric::ClientCpu,
    Metric::Busy,
    Metric::Errors,
];

/// What is asked for again and again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Tag,
    Digest,
    Small,
    Large,
    Parts,
}

/// The images that everybody holds.
struct Shelf {
    small: Inserted,
    large: Inserted,
    /// Bytes of the small image's index.
    index: u64,
}

/// Those that could be started and filled; the others say why not when it is their turn.
type Warmed = Vec<(Contestant, Result<Running, String>)>;

pub async fn play(stage: &mut Stage) -> Result<()> {
    let connections = connections(stage);
    stage.section.set("connections", connections);
    stage.section.set("nginx", STATIC_AND_CACHE);
    stage.section.set("phase", format!("{:?}", stage.options.phase()));
    stage.section.set("before the clock", "connections opened, each request answered once");
    stage.section.set("memory", memory::TOUCHED);
    let large = stage.effort().pick(4 * MIB, 64 * MIB, 512 * MIB);
    let small = stage.image(&[MIB]).await?;
    let source = Source { authority: stage.upstream.authority().to_owned(), prefix: String::new() };
    let index = length(&source, &small).await?;
    let shelf = Shelf { small, large: stage.image(&[large]).await?, index };
    let warmed = warm_all(stage, &shelf).await;
    for (name, what, metrics, connections) in [
        (MANIFEST_TAG, What::Tag, BY_COUNT, connections),
        (MANIFEST_DIGEST, What::Digest, BY_COUNT, connections),
        (SMALL, What::Small, BY_COUNT, connections),
        (LARGE, What::Large, BY_BYTES, 4),
        (RANGES, What::Parts, BY_COUNT, connections),
    ] {
        let about = format!("{connections} connections, each asking again when it was answered.");
        let plan =
            Plan { pace: Pace::Closed, connections, time: stage.options.phase(), most: u64::MAX };
        let part = Part::new(name, &about, &metrics);
        kind(stage, part, &warmed, &shelf, what, plan).await;
    }
    paced(stage, &warmed, &shelf).await;
    Ok(())
}

/// Enough to keep a server busy, few enough not to measure the scheduler.
fn connections(stage: &Stage) -> usize {
    stage.effort().pick(4, 16, 32)
}

async fn kind(
    stage: &mut Stage,
    part: Part,
    warmed: &Warmed,
    shelf: &Shelf,
    what: What,
    plan: Plan,
) {
    let contestants: Vec<_> = warmed.iter().map(|(contestant, _)| *contestant).collect();
    let name = part.name.clone();
    let part = part.against(Contestant::NginxStatic.name());
    stage
        .rounds(part, &contestants, async |stage, contestant, _| {
            let running = running(warmed, *contestant)?;
            sync_disks().await?;
            memory::touch(shelf.small.bytes + shelf.large.bytes).await?;
            let load = load::warmed(plan, asks(running.source(0), shelf, what)).await;
            let timeline = Timeline::start(running.watched.clone(), &stage.upstream, None);
            let meter = Meter::start(&running.watched);
            let outcome = load.run().await;
            let mut values = outcome.values();
            meter.read_machine(&mut values);
            meter.read(outcome.bytes, &mut values);
            // Everybody is watched alike; the page has room for these.
            let charts = timeline.charts(&format!("{name}, {contestant}")).await;
            if *contestant == Contestant::Hydrant && [LARGE, PACED].contains(&name.as_str()) {
                stage.section.put_charts(charts);
            }
            remember(stage, &name, *contestant, &outcome)?;
            Ok(values)
        })
        .await;
}

/// Latency is compared at a rate that all are asked to bear.
async fn paced(stage: &mut Stage, warmed: &Warmed, shelf: &Shelf) {
    let hydrant = Contestant::Hydrant.name();
    let capacity = stage.section.part(MANIFEST_TAG).and_then(|p| p.spread(hydrant, Metric::Rate));
    let Some(capacity) = capacity else {
        stage.section.note("No latency at a rate: hydrant's own rate is not known.");
        return;
    };
    let rate = (capacity.median / 2.0).max(10.0);
    let about = format!("{rate:.0} requests/s, due at fixed times whatever the answers do.");
    let metrics =
        [Metric::P50, Metric::P99, Metric::P999, Metric::Slowest, Metric::Unserved, Metric::Errors];
    let plan = Plan {
        pace: Pace::Open(rate),
        connections: 4 * connections(stage),
        time: stage.options.phase(),
        most: u64::MAX,
    };
    kind(stage, Part::new(PACED, &about, &metrics), warmed, shelf, What::Tag, plan).await;
}

/// Latency over time goes to the page. Wrong answers of hydrant are a failure; those of others are
/// told, and nothing but them is no value.
fn remember(stage: &mut Stage, part: &str, who: Contestant, outcome: &Outcome) -> Result<()> {
    if let Some(complaint) = outcome.complaint() {
        ensure!(outcome.done > 0 && !who.is_hydrant(), "{complaint}");
        stage.section.note(format!("{part}, {who}: {complaint}."));
    }
    if part == PACED {
        let chart = Chart::new(&format!("{part}: latency over time"), "s", "ms");
        for (quantile, points) in [
            ("p50", outcome.over_time(|second| second.p50_ms)),
            ("p99", outcome.over_time(|second| second.p99_ms)),
        ] {
            stage.section.put_line(chart.clone(), &format!("{who}, {quantile}"), points);
        }
    } else {
        let chart = Chart::new(&format!("{part}: answers over time"), "s", "per s");
        let points = outcome.over_time(|second| Some(second.done as f64));
        stage.section.put_line(chart, who.name(), points);
    }
    Ok(())
}

fn running(warmed: &Warmed, contestant: Contestant) -> Result<&Running> {
    let found = warmed.iter().find(|(other, _)| *other == contestant);
    let (_, running) = found.context("every contestant was warmed")?;
    running.as_ref().map_err(|why| anyhow!("{why}"))
}

async fn warm_all(stage: &mut Stage, shelf: &Shelf) -> Warmed {
    let mut warmed = Vec::new();
    for contestant in stage.contestants(&CONTESTANTS) {
        stage.progress.doing(&format!("warming {contestant}"));
        let running = crate::stage::guarded(warm(stage, contestant, shelf)).await;
        warmed.push((contestant, running));
    }
    warmed
}

/// Starts one and lets it have everything.
async fn warm(stage: &mut Stage, contestant: Contestant, shelf: &Shelf) -> Result<Running> {
    let running = contestant.start(stage, 1).await?;
    if let Some(root) = running.files() {
        let source =
            Source { authority: stage.upstream.authority().to_owned(), prefix: String::new() };
        for image in [&shelf.small, &shelf.large] {
            lay_out(&source, image, root).await?;
        }
        return Ok(running);
    }
    for image in [&shelf.small, &shelf.large] {
        pull(running.source(0), &image.repository, &image.tag, Model::Docker).await?;
    }
    clients::hydrated(&running, &[&shelf.small, &shelf.large]).await?;
    Ok(running)
}

/// The upstream's answers as files.
async fn lay_out(source: &Source, image: &Inserted, root: &std::path::Path) -> Result<()> {
    let mut session = Session::default();
    let manifests = [&image.tag, &image.digest, &image.child];
    let manifests = manifests.map(|reference| source.manifest(&image.repository, reference));
    let blobs = image.blobs.iter().map(|(digest, _)| source.blob(&image.repository, digest));
    for path in manifests.into_iter().chain(blobs) {
        let mut bytes = Vec::new();
        let each = |piece: &[u8]| bytes.extend_from_slice(piece);
        session.fetch(&source.authority, &Request::get(&path), each).await?;
        Nginx::put(root, &path, &bytes)?;
    }
    Ok(())
}

async fn length(source: &Source, image: &Inserted) -> Result<u64> {
    let request = Request::get(source.manifest(&image.repository, &image.tag));
    Ok(Session::default().fetch(&source.authority, &request, |_| {}).await?.length)
}

fn asks(source: &Source, shelf: &Shelf, what: What) -> Vec<Ask> {
    let ask = |request, length| Ask { authority: source.authority.clone(), request, length };
    let (small, large) = (&shelf.small, &shelf.large);
    let blob = |image: &Inserted| source.blob(&image.repository, image.largest().0);
    match what {
        What::Tag => {
            vec![ask(Request::get(source.manifest(&small.repository, &small.tag)), shelf.index)]
        }
        What::Digest => {
            vec![ask(Request::get(source.manifest(&small.repository, &small.digest)), shelf.index)]
        }
        What::Small => vec![ask(Request::get(blob(small)), small.largest().1)],
        What::Large => vec![ask(Request::get(blob(large)), large.largest().1)],
        What::Parts => {
            let starts = spread_out(large.largest().1 - 64 * KIB);
            let part = |start| ask(Request::part(blob(large), start..start + 64 * KIB), 64 * KIB);
            starts.map(part).collect()
        }
    }
}

/// Places all over `length` bytes, in no order.
fn spread_out(length: u64) -> impl Iterator<Item = u64> {
    (0..256_u64).map(move |n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % length)
}

pub fn figures(section: &Section) -> Vec<Figure> {
    let (hydrant, files) = (Contestant::Hydrant.name(), Contestant::NginxStatic.name());
    let empty = Part::default();
    let part = |name| section.part(name).unwrap_or(&empty);
    let cpu = Metric::CpuPerGb;
    vec![
        bars::WARM_MANIFEST.ratio(part(MANIFEST_TAG), hydrant, files, Metric::Rate),
        bars::WARM_SMALL.ratio(part(SMALL), hydrant, files, Metric::Rate),
        bars::WARM_LARGE.ratio(part(LARGE), hydrant, files, Metric::Throughput),
        bars::WARM_CPU.ratio(part(LARGE), hydrant, Contestant::Registry.name(), cpu),
    ]
}
