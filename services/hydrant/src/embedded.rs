//! The nats-server of `hydrant up`: found, configured, started, kept running, stopped.
//!
//! It belongs to hydrant: its port, its login and its data are in the data directory, only this
//! machine can reach it, and it does not outlive hydrant.

mod child;
mod config;
mod find;

pub use find::{Program, find};

use anyhow::Context as _;
use child::Child;
use config::Place;
use hydrant_boot::Schedule;
use std::{
    fs::{self, File},
    path::Path,
    thread,
    time::Duration,
};
use tokio::{runtime::Builder, sync::oneshot};
use tokio_util::sync::CancellationToken;

/// Longest wait for a start: JetStream reads its data first.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Longest wait for an orderly end.
const STOP_LIMIT: Duration = Duration::from_secs(8);
const RESTART: Schedule = Schedule::doubling(Duration::from_millis(200), Duration::from_secs(10));

/// A running nats-server. Dropping it kills it; [`NatsServer::stop`] ends it in order.
#[derive(Debug)]
pub struct NatsServer {
    place: Place,
    version: String,
    stop: CancellationToken,
    stopped: oneshot::Receiver<()>,
    /// Held for as long as the data is in use.
    _lock: File,
}

impl NatsServer {
    /// Starts the server with its data in `data/nats` and waits until it answers.
    pub async fn start(program: Program, data: &Path) -> anyhow::Result<Self> {
        let lock = lock(data)?;
        let place = Place::prepare(&data.join("nats"))?;
        let stop = CancellationToken::new();
        let (started, ready) = oneshot::channel();
        let (ended, stopped) = oneshot::channel();
        let version = program.version.clone();
        let supervisor = Supervisor { program, place: place.clone(), stop: stop.clone() };
        // A runtime of its own, which no end of the process's runtime takes away in the middle of
        // a stop. It runs on the thread that waits for it alone.
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("start a runtime for nats-server")?;
        // The kernel ends the child with the thread that started it, so that thread is one that
        // lives as long as the server should.
        thread::Builder::new()
            .name("nats-server".to_owned())
            .spawn(move || {
                runtime.block_on(supervisor.run(started));
                // The other side may have stopped waiting.
                let _ = ended.send(());
            })
            .context("start a thread for nats-server")?;
        ready.await.context("start nats-server")??;
        Ok(Self { place, version, stop, stopped, _lock: lock })
    }

    /// Where to connect, login included: not to be logged.
    pub fn url(&self) -> String {
        self.place.url()
    }

    /// For people.
    pub fn describe(&self) -> String {
        format!("nats-server {} on 127.0.0.1:{}, started by hydrant", self.version, self.place.port)
    }

    /// Ends it and waits until it has.
    pub async fn stop(mut self) {
        self.stop.cancel();
        // An error means the thread is gone, and the server with it.
        let _ = (&mut self.stopped).await;
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Two processes on the same data would damage it.
fn lock(data: &Path) -> anyhow::Result<File> {
    fs::create_dir_all(data)
        .with_context(|| format!("make the data directory {}", data.display()))?;
    let path = data.join("up.lock");
    let file = File::options().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    file.try_lock().map_err(|_| {
        anyhow::anyhow!(
            "another `hydrant up` uses the data directory {}; stop it, or give another with --data",
            data.display()
        )
    })?;
    Ok(file)
}

struct Supervisor {
    program: Program,
    place: Place,
    stop: CancellationToken,
}

impl Supervisor {
    /// Runs the server until told to stop, starting it again whenever it ends by itself. Only the
    /// first start may fail for good.
    async fn run(self, started: oneshot::Sender<anyhow::Result<()>>) {
        let mut child = match self.launch().await {
            Ok(child) => child,
            Err(error) => return drop(started.send(Err(error))),
        };
        let _ = started.send(Ok(()));
        let mut failures = 0;
        loop {
            if self.stop.run_until_cancelled(child.ended()).await.is_none() {
                return child.stop(STOP_LIMIT).await;
            }
            tracing::warn!(log = %self.place.log().display(), "nats-server ended by itself, starting it again");
            child = loop {
                failures += 1;
                let pause = tokio::time::sleep(RESTART.delay(failures));
                if self.stop.run_until_cancelled(pause).await.is_none() {
                    return;
                }
                match self.launch().await {
                    Ok(child) => break child,
                    Err(error) => tracing::error!(%error, "nats-server does not start"),
                }
            };
            failures = 0;
        }
    }

    async fn launch(&self) -> anyhow::Result<Child> {
        let mut child = Child::spawn(&self.program.path, &self.place)?;
        tokio::select! {
            () = child::greets(self.place.port) => Ok(child),
            () = child.ended() => anyhow::bail!(
                "nats-server ended at once; it said:\n{}", self.place.last_words()
            ),
            () = tokio::time::sleep(START_LIMIT) => {
                child.stop(STOP_LIMIT).await;
                anyhow::bail!("nats-server did not answer within {START_LIMIT:?}; see {}",
                    self.place.log().display())
            }
        }
    }
}
