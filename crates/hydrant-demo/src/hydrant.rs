//! The real `hydrant up` as a child process, with a configuration of its own in a directory that
//! is removed afterwards.

use crate::upstream::{REPOSITORY, TAG, Upstream};
use crate::webhook::SECRET;
use anyhow::{Context as _, Result, ensure};
use hydrant_testkit::{PortLease, Process, WebhookSink, process::SIGTERM};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    process::Command,
    time::{sleep, timeout},
};

/// Variable that the configuration names for the webhook's secret.
const SECRET_VARIABLE: &str = "DEMO_HOOK_SECRET";
/// Time between two looks at something that has to become so.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Longest wait for its end after SIGTERM.
const END_LIMIT: Duration = Duration::from_secs(10);
/// Lines of its log that are shown when something went wrong.
const LAST_WORDS: usize = 15;

/// A running hydrant; killed when dropped.
pub struct Hydrant {
    program: PathBuf,
    process: Process,
    listen: PortLease,
    admin: PortLease,
    http: reqwest::Client,
}

impl Hydrant {
    /// Starts it in `directory` without waiting until it is ready.
    pub fn start(
        program: &Path,
        nats_server: &Path,
        directory: &Path,
        upstream: &Upstream,
        sink: &WebhookSink,
    ) -> Result<Self> {
        let (listen, admin) = (PortLease::take(), PortLease::take());
        let config = directory.join("hydrant.toml");
        fs::write(&config, resources(upstream, sink)).context("write the configuration")?;
        let mut process = Process::new("hydrant", program, directory);
        process.arg("up").arg("--config").arg(config).arg("--data").arg(directory.join("data"));
        process.arg("--nats-server").arg(nats_server).args(["--drain-deadline", "5s"]);
        for (option, port) in [("--listen", &listen), ("--admin", &admin)] {
            process.arg(option).arg(format!("127.0.0.1:{}", port.port()));
        }
        process.env(SECRET_VARIABLE, SECRET);
        process.spawn();
        let http = reqwest::Client::builder().no_proxy().build().context("make an HTTP client")?;
        Ok(Self { program: program.to_owned(), process, listen, admin, http })
    }

    /// Waits until `/readyz` answers 200.
    pub async fn ready(&mut self) -> Result<()> {
        let url = format!("{}/readyz", self.admin_url());
        while !self.http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
            ensure!(self.process.is_running(), "hydrant ended by itself");
            sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// `127.0.0.1:<port>` of the registry.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.listen.port())
    }

    fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin.port())
    }

    /// `hydrant hydrate IMAGE --wait`, which draws its progress on our standard error.
    pub async fn hydrate(&self) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.args(["hydrate", &image(), "--wait", "--timeout", "1m"]);
        command.args(["--server", &self.admin_url()]).env("NO_PROXY", "127.0.0.1");
        command.env_remove("HYDRANT_ADMIN_TOKEN").kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let status = command.status().await.context("start `hydrant hydrate`")?;
        ensure!(status.success(), "`hydrant hydrate --wait`: {status}");
        Ok(())
    }

    /// How many requests hydrant itself says it sent to upstreams.
    pub async fn upstream_requests(&self) -> Result<u64> {
        let url = format!("{}/metrics", self.admin_url());
        let answer = self.http.get(url).send().await.and_then(reqwest::Response::error_for_status);
        Ok(sum(&answer?.text().await?, "hydrant_upstream_requests_total"))
    }

    /// Asks it to end, and kills it when it takes long.
    pub async fn end(mut self) {
        if self.process.is_running() {
            self.process.signal(SIGTERM);
        }
        let ended = async {
            while self.process.is_running() {
                sleep(LOOK_AGAIN).await;
            }
        };
        // What has not ended is killed when it is dropped.
        let _ = timeout(END_LIMIT, ended).await;
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        let log = self.process.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
    }
}

/// The image as clients of hydrant call it, without the host.
pub fn image() -> String {
    format!("demo/{REPOSITORY}:{TAG}")
}

fn resources(upstream: &Upstream, sink: &WebhookSink) -> String {
    format!(
        r#"[[upstream]]
name = "demo"
endpoint = "{}"
allow_private = true

[[rule]]
name = "demo"
downstream = "demo/*"
upstream = "demo"
platforms = "all"
fresh_for = "1h"

[[webhook]]
name = "demo"
url = "{}"
allow_private = true
secret = {{ env = "{SECRET_VARIABLE}" }}
events = ["image.hydrated"]
"#,
        upstream.url(),
        sink.url()
    )
}

/// The sum of all samples of a counter in Prometheus text.
fn sum(metrics: &str, counter: &str) -> u64 {
    let samples = metrics.lines().filter_map(|line| line.strip_prefix(counter));
    let values = samples.filter_map(|rest| rest.rsplit_once(' ')?.1.parse::<f64>().ok());
    // Counters of requests are whole numbers far below 2^52.
    values.sum::<f64>() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_counter_are_added() {
        let text = "# TYPE a_total counter\na_total{x=\"1\"} 2\na_total{x=\"2\"} 3\nb_total 9\n";
        assert_eq!((sum(text, "a_total"), sum(text, "c_total")), (5, 0));
    }
}
