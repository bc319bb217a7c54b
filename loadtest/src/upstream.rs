//! The upstream registry of a run: a process of its own, so that what it costs is told apart from
//! what the clients cost. This is the harness's end of it; the program itself is below.

mod behaviour;
mod control;
mod counters;
mod holdings;
mod pace;
pub mod program;

pub use behaviour::{Behaviour, Fault};
pub use counters::Counters;
pub use holdings::{ImageSpec, Inserted, PLATFORM};

use crate::usage::Watched;
use anyhow::{Context, Result, ensure};
use hydrant_testkit::{PortLease, Process};
use reqwest::{Client, Method};
use serde::{Serialize, de::DeserializeOwned};
use std::{env, time::Duration};
use tempfile::TempDir;

/// How long a control request may take: hashing some GiB of new layers is the longest.
const LIMIT: Duration = Duration::from_secs(120);

/// An upstream and the means to fill it, to change how it behaves, and to read its counters.
#[derive(Debug)]
pub struct Upstream {
    /// `http://host:port`.
    url: String,
    client: Client,
    own: Option<Own>,
}

/// What is kept of an upstream that this harness started.
#[derive(Debug)]
struct Own {
    process: Process,
    _port: PortLease,
    _directory: TempDir,
}

impl Upstream {
    /// Starts one on loopback and waits until it answers.
    pub async fn start() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hydrant-load-").tempdir()?;
        let port = PortLease::take();
        let address = format!("127.0.0.1:{}", port.port());
        let program = env::current_exe().context("find the harness itself")?;
        let mut process = Process::new("upstream", program, directory.path());
        process.args(["upstream", "--listen", &address]);
        process.spawn();
        let own = Own { process, _port: port, _directory: directory };
        let mut upstream = Self::at(&format!("http://{address}"), Some(own));
        upstream.ready().await?;
        Ok(upstream)
    }

    /// One that runs already, started with `hydrant-loadtest upstream`.
    pub async fn running(url: &str) -> Result<Self> {
        let mut upstream = Self::at(url.trim_end_matches('/'), None);
        upstream.ready().await.with_context(|| format!("reach the upstream at {url}"))?;
        Ok(upstream)
    }

    fn at(url: &str, own: Option<Own>) -> Self {
        Self { url: url.to_owned(), client: Client::new(), own }
    }

    async fn ready(&mut self) -> Result<()> {
        for _ in 0..200 {
            if self.counters().await.is_ok() {
                return Ok(());
            }
            if let Some(own) = &mut self.own {
                ensure!(own.process.is_running(), "the upstream ended: {}", own.process.log());
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        self.counters().await.map(drop)
    }

    /// `http://host:port`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// `host:port`.
    pub fn authority(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// Where its counters are read.
    pub fn counters_url(&self) -> String {
        format!("{}{}counters", self.url, control::PREFIX)
    }

    /// Its process, when this harness started it.
    pub fn watched(&self) -> Option<Watched> {
        self.own.as_ref().map(|own| Watched::new("upstream", own.process.pid()))
    }

    /// Serves these images from now on, beside those it has.
    pub async fn insert(&self, images: &[ImageSpec]) -> Result<Vec<Inserted>> {
        self.control(Method::PUT, "images", Some(images)).await.context("fill the upstream")
    }

    pub async fn behave(&self, behaviour: Behaviour) -> Result<()> {
        self.control(Method::PUT, "behaviour", Some(&behaviour)).await
    }

    pub async fn counters(&self) -> Result<Counters> {
        self.control(Method::GET, "counters", None::<&()>).await
    }

    /// Starts all counters anew.
    pub async fn reset(&self) -> Result<()> {
        self.control(Method::DELETE, "counters", None::<&()>).await
    }

    async fn control<T: DeserializeOwned>(
        &self,
        method: Method,
        what: &str,
        body: Option<&(impl Serialize + ?Sized)>,
    ) -> Result<T> {
        let url = format!("{}{}{what}", self.url, control::PREFIX);
        let mut request = self.client.request(method, url).timeout(LIMIT);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await?.error_for_status()?;
        Ok(answer.json().await?)
    }
}
