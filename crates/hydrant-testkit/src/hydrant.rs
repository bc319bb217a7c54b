//! hydrant itself, as the process customers run.

use crate::{Finished, PortLease, Process, SeaweedFs, binaries, client, process, until};
use reqwest::StatusCode;
use serde_json::Value;
use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};
use tempfile::TempDir;

/// How long a start, a drain and a client command may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What a process of hydrant is started with. Addresses and data directory are chosen by the kit.
#[derive(Debug)]
pub struct HydrantOptions {
    role: String,
    args: Vec<String>,
    envs: Vec<(String, String)>,
    config: Option<String>,
    data: Option<PathBuf>,
}

/// A process of hydrant; killed when dropped, with everything it started.
#[derive(Debug)]
pub struct Hydrant {
    process: Process,
    listen: PortLease,
    admin: PortLease,
    peer: PortLease,
    data: PathBuf,
    client: reqwest::Client,
    directory: TempDir,
}

impl HydrantOptions {
    /// Text of the configuration file.
    pub fn config(mut self, toml: &str) -> Self {
        self.config = Some(toml.to_owned());
        self
    }

    pub fn nats(self, url: &str) -> Self {
        self.args(["--nats-url", url])
    }

    /// `s3://bucket/prefix`, `file:///directory` or a path.
    pub fn store(self, url: &str) -> Self {
        self.args(["--store", url])
    }

    /// Stores below `prefix` in the bucket of `s3`.
    pub fn s3(mut self, s3: &SeaweedFs, prefix: &str) -> Self {
        for (name, value) in s3.env() {
            self = self.env(name, &value);
        }
        self.store(&format!("s3://{}/{prefix}", s3.bucket()))
    }

    /// A data directory that outlives the process, instead of its own.
    pub fn data(mut self, directory: &Path) -> Self {
        self.data = Some(directory.to_owned());
        self
    }

    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    pub fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.args.extend(args.into_iter().map(str::to_owned));
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.envs.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it and waits until `/readyz` answers 200.
    pub async fn start(self) -> Hydrant {
        let mut hydrant = self.spawn();
        hydrant.ready().await;
        hydrant
    }

    /// Starts it without waiting.
    pub fn spawn(self) -> Hydrant {
        let mut hydrant = self.prepare();
        hydrant.process.spawn();
        hydrant
    }

    /// Runs it to its end, for starts that must fail.
    pub async fn run(self) -> Finished {
        let hydrant = self.prepare();
        hydrant.process.run(LIMIT).await
    }

    fn prepare(self) -> Hydrant {
        let directory = tempfile::Builder::new().prefix("hydrant-").tempdir();
        let directory = directory.expect("the temporary directory is writable");
        let (listen, admin, peer) = (PortLease::take(), PortLease::take(), PortLease::take());
        let data = self.data.unwrap_or_else(|| directory.path().join("data"));
        let name = format!("hydrant-{}", self.role);
        let mut process = Process::new(&name, binaries::hydrant(), directory.path());
        process.arg(&self.role);
        for (option, port) in [("--listen", &listen), ("--admin", &admin), ("--peer", &peer)] {
            process.arg(option).arg(format!("127.0.0.1:{}", port.port()));
        }
        process.arg("--data").arg(&data).args(&self.args);
        if let Some(config) = self.config {
            let file = directory.path().join("hydrant.toml");
            fs::write(&file, config).expect("the directory is writable");
            process.arg("--config").arg(file);
        }
        if self.role == "up" {
            process.env("PATH", path_with_nats());
        }
        for (name, value) in &self.envs {
            process.env(name, value);
        }
        Hydrant { process, listen, admin, peer, data, client: client::plain(), directory }
    }
}

/// `hydrant up` looks for nats-server on `PATH`.
fn path_with_nats() -> std::ffi::OsString {
    let nats = binaries::find("nats-server");
    let inherited = env::var_os("PATH").unwrap_or_default();
    let directories = nats.parent().map(Path::to_owned).into_iter();
    env::join_paths(directories.chain(env::split_paths(&inherited)))
        .expect("no directory has a colon")
}

impl Hydrant {
    /// Options for `hydrant <role>`: `up`, `frontend`, `importer`, `notifier` or `control`.
    pub fn role(role: &str) -> HydrantOptions {
        HydrantOptions {
            role: role.to_owned(),
            args: Vec::new(),
            envs: Vec::new(),
            config: None,
            data: None,
        }
    }

    /// `http://127.0.0.1:<port>` of the registry.
    pub fn url(&self) -> String {
        format!("http://{}", self.host())
    }

    /// `127.0.0.1:<port>` of the registry, as it stands in an image name.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.listen.port())
    }

    /// `http://127.0.0.1:<port>` of the admin port.
    pub fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin.port())
    }

    /// `127.0.0.1:<port>` at which other processes read its flights.
    pub fn peer(&self) -> String {
        format!("127.0.0.1:{}", self.peer.port())
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Its working directory, for files that the configuration names relative to itself.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Waits until `/readyz` answers 200.
    pub async fn ready(&mut self) {
        self.answers("/readyz").await;
    }

    /// Waits until `/healthz` answers 200, which it does also while NATS or the store are away.
    pub async fn healthy(&mut self) {
        self.answers("/healthz").await;
    }

    async fn answers(&mut self, path: &str) {
        let url = self.admin_url() + path;
        let (client, process) = (&self.client, &mut self.process);
        until(&format!("{path} of hydrant"), LIMIT, async || {
            process.assert_running();
            let answer = client.get(&url).send().await.ok()?;
            (answer.status() == StatusCode::OK).then_some(())
        })
        .await;
    }

    /// Kills it with SIGKILL; addresses and data stay for [`Hydrant::restart`].
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Asks it to end with SIGTERM and waits for that.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.process.terminate(LIMIT).await
    }

    /// Starts it again with the same addresses and data, killing it first when it still runs, and
    /// waits until it is ready.
    pub async fn restart(&mut self) {
        self.process.kill9();
        self.process.spawn();
        self.ready().await;
    }

    /// Freezes it: connections stay open, nothing is answered.
    pub fn freeze(&self) {
        self.process.signal(process::SIGSTOP);
    }

    /// Ends [`Hydrant::freeze`].
    pub fn thaw(&self) {
        self.process.signal(process::SIGCONT);
    }

    pub fn signal(&self, signal: i32) {
        self.process.signal(signal);
    }

    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Waits for an end that it comes to by itself.
    pub async fn ended(&mut self, limit: Duration) -> ExitStatus {
        self.process.wait(limit).await
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The largest resident set it ever had, in bytes.
    pub fn peak_memory(&self) -> u64 {
        self.process.peak_memory()
    }

    /// Everything it wrote, over all its starts.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits until its output contains `text`.
    pub async fn logged(&self, text: &str) {
        self.process.logged(text, LIMIT).await;
    }

    /// The text of `/metrics`.
    pub async fn metrics(&self) -> String {
        let answer = self.client.get(self.admin_url() + "/metrics").send().await;
        answer.expect("hydrant answers").text().await.expect("hydrant sends its metrics whole")
    }

    /// The sum of all samples of a metric that have these labels; 0 when there are none.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let text = self.metrics().await;
        text.lines().filter_map(|line| sample(line, name, labels)).sum()
    }

    /// The JSON of an API path (`/api/v1/…`) with its status; null when it is not JSON.
    pub async fn api(&self, path: &str) -> (StatusCode, Value) {
        let answer = self.client.get(self.admin_url() + path).send().await;
        let answer = answer.expect("hydrant answers");
        let status = answer.status();
        (status, answer.json().await.unwrap_or_default())
    }

    /// Runs a client command, such as `["status", "lab/app:1"]`, towards this process.
    pub async fn command(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Finished {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        let name = format!("command-{}", CALLS.fetch_add(1, Ordering::Relaxed));
        let mut process = Process::new(&name, binaries::hydrant(), self.directory.path());
        process.args(args).env("HYDRANT_SERVER", self.admin_url());
        process.run(LIMIT).await
    }
}

/// The value of a line of Prometheus text, if it is of this metric and has these labels.
fn sample(line: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let rest = line.strip_prefix(name)?;
    let (stated, value) = match rest.strip_prefix('{') {
        Some(rest) => rest.rsplit_once('}')?,
        None => ("", rest.strip_prefix(' ')?),
    };
    let has = |(key, value): &(&str, &str)| {
        let label = format!("{key}=\"{value}\"");
        stated.split(',').any(|part| part == label)
    };
    labels.iter().all(has).then(|| value.trim().parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_picked_by_name_and_labels() {
        let line = "hydrant_pulls_total{upstream=\"lab\",served=\"miss\"} 3";
        assert_eq!(sample(line, "hydrant_pulls_total", &[]), Some(3.0));
        assert_eq!(sample(line, "hydrant_pulls_total", &[("served", "miss")]), Some(3.0));
        assert_eq!(sample(line, "hydrant_pulls_total", &[("served", "hit")]), None);
        assert_eq!(sample(line, "hydrant_pulls", &[]), None);
        assert_eq!(sample("up 1.5", "up", &[]), Some(1.5));
    }
}
