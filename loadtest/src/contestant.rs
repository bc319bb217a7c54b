//! Who does the same work in one run: hydrant, nobody in between, and what else there is.

mod nginx;

pub use nginx::{Nginx, STATIC_AND_CACHE};

use crate::{
    cluster::{Api, BusKind, Cluster, Place, Shape},
    pull::Source,
    stage::Stage,
    upstream::Upstream,
    usage::Watched,
};
use anyhow::Result;
use hydrant_testkit::Registry;
use std::{fmt, path::Path};
use tempfile::TempDir;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contestant {
    /// The upstream itself.
    Direct,
    /// hydrant with a directory.
    Hydrant,
    /// hydrant with SeaweedFS.
    HydrantS3,
    /// hydrant with a directory, reading large blobs as parallel ranges.
    HydrantRanges,
    /// hydrant with a directory and room for 1,000 requests to the upstream at once; 64 are usual.
    HydrantWide,
    /// hydrant with SeaweedFS, sending clients to presigned URLs for stored blobs.
    HydrantRedirect,
    /// docker-registry as a pull-through proxy, with a directory.
    Registry,
    /// The same with SeaweedFS.
    RegistryS3,
    /// nginx as a cache before the upstream.
    NginxCache,
    /// nginx serving the same bytes as files: the limit for warm reads.
    NginxStatic,
}

impl Contestant {
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Hydrant => "hydrant",
            Self::HydrantS3 => "hydrant (S3)",
            Self::HydrantRanges => "hydrant (parallel ranges)",
            Self::HydrantWide => "hydrant (1,000 requests)",
            Self::HydrantRedirect => "hydrant (S3, redirect)",
            Self::Registry => "docker-registry proxy",
            Self::RegistryS3 => "docker-registry proxy (S3)",
            Self::NginxCache => "nginx cache",
            Self::NginxStatic => "nginx static",
        }
    }

    /// Whether somebody who only wants hydrant's own figures can do without it. The references of
    /// ratios are always measured.
    pub fn is_peer(self) -> bool {
        matches!(self, Self::Registry | Self::RegistryS3 | Self::NginxCache)
    }

    /// Whether it is what is judged: its errors are failures, and not one more thing to tell.
    pub fn is_hydrant(self) -> bool {
        self == Self::Hydrant || self.is_variant()
    }

    /// Whether it is hydrant set in another way than a deployment that runs already may be.
    pub fn is_variant(self) -> bool {
        let others =
            [Self::HydrantS3, Self::HydrantRanges, Self::HydrantWide, Self::HydrantRedirect];
        others.contains(&self)
    }

    pub fn is_on_s3(self) -> bool {
        matches!(self, Self::HydrantS3 | Self::HydrantRedirect | Self::RegistryS3)
    }
}

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A contestant that runs, empty and cold; gone when dropped.
pub struct Running {
    /// Where clients pull from, one for each instance.
    pub sources: Vec<Source>,
    /// Its processes; none where they are not ours to see.
    pub watched: Vec<Watched>,
    pub hydrant: Option<Cluster>,
    /// The admin API, for contestants that have one.
    pub api: Option<Api>,
    _registries: Vec<Registry>,
    _nginx: Vec<Nginx>,
}

impl Running {
    fn at(sources: Vec<Source>) -> Self {
        Self {
            sources,
            watched: Vec::new(),
            hydrant: None,
            api: None,
            _registries: Vec::new(),
            _nginx: Vec::new(),
        }
    }

    /// The upstream itself.
    pub fn direct(upstream: &Upstream) -> Self {
        Self::at(vec![plain(upstream.authority().to_owned())])
    }

    /// A deployment that somebody else started.
    pub fn deployed(sources: Vec<Source>, api: Option<Api>) -> Self {
        Self { api, ..Self::at(sources) }
    }

    pub fn of_cluster(cluster: Cluster) -> Self {
        Self {
            watched: cluster.watched(),
            api: Some(cluster.api().clone()),
            ..Self::at(cluster.sources())
        }
        .keeping(cluster)
    }

    fn keeping(mut self, cluster: Cluster) -> Self {
        self.hydrant = Some(cluster);
        self
    }

    fn of_registries(registries: Vec<Registry>) -> Self {
        let sources = registries.iter().map(|registry| plain(registry.host())).collect();
        let watched = registries.iter().map(|r| Watched::new("docker-registry", r.pid())).collect();
        Self { watched, _registries: registries, ..Self::at(sources) }
    }

    fn of_nginx(nginx: Vec<Nginx>) -> Self {
        let sources = nginx.iter().map(|nginx| plain(nginx.host())).collect();
        let watched = nginx.iter().map(Nginx::watched).collect();
        Self { watched, _nginx: nginx, ..Self::at(sources) }
    }

    /// Where the client number `n` pulls.
    pub fn source(&self, n: usize) -> &Source {
        &self.sources[n % self.sources.len()]
    }
}

fn plain(authority: String) -> Source {
    Source { authority, prefix: String::new() }
}

impl Contestant {
    /// Starts it with nothing in its cache, in so many instances: of hydrant, so many frontends
    /// over one store with one importer; of the others, each with its own cache.
    pub async fn start(self, stage: &mut Stage, instances: usize) -> Result<Running> {
        if let (Self::Hydrant, Some(deployed)) = (self, stage.deployed()) {
            tell_of(stage, &deployed, instances);
            return Ok(deployed);
        }
        let upstream = stage.upstream.url().to_owned();
        match self {
            Self::Direct => Ok(Running::direct(&stage.upstream)),
            Self::Hydrant
            | Self::HydrantRanges
            | Self::HydrantWide
            | Self::HydrantS3
            | Self::HydrantRedirect => self.hydrant(stage, instances).await,
            Self::Registry => {
                let mut all = Vec::new();
                for _ in 0..instances {
                    all.push(Registry::proxy(&upstream).await);
                }
                Ok(Running::of_registries(all))
            }
            Self::RegistryS3 => {
                let (s3, mut all) = (stage.s3().await, Vec::new());
                for _ in 0..instances {
                    let prefix = format!("registry-{}", stage.new_seed());
                    all.push(Registry::proxy_on_s3(&upstream, &s3, &prefix).await);
                }
                Ok(Running::of_registries(all))
            }
            Self::NginxCache => {
                let mut all = Vec::new();
                for _ in 0..instances {
                    all.push(Nginx::cache(&upstream).await?);
                }
                Ok(Running::of_nginx(all))
            }
            Self::NginxStatic => {
                let files = tempfile::Builder::new().prefix("hydrant-load-").tempdir()?;
                serve_files(files).await
            }
        }
    }
}

impl Contestant {
    async fn hydrant(self, stage: &mut Stage, instances: usize) -> Result<Running> {
        let place = match self.is_on_s3() {
            true => Place::S3(stage.s3().await),
            false => Place::Directory,
        };
        let upstream = stage.upstream.url();
        let shape = match instances {
            1 => Shape::one(upstream),
            frontends => Shape::roles(upstream, frontends, 1, BusKind::Synced),
        };
        let asking = match self {
            Self::HydrantRanges => "parallel = { from = \"16MiB\", ranges = 4 }",
            Self::HydrantWide => "concurrency = 1000",
            _ => "",
        };
        let delivery = if self == Self::HydrantRedirect { "redirect" } else { "stream" };
        let shape = Shape { place, asking, delivery, ..shape };
        Ok(Running::of_cluster(Cluster::start(&shape).await?))
    }
}

/// What a deployment is that was not started as the scenario would have it.
fn tell_of(stage: &mut Stage, deployed: &Running, instances: usize) {
    let count = deployed.sources.len();
    if count != instances {
        stage.section.note(format!(
            "hydrant is the deployment's {count} frontends where {instances} instances are told."
        ));
    }
    if deployed.api.is_none() {
        stage.section.note(
            "Without --admin, hydration is not waited for: only what the upstream was asked until it \
             stood still for a moment is in its bytes.",
        );
    }
}

async fn serve_files(files: TempDir) -> Result<Running> {
    Ok(Running::of_nginx(vec![Nginx::files(files).await?]))
}

impl Running {
    /// The directory whose files nginx serves.
    pub fn files(&self) -> Option<&Path> {
        self._nginx.first().map(Nginx::root)
    }
}
