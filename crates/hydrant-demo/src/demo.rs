//! The demo from the first step to the judgement.

use crate::{
    hydrant::{Hydrant, image},
    judge::{Observed, Original, amplification, judge},
    pull::{Client, Pulled},
    report::{Row, size, table},
    stage::{Stage, Told},
    upstream::{Asked, PACE, PLATFORM, PLATFORMS, Upstream},
    webhook::{Announced, announcement},
};
use anyhow::{Context as _, Result, ensure};
use hydrant_testkit::WebhookSink;
use std::{path::PathBuf, time::Duration};
use tempfile::TempDir;

/// What the demo works with. What it starts, it also ends: see [`Demo::end`].
pub struct Demo {
    hydrant_program: PathBuf,
    nats_server: PathBuf,
    hydrant: Option<Hydrant>,
    client: Client,
    /// Everything hydrant keeps; removed with it.
    directory: TempDir,
}

/// A pull with what it cost.
struct Pull {
    brought: Pulled,
    took: Duration,
}

impl Demo {
    pub fn prepare(hydrant_program: PathBuf, nats_server: PathBuf) -> Result<Self> {
        for program in [&hydrant_program, &nats_server] {
            ensure!(program.is_file(), "there is no {}", program.display());
        }
        let directory = tempfile::Builder::new().prefix("hydrant-demo-").tempdir();
        Ok(Self {
            hydrant_program: std::path::absolute(hydrant_program)?,
            nats_server: std::path::absolute(nats_server)?,
            hydrant: None,
            client: Client::find(),
            directory: directory.context("make a temporary directory")?,
        })
    }

    /// Shows everything. `Ok(false)` when an expectation was not met, `Err` when it cannot go on.
    pub async fn run(&mut self, stage: &Stage) -> Result<bool> {
        stage.say("\nhydrant, shown on this machine alone; nothing stays behind.\n");
        let upstream = begin_upstream(stage).await?;
        let sink = WebhookSink::start().await;
        self.begin_hydrant(stage, &upstream, &sink).await?;

        let cold = self.pull(stage, "cold pull", &upstream).await?;
        let asked_cold = upstream.asked();
        let hydration = self.hydrate(stage).await?;
        let announced = hear(stage, &sink).await?;
        let asked = upstream.asked();
        cut_off(stage, &upstream).await?;
        let before = self.running()?.upstream_requests().await?;
        let warm = self.pull(stage, "warm pull", &upstream).await?;
        let after = self.running()?.upstream_requests().await?;

        let later = asked.since(&asked_cold);
        let rows = [
            row("cold pull", &cold, asked_cold),
            Row { what: "rest of hydration", took: hydration, asked: later, served: None },
            row("warm pull", &warm, Asked::default()),
        ];
        let observed = Observed {
            cold: cold.brought,
            announced,
            asked,
            warm: warm.brought,
            asked_while_cut_off: after.saturating_sub(before),
        };
        Ok(conclude(stage, &rows, &original(&upstream), &observed))
    }

    async fn begin_hydrant(
        &mut self,
        stage: &Stage,
        upstream: &Upstream,
        sink: &WebhookSink,
    ) -> Result<()> {
        let started = Hydrant::start(
            &self.hydrant_program,
            &self.nats_server,
            self.directory.path(),
            upstream,
            sink,
        );
        let hydrant = self.hydrant.insert(started?);
        let ready = async {
            hydrant.ready().await?;
            Ok(Told::new((), format!("listens at {}, demo/* -> upstream", hydrant.host())))
        };
        stage.step("hydrant", "starting", ready).await?;
        Ok(())
    }

    async fn pull(&self, stage: &Stage, name: &str, upstream: &Upstream) -> Result<Pull> {
        let hydrant = self.running()?;
        let pulling = async {
            let brought = self.client.pull(&hydrant.host(), &image(), &upstream.image).await?;
            let (blobs, bytes) = (brought.blobs.len(), size(brought.bytes));
            let client = self.client.name();
            Ok(Told::new(brought, format!("{client}, {PLATFORM}: {blobs} blobs, {bytes}")))
        };
        let (brought, took) = stage.step(name, &image(), pulling).await?;
        Ok(Pull { brought, took })
    }

    /// Watches the job that the cold pull began; the product draws its own progress.
    async fn hydrate(&self, stage: &Stage) -> Result<Duration> {
        let hydrant = self.running()?;
        let watching = async {
            hydrant.hydrate().await?;
            Ok(Told::new((), format!("all {} platforms are local", PLATFORMS.len())))
        };
        let ((), took) = stage.drawing_step("hydration", watching).await?;
        Ok(took)
    }

    fn running(&self) -> Result<&Hydrant> {
        self.hydrant.as_ref().context("hydrant is running")
    }

    pub fn last_words(&self) -> String {
        self.hydrant.as_ref().map(Hydrant::last_words).unwrap_or_default()
    }

    /// Ends what is running and removes what it kept.
    pub async fn end(self) {
        if let Some(hydrant) = self.hydrant {
            hydrant.end().await;
        }
    }
}

async fn begin_upstream(stage: &Stage) -> Result<Upstream> {
    let starting = async {
        let upstream = Upstream::start().await;
        let (blobs, bytes) = (upstream.image.all_blobs().len(), upstream.image.total_bytes());
        let (platforms, bytes, pace) = (PLATFORMS.len(), size(bytes), size(PACE));
        let line = format!("{platforms} platforms, {blobs} blobs, {bytes}; slow: {pace}/s");
        Ok(Told::new(upstream, line))
    };
    Ok(stage.step("upstream", "building an image", starting).await?.0)
}

async fn hear(stage: &Stage, sink: &WebhookSink) -> Result<Announced> {
    let hearing = async {
        let announced = announcement(sink).await;
        let line = match &announced.signature {
            Ok(()) => "image.hydrated arrived, its signature verifies".to_owned(),
            Err(reason) => format!("image.hydrated arrived, but {reason}"),
        };
        Ok(Told::new(announced, line))
    };
    Ok(stage.step("webhook", "waiting", hearing).await?.0)
}

async fn cut_off(stage: &Stage, upstream: &Upstream) -> Result<()> {
    let cutting = async {
        upstream.cut_off().await?;
        Ok(Told::new((), "it refuses connections from now on"))
    };
    stage.step("upstream cut off", "", cutting).await?;
    Ok(())
}

fn row(what: &'static str, pull: &Pull, asked: Asked) -> Row {
    Row { what, took: pull.took, asked, served: Some(pull.brought.bytes) }
}

fn original(upstream: &Upstream) -> Original {
    let (image, child) = (&upstream.image, upstream.image.child(PLATFORM));
    let blobs = child.all_blobs().iter().map(|blob| blob.digest.clone()).collect();
    let bytes = image.manifest.len() as u64 + child.total_bytes();
    Original {
        index: image.digest.clone(),
        platforms: PLATFORMS.len(),
        content: upstream.content(),
        bytes: image.total_bytes(),
        pulled: Pulled { manifest: child.digest.clone(), blobs, bytes },
    }
}

/// Prints the figures and every expectation; whether all hold.
fn conclude(stage: &Stage, rows: &[Row], original: &Original, observed: &Observed) -> bool {
    stage.say("");
    stage.say(&table(rows));
    stage.say(&format!(
        "  amplification {:.2}: {} from the upstream for an image of {}\n",
        amplification(original, &observed.asked),
        size(observed.asked.bytes),
        size(original.bytes)
    ));
    let findings = judge(original, observed);
    for finding in &findings {
        stage.verdict(finding.holds, &finding.text);
    }
    let broken = findings.iter().filter(|finding| !finding.holds).count();
    match broken {
        0 => stage.say("\nAll of it is as it should be.\n"),
        _ => stage.say(&format!("\n{broken} of {} expectations failed.\n", findings.len())),
    }
    broken == 0
}
