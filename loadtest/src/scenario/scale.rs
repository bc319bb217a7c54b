//! `scale`: whether more importers do more, where the upstream's latency and not the CPU is the
//! limit.

use super::KIB;
use crate::{
    bars::{self, Figure},
    cluster::{BusKind, Cluster, Shape},
    metric::{Metric, Values},
    report::{Chart, Section},
    stage::Stage,
    timeline::Timeline,
    trials::Part,
    upstream::{Behaviour, Inserted},
    usage::Meter,
};
use anyhow::Result;
use futures::{StreamExt, TryStreamExt, stream};
use std::{fmt, time::Duration};

const PART: &str = "importers";
const LATENCY_MS: u64 = 200;
const JOBS: usize = 4;
/// Hydrations asked for at once: asking must not be what is waited for.
const ASKING: usize = 16;
const LIMIT: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Importers(usize);

impl fmt::Display for Importers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0, if self.0 == 1 { "importer" } else { "importers" })
    }
}

pub async fn play(stage: &mut Stage) -> Result<()> {
    let count = stage.effort().pick(4, 128, 256);
    let counts = stage.effort().pick(vec![1, 2], vec![1, 2, 4, 8], vec![1, 2, 4, 8, 16]);
    let all: Vec<_> = counts.into_iter().map(Importers).collect();
    let about = format!(
        "{count} small images, {JOBS} jobs at once in each importer, an upstream that answers \
         after {LATENCY_MS} ms."
    );
    let section = &mut stage.section;
    section.set(
        "processes",
        "1 to 16 importers, control, nats-server with its default flush; a directory",
    );
    section.set("importer", format!("{JOBS} jobs at once, everything else as it is by default"));
    section.set("upstream", format!("{LATENCY_MS} ms before each answer, no bound on its rate"));
    section.set("images", format!("{count}, each of one layer of 16 KiB"));
    section.set("asking", format!("{ASKING} hydrations at once, by the API"));
    let metrics = [Metric::Rate, Metric::Wall, Metric::Cpu, Metric::Busy, Metric::Amplification];
    let part = Part::new(PART, &about, &metrics).against(&Importers(1).to_string());
    stage
        .rounds(part, &all, async |stage, importers, _| trial(stage, importers.0, count).await)
        .await;
    chart(stage, &all);
    Ok(())
}

async fn trial(stage: &mut Stage, importers: usize, count: usize) -> Result<Values> {
    let images = stage.images(count, &[16 * KIB]).await?;
    let shape = Shape {
        importing: vec!["--jobs".to_owned(), JOBS.to_string()],
        ..Shape::roles(stage.upstream.url(), 0, importers, BusKind::Default)
    };
    let cluster = Cluster::start(&shape).await?;
    stage.upstream.behave(Behaviour::latency(LATENCY_MS)).await?;
    stage.upstream.reset().await?;
    let (watched, api) = (cluster.watched(), cluster.api().clone());
    let timeline = Timeline::start(watched.clone(), &stage.upstream, Some(api));
    let meter = Meter::start(&watched);
    let ask = async |image: &Inserted| cluster.api().hydrate(&image.name()).await;
    let asked = stream::iter(&images).map(ask).buffer_unordered(ASKING);
    asked.try_collect::<()>().await?;
    for image in &images {
        cluster.api().hydrated(&image.name(), LIMIT).await?;
    }
    let took = meter.elapsed().as_secs_f64();
    let mut values =
        Values::from([(Metric::Wall, took), (Metric::Rate, images.len() as f64 / took)]);
    meter.read_machine(&mut values);
    meter.read(0, &mut values);
    let bytes: u64 = images.iter().map(|image| image.bytes).sum();
    let read = stage.upstream.counters().await?.bytes;
    values.insert(Metric::Amplification, read as f64 / bytes as f64);
    stage.upstream.behave(Behaviour::default()).await?;
    // Everybody is watched alike; the page has room for those of the bar.
    let charts = timeline.charts(&Importers(importers).to_string()).await;
    if importers == 1 || importers == 8 {
        stage.section.put_charts(charts);
    }
    stage.keep(cluster.end());
    Ok(values)
}

fn chart(stage: &mut Stage, all: &[Importers]) {
    let Some(part) = stage.section.part(PART) else { return };
    let rate = |importers: &Importers| part.spread(&importers.to_string(), Metric::Rate);
    let measured: Vec<(f64, f64)> = all
        .iter()
        .filter_map(|importers| Some((importers.0 as f64, rate(importers)?.median)))
        .collect();
    let one = measured.first().map_or(0.0, |(_, rate)| *rate);
    let ideal = measured.iter().map(|(count, _)| (*count, count * one)).collect();
    let chart = Chart::new("images per second by importers", "importers", "images/s");
    let chart = chart.line("hydrant", measured).line("as many times one importer", ideal);
    stage.section.put_charts(vec![chart]);
}

pub fn figures(section: &Section) -> Vec<Figure> {
    let empty = Part::default();
    let part = section.part(PART).unwrap_or(&empty);
    let (eight, one) = (Importers(8).to_string(), Importers(1).to_string());
    vec![bars::SCALE.ratio(part, &eight, &one, Metric::Rate)]
}
