//! `idle`: what it costs to be there.

use crate::{
    bars::{self, Figure},
    cluster::{BusKind, Cluster, Layout, Shape},
    contestant::Contestant,
    metric::{Metric, Values},
    report::Section,
    stage::Stage,
    trials::Part,
    usage::{MIB, Watched},
};
use anyhow::{Context, Result};
use std::{fmt, time::Duration};
use tokio::time::sleep;

const PART: &str = "nothing is asked";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Idler {
    HydrantUp,
    Registry,
}

impl fmt::Display for Idler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HydrantUp => "hydrant up",
            Self::Registry => Contestant::Registry.name(),
        })
    }
}

pub async fn play(stage: &mut Stage) -> Result<()> {
    let time = 3 * stage.options.phase();
    let about = format!("{time:?} after a start and some rest; the bus is a process of its own.");
    let metrics =
        [Metric::Memory, Metric::BusMemory, Metric::Cores, Metric::Messages, Metric::Descriptors];
    let rested = format!("{:?}", rest_time(stage));
    let section = &mut stage.section;
    section.set("rest before", rested);
    section.set("hydrant up", "over a nats-server of the harness, every write synced; a directory");
    section.set("configuration", "one upstream, one rule, everything else as it is by default");
    section.set("docker-registry", "a proxy as Debian packages it");

    let part = Part::new(PART, &about, &metrics);
    let mut all = vec![Idler::HydrantUp];
    all.extend((!stage.options.no_peers).then_some(Idler::Registry));
    stage
        .rounds(part, &all, async |stage, idler, _| match idler {
            Idler::HydrantUp => hydrant(stage, time).await,
            Idler::Registry => {
                let running = Contestant::Registry.start(stage, 1).await?;
                rest(stage).await;
                let watched = running.watched.first().context("it is a process of ours")?;
                Ok(measure(watched, time).await)
            }
        })
        .await;
    Ok(())
}

async fn hydrant(stage: &Stage, time: Duration) -> Result<Values> {
    let shape =
        Shape { layout: Layout::OneOver(BusKind::Synced), ..Shape::one(stage.upstream.url()) };
    let cluster = Cluster::start(&shape).await?;
    rest(stage).await;
    let before = cluster.bus_messages().await.context("the bus tells its messages")?;
    let watched = cluster.hydrants();
    let mut values = measure(watched.first().context("it is a process of ours")?, time).await;
    let after = cluster.bus_messages().await.context("the bus tells its messages")?;
    values.insert(Metric::Messages, (after - before) as f64 / time.as_secs_f64());
    let bus = cluster.bus().context("it is a process of ours")?.usage();
    values.insert(Metric::BusMemory, bus.memory as f64 / MIB);
    Ok(values)
}

/// What a start leaves to do is done by then.
async fn rest(stage: &Stage) {
    sleep(rest_time(stage)).await;
}

fn rest_time(stage: &Stage) -> Duration {
    Duration::from_secs(stage.effort().pick(1, 5, 15))
}

async fn measure(watched: &Watched, time: Duration) -> Values {
    let before = watched.usage();
    sleep(time).await;
    let after = watched.usage();
    Values::from([
        (Metric::Memory, after.memory as f64 / MIB),
        (Metric::Cores, (after.cpu_s - before.cpu_s) / time.as_secs_f64()),
        (Metric::Descriptors, after.descriptors as f64),
    ])
}

pub fn figures(section: &Section) -> Vec<Figure> {
    let empty = Part::default();
    let part = section.part(PART).unwrap_or(&empty);
    let up = Idler::HydrantUp.to_string();
    vec![
        bars::IDLE_MEMORY.value(part, &up, Metric::Memory),
        bars::IDLE_CPU.value(part, &up, Metric::Cores),
        bars::IDLE_BUS.value(part, &up, Metric::BusMemory),
        bars::IDLE_MESSAGES.value(part, &up, Metric::Messages),
    ]
}
