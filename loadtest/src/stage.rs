//! What a scenario works on: its upstream, its part of the report, its bounds, and rounds.

use crate::{
    arguments::{Effort, Options},
    cluster::Api,
    contestant::{Contestant, Running},
    metric::Values,
    progress::Progress,
    pull::Source,
    report::Section,
    trials::{Outcome, Part, order},
    upstream::{Behaviour, ImageSpec, Inserted, Upstream},
};
use anyhow::{Context, Result, anyhow};
use futures::FutureExt;
use hydrant_testkit::SeaweedFs;
use std::{
    any::Any,
    fmt::Display,
    panic::AssertUnwindSafe,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};
use tempfile::TempDir;
use tokio::{
    process::Command,
    time::{Instant, timeout},
};

/// Longest time one contestant may take in one round.
const TRIAL_LIMIT: Duration = Duration::from_secs(600);
/// Rounds in which a contestant may fail before it is not tried again.
const MOST_FAILURES: usize = 2;

pub struct Stage {
    pub options: Arc<Options>,
    pub upstream: Upstream,
    pub section: Section,
    pub progress: Progress,
    /// No round begins that would not end before this.
    pub deadline: Instant,
    /// Whether rounds were left out because of that.
    pub has_left_out: bool,
    /// The admin API of the deployment named on the command line.
    api: Option<Api>,
    s3: Option<Arc<SeaweedFs>>,
    attic: Vec<TempDir>,
    next_seed: AtomicU64,
}

impl Stage {
    pub async fn new(
        options: Arc<Options>,
        progress: Progress,
        mut section: Section,
        deadline: Instant,
    ) -> Result<Self> {
        let upstream = match &options.upstream_url {
            Some(url) => Upstream::running(url).await?,
            None => Upstream::start().await?,
        };
        // One that others used before behaves as they left it.
        upstream.behave(Behaviour::default()).await?;
        let api = admin(&options, &mut section).await;
        // Seeds that no earlier run used, since a deployment may still hold its images.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let next_seed = AtomicU64::new(now.as_secs() << 20);
        Ok(Self {
            options,
            upstream,
            section,
            progress,
            deadline,
            has_left_out: false,
            api,
            s3: None,
            attic: Vec::new(),
            next_seed,
        })
    }

    pub fn effort(&self) -> Effort {
        self.options.effort()
    }

    /// A number that was never given before.
    pub fn new_seed(&self) -> u64 {
        self.next_seed.fetch_add(1, Relaxed)
    }

    /// Keeps what a trial leaves until the scenario ends: a file system that has just removed
    /// thousands of files is slow to make new ones, and the next trial would pay for it.
    pub fn keep(&mut self, directory: TempDir) {
        self.attic.push(directory);
    }

    /// The S3 server of this scenario, started when it is first needed.
    pub async fn s3(&mut self) -> Arc<SeaweedFs> {
        if let Some(s3) = &self.s3 {
            return s3.clone();
        }
        self.progress.doing("starting SeaweedFS");
        let s3 = Arc::new(SeaweedFs::start().await);
        self.s3 = Some(s3.clone());
        s3
    }

    /// The deployment named on the command line, if any, as a contestant that runs already.
    pub fn deployed(&self) -> Option<Running> {
        let prefix = self.options.prefix.clone();
        let source = |url: &String| Source {
            authority: url.trim_start_matches("http://").trim_end_matches('/').to_owned(),
            prefix: prefix.clone(),
        };
        let sources: Vec<_> = self.options.hydrant.iter().map(source).collect();
        (!sources.is_empty()).then(|| Running::deployed(sources, self.api.clone()))
    }

    /// Contestants without those that the command line leaves out.
    pub fn contestants(&self, all: &[Contestant]) -> Vec<Contestant> {
        let is_wanted = |contestant: &&Contestant| {
            let is_left_out = (self.options.no_peers && contestant.is_peer())
                || (self.options.no_s3 && contestant.is_on_s3())
                || (self.options.is_external() && contestant.is_variant());
            !is_left_out
        };
        all.iter().filter(is_wanted).copied().collect()
    }

    /// An image that nobody has pulled before.
    pub async fn image(&self, layers: &[u64]) -> Result<Inserted> {
        let mut images = self.images(1, layers).await?;
        images.pop().context("one image was inserted")
    }

    pub async fn images(&self, count: usize, layers: &[u64]) -> Result<Vec<Inserted>> {
        self.upstream.insert(&self.specs(count, layers)).await
    }

    /// Images without an index.
    pub async fn single_images(&self, count: usize, layers: &[u64]) -> Result<Vec<Inserted>> {
        let specs = self.specs(count, layers).into_iter();
        let single = specs.map(|spec| ImageSpec { single: true, ..spec });
        self.upstream.insert(&single.collect::<Vec<_>>()).await
    }

    pub fn specs(&self, count: usize, layers: &[u64]) -> Vec<ImageSpec> {
        let spec = |_| {
            let seed = self.new_seed();
            ImageSpec {
                repository: format!("image-{seed}"),
                tag: "1".to_owned(),
                seed,
                layers: layers.to_vec(),
                single: false,
            }
        };
        (0..count).map(spec).collect()
    }

    /// Measures everybody once a round, each round beginning with another one. What is measured is
    /// in the report at once, so an interruption loses nothing; who fails says why and the others
    /// go on.
    pub async fn rounds<C: Clone + Display>(
        &mut self,
        part: Part,
        contestants: &[C],
        mut trial: impl AsyncFnMut(&mut Self, &C, u32) -> Result<Values>,
    ) {
        let index = self.section.parts.len();
        let names = contestants.iter().map(ToString::to_string);
        self.section.parts.push(part.between(names));
        let mut longest = Duration::ZERO;
        for round in 0..self.options.rounds() {
            let started = Instant::now();
            if started + longest >= self.deadline {
                self.leave_out(index, round);
                return;
            }
            for contestant in order(contestants, round) {
                self.one(index, round, &contestant, &mut trial).await;
            }
            longest = longest.max(started.elapsed());
        }
    }

    fn leave_out(&mut self, index: usize, round: u32) {
        let (name, rounds) = (&self.section.parts[index].name, self.options.rounds());
        let note = format!("{name}: {round} of {rounds} rounds, then the time was over.");
        self.section.note(note);
        self.has_left_out = true;
    }

    async fn one<C: Display>(
        &mut self,
        index: usize,
        round: u32,
        contestant: &C,
        trial: &mut impl AsyncFnMut(&mut Self, &C, u32) -> Result<Values>,
    ) {
        let name = contestant.to_string();
        let part = &self.section.parts[index];
        if part.failures(&name) >= MOST_FAILURES {
            return;
        }
        let rounds = self.options.rounds();
        self.progress.doing(&format!("{}: round {} of {rounds}, {name}", part.name, round + 1));
        let outcome = match guarded(trial(self, contestant, round)).await {
            Ok(values) => Outcome::Measured(values),
            Err(why) => Outcome::Failed(why),
        };
        if let Outcome::Failed(why) = &outcome {
            self.progress.told(&format!("{name} failed: {why}"));
        }
        self.section.parts[index].add(round, &name, outcome);
    }
}

/// The admin API of a deployment, and why there will be no plot of its queue if so.
async fn admin(options: &Options, section: &mut Section) -> Option<Api> {
    let api = Api::new(options.admin.as_deref()?, Some(&options.prefix));
    match api.clone().found().await {
        Ok(api) => Some(api),
        Err(error) => {
            section.note(format!("No plot of the queue: its upstream is not known ({error:#})."));
            Some(api)
        }
    }
}

/// What comes of it within the limit. Servers of the testkit report by panicking that they did not
/// start: that is an answer too.
pub async fn guarded<T>(trial: impl Future<Output = Result<T>>) -> Result<T, String> {
    let guarded = AssertUnwindSafe(timeout(TRIAL_LIMIT, trial)).catch_unwind();
    match guarded.await {
        Ok(Ok(done)) => done.map_err(|error| format!("{error:#}")),
        Ok(Err(_)) => Err(format!("took longer than {TRIAL_LIMIT:?}")),
        Err(panic) => Err(said(&*panic).lines().take(4).collect::<Vec<_>>().join(" · ")),
    }
}

/// What a panic said.
pub fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "it panicked".to_owned())
}

/// Writes what the kernel still holds back, so that the next one does not pay for it.
pub async fn sync_disks() -> Result<()> {
    let status = Command::new("sync").stdin(Stdio::null()).status().await.context("run sync")?;
    if status.success() { Ok(()) } else { Err(anyhow!("sync: {status}")) }
}
