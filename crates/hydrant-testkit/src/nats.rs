//! A real nats-server with JetStream, one per test.

use crate::{PortLease, Process, TestCertificate, binaries, process, until};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
};

const START_LIMIT: Duration = Duration::from_secs(30);

/// A running nats-server with its own port and JetStream directory; gone when dropped.
#[derive(Debug)]
pub struct NatsServer {
    process: Process,
    port: PortLease,
    tls: bool,
    directory: TempDir,
}

/// What a nats-server is started with.
#[derive(Debug, Default)]
pub struct NatsOptions {
    config: String,
    certificate: Option<TestCertificate>,
}

impl NatsOptions {
    /// Text for the server's configuration file; address, port and store directory are ours.
    pub fn config(mut self, text: &str) -> Self {
        self.config.push_str(text);
        self.config.push('\n');
        self
    }

    /// Every write is synced before it is answered, as hydrant wants it in production.
    pub fn durable(self) -> Self {
        self.config("jetstream { sync_interval: always }")
    }

    /// Serves TLS with this certificate.
    pub fn tls(mut self, certificate: TestCertificate) -> Self {
        self.certificate = Some(certificate);
        self
    }

    pub async fn start(self) -> NatsServer {
        NatsServer::start_with(self).await
    }
}

impl NatsServer {
    /// Starts a server with JetStream and nothing else, and waits until it answers.
    pub async fn start() -> Self {
        NatsOptions::default().start().await
    }

    /// Options for a server that is not the plain one.
    pub fn options() -> NatsOptions {
        NatsOptions::default()
    }

    async fn start_with(options: NatsOptions) -> Self {
        let directory = tempfile::Builder::new().prefix("hydrant-nats-").tempdir();
        let directory = directory.expect("the temporary directory is writable");
        let port = PortLease::take();
        let tls = options.certificate.is_some();
        let config = directory.path().join("nats.conf");
        fs::write(&config, options.text(directory.path())).expect("the directory is writable");
        let mut process =
            Process::new("nats-server", binaries::find("nats-server"), directory.path());
        process.args(["-js", "-a", "127.0.0.1", "-p", &port.port().to_string()]);
        process.arg("-sd").arg(directory.path().join("jetstream")).arg("-c").arg(config);
        let mut server = Self { process, port, tls, directory };
        server.restart().await;
        server
    }

    /// `nats://127.0.0.1:<port>`, or `tls://localhost:<port>`.
    pub fn url(&self) -> String {
        let scheme_and_host = if self.tls { "tls://localhost" } else { "nats://127.0.0.1" };
        format!("{scheme_and_host}:{}", self.port.port())
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn port(&self) -> u16 {
        self.port.port()
    }

    /// The JetStream directory, to copy, wipe or damage while the server is stopped.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("jetstream")
    }

    /// The certificate file clients must trust when the server was started with TLS.
    pub fn certificate_file(&self) -> PathBuf {
        self.directory.path().join("cert.pem")
    }

    /// Kills it with SIGKILL; the port and the data stay for [`NatsServer::restart`].
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Ends it with SIGTERM and waits for that.
    pub async fn stop(&mut self) {
        self.process.terminate(START_LIMIT).await;
    }

    /// Starts it again on the same port and data, killing it first when it still runs.
    pub async fn restart(&mut self) {
        self.process.kill9();
        self.process.spawn();
        let port = self.port.port();
        let process = &mut self.process;
        until("the greeting of nats-server", START_LIMIT, async || {
            process.assert_running();
            greets(port).await.then_some(())
        })
        .await;
    }

    /// Freezes it: connections stay open, nothing is answered.
    pub fn freeze(&self) {
        self.process.signal(process::SIGSTOP);
    }

    /// Ends [`NatsServer::freeze`].
    pub fn thaw(&self) {
        self.process.signal(process::SIGCONT);
    }

    /// What the server wrote.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

impl NatsOptions {
    fn text(&self, directory: &Path) -> String {
        let Some(certificate) = &self.certificate else {
            return self.config.clone();
        };
        let (certificate, key) = certificate.write(directory);
        let tls = format!("tls {{ cert_file: {certificate:?}, key_file: {key:?} }}");
        format!("{}\n{tls}\n", self.config)
    }
}

/// Whether the server sends its `INFO` line, which it does once JetStream is up.
async fn greets(port: u16) -> bool {
    let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await else {
        return false;
    };
    let (mut line, mut reader) = (String::new(), BufReader::new(stream));
    let read = reader.read_line(&mut line);
    let answered = tokio::time::timeout(Duration::from_secs(1), read).await;
    matches!(answered, Ok(Ok(_))) && line.starts_with("INFO ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_killed_server_comes_back_on_its_port() {
        let mut server = NatsServer::start().await;
        let url = server.url();
        server.kill9();
        assert!(!greets(server.port()).await);
        server.restart().await;
        assert_eq!(server.url(), url);
    }

    #[tokio::test]
    async fn options_reach_the_server() {
        let certificate = TestCertificate::generate();
        let server = NatsServer::options().durable().tls(certificate).start().await;
        assert!(server.url().starts_with("tls://"));
        assert!(server.certificate_file().is_file());
        assert!(server.data().is_dir());
    }
}
