//! `hydrate`: making images durable, beside skopeo doing it and beside the store alone.

use super::MIB;
use crate::{
    bars::{self, Figure},
    cluster::{Bodies, BusKind, Cluster, Place, Shape},
    contestant::Running,
    memory,
    metric::{Metric, Values},
    raw,
    report::Section,
    stage::{Stage, sync_disks},
    timeline::Timeline,
    trials::Part,
    upstream::{Inserted, PLATFORM},
    usage::{Meter, Watched, ended_children_cpu_s},
};
use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use hydrant_testkit::{Process, Registry, binaries};
use std::{fmt, time::Duration};

const DIRECTORY: &str = "into a directory";
const S3: &str = "into S3";
const LIMIT: Duration = Duration::from_secs(600);
/// Images under way at once: hydrant's default for one importer, and as many skopeos.
const AT_ONCE: usize = 8;

const METRICS: [Metric; 7] = [
    Metric::Throughput,
    Metric::Rate,
    Metric::Wall,
    Metric::CpuPerGb,
    Metric::PeakMemory,
    Metric::Amplification,
    Metric::Busy,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hydrator {
    Importers(usize),
    ImportersS3(usize),
    /// skopeo copies into a docker-registry with a directory.
    Skopeo,
    /// Multipart writes of the same sizes without anything else.
    Multipart,
}

impl fmt::Display for Hydrator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Importers(1) => f.write_str("hydrant, 1 importer"),
            Self::Importers(count) => write!(f, "hydrant, {count} importers"),
            Self::ImportersS3(1) => f.write_str("hydrant (S3), 1 importer"),
            Self::ImportersS3(count) => write!(f, "hydrant (S3), {count} importers"),
            Self::Skopeo => f.write_str("skopeo copy"),
            Self::Multipart => f.write_str("raw multipart"),
        }
    }
}

pub async fn play(stage: &mut Stage) -> Result<()> {
    let (count, unit) = stage.effort().pick((2, MIB), (4, 4 * MIB), (8, 16 * MIB));
    let layers = [4 * unit, 2 * unit, unit, unit];
    stage.section.set("images", format!("{count}, each of four layers, {} MiB", 8 * unit / MIB));
    stage.section.set("at once", format!("{AT_ONCE} images, by hydrant and by skopeo"));
    let (one, all) = (raw::s3::PARTS_OF_ONE, raw::s3::PARTS_OF_ALL);
    stage.section.set(
        "raw multipart",
        format!("parts of 8 MiB, {one} of an upload and {all} in all at once, as an importer has"),
    );
    stage.section.set("memory", memory::TOUCHED);
    let mut on_files = vec![Hydrator::Importers(1), Hydrator::Skopeo];
    if !stage.options.is_external() {
        on_files.push(Hydrator::Importers(2));
        on_files.extend(
            (stage.effort() > crate::arguments::Effort::Smoke).then_some(Hydrator::Importers(4)),
        );
    }
    let part = Part::new(DIRECTORY, "No client waits.", &METRICS);
    let part = part.against(&Hydrator::Skopeo.to_string());
    rounds(stage, part, &on_files, count, &layers).await;
    if stage.options.no_s3 || stage.options.is_external() {
        return Ok(());
    }
    let on_s3 = [Hydrator::ImportersS3(1), Hydrator::Multipart, Hydrator::ImportersS3(2)];
    let about = "The store is SeaweedFS. Nobody signs the bodies of requests, as over TLS.";
    let part = Part::new(S3, about, &METRICS);
    let part = part.against(&Hydrator::Multipart.to_string());
    rounds(stage, part, &on_s3, count, &layers).await;
    Ok(())
}

async fn rounds(stage: &mut Stage, part: Part, all: &[Hydrator], count: usize, layers: &[u64]) {
    stage
        .rounds(part, all, async |stage, hydrator, _| {
            let images = stage.images(count, layers).await?;
            sync_disks().await?;
            memory::touch(bytes(&images)).await?;
            stage.upstream.reset().await?;
            let mut values = match *hydrator {
                Hydrator::Importers(importers) => {
                    by_hydrant(stage, importers, Place::Directory, &images).await?
                }
                Hydrator::ImportersS3(importers) => {
                    let place = Place::S3(stage.s3().await);
                    by_hydrant(stage, importers, place, &images).await?
                }
                Hydrator::Skopeo => by_skopeo(stage, &images).await?,
                Hydrator::Multipart => return by_writes(stage, &images).await,
            };
            let bytes: u64 = images.iter().map(|image| image.bytes).sum();
            let read = stage.upstream.counters().await?.bytes;
            values.insert(Metric::Amplification, read as f64 / bytes as f64);
            Ok(values)
        })
        .await;
}

fn values(images: &[Inserted], took: Duration) -> Values {
    let bytes: u64 = images.iter().map(|image| image.bytes).sum();
    let seconds = took.as_secs_f64();
    Values::from([
        (Metric::Wall, seconds),
        (Metric::Throughput, bytes as f64 / 1e6 / seconds),
        (Metric::Rate, images.len() as f64 / seconds),
    ])
}

fn bytes(images: &[Inserted]) -> u64 {
    images.iter().map(|image| image.bytes).sum()
}

async fn by_hydrant(
    stage: &mut Stage,
    importers: usize,
    place: Place,
    images: &[Inserted],
) -> Result<Values> {
    let running = match stage.deployed() {
        Some(running) => running,
        None => {
            let shape = Shape::roles(stage.upstream.url(), 0, importers, BusKind::Synced);
            // The raw writes are not signed either.
            let shape = Shape { place, bodies: Bodies::Unsigned, ..shape };
            Running::of_cluster(Cluster::start(&shape).await?)
        }
    };
    let api = running.api.clone().context("--admin is needed to ask for hydrations")?;
    let timeline = Timeline::start(running.watched.clone(), &stage.upstream, Some(api.clone()));
    let meter = Meter::start(&running.watched);
    for image in images {
        api.hydrate(&image.name()).await?;
    }
    for image in images {
        api.hydrated(&image.name(), LIMIT).await?;
    }
    let mut values = values(images, meter.elapsed());
    meter.read_machine(&mut values);
    meter.read(bytes(images), &mut values);
    let charts = timeline.charts(&format!("{importers} importers")).await;
    if importers == 1 {
        stage.section.put_charts(charts);
    }
    Ok(values)
}

/// A registry of its own is the destination; its CPU and skopeo's count together.
async fn by_skopeo(stage: &Stage, images: &[Inserted]) -> Result<Values> {
    let registry = Registry::start().await;
    let directory = tempfile::tempdir()?;
    let meter = Meter::start(&[Watched::new("docker-registry", registry.pid())]);
    let children = ended_children_cpu_s();
    let copies = stream::iter(images).map(|image| {
        let (from, to) = (stage.upstream.authority().to_owned(), registry.host());
        copy(directory.path(), from, to, image)
    });
    copies.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    let mut values = values(images, meter.elapsed());
    meter.read_machine(&mut values);
    meter.read(bytes(images), &mut values);
    let skopeos = ended_children_cpu_s() - children;
    let per_gb = skopeos / (bytes(images) as f64 / 1e9);
    values.entry(Metric::CpuPerGb).and_modify(|cpu| *cpu += per_gb);
    values.entry(Metric::Cpu).and_modify(|cpu| *cpu += skopeos);
    Ok(values)
}

async fn copy(
    directory: &std::path::Path,
    from: String,
    to: String,
    image: &Inserted,
) -> Result<()> {
    let name = image.name();
    let mut skopeo = Process::new(&image.repository, binaries::find("skopeo"), directory);
    let (os, architecture) = PLATFORM.split_once('/').context("a platform has two parts")?;
    skopeo.args([format!("--override-os={os}"), format!("--override-arch={architecture}")]);
    skopeo.args(["copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"]);
    skopeo.args([format!("docker://{from}/{name}"), format!("docker://{to}/{name}")]);
    let finished = skopeo.run(LIMIT).await;
    ensure!(finished.status.success(), "skopeo: {}", finished.stderr.trim());
    Ok(())
}

/// The bytes of the same blobs, by as many streams as there are images at once.
async fn by_writes(stage: &mut Stage, images: &[Inserted]) -> Result<Values> {
    let s3 = stage.s3().await;
    let blobs = images.iter().flat_map(|image| &image.blobs);
    let sizes: Vec<u64> = blobs.map(|(_, size)| *size).collect();
    let rate = raw::s3::writes(&s3, &sizes, AT_ONCE, stage.new_seed()).await?;
    let seconds = sizes.iter().sum::<u64>() as f64 / 1e6 / rate;
    Ok(Values::from([(Metric::Throughput, rate), (Metric::Wall, seconds)]))
}

pub fn figures(section: &Section) -> Vec<Figure> {
    let empty = Part::default();
    let part = |name| section.part(name).unwrap_or(&empty);
    let ratio = |bar: bars::Bar, part, ours: Hydrator, theirs: Hydrator| {
        bar.ratio(part, &ours.to_string(), &theirs.to_string(), Metric::Throughput)
    };
    vec![
        ratio(bars::HYDRATE, part(DIRECTORY), Hydrator::Importers(1), Hydrator::Skopeo),
        ratio(bars::HYDRATE_S3, part(S3), Hydrator::ImportersS3(1), Hydrator::Multipart),
    ]
}
