//! Connecting, making jobs, and running a consume loop whose handler is told what to answer.

use hydrant_bus::{Bus, BusConfig, ConsumeOptions, Job, Rejected, Verdict, consume};
use hydrant_proto::{HydrationRequested, Lane};
use hydrant_testkit::{NatsServer, until};
use jiff::Timestamp;
use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub const LIMIT: Duration = Duration::from_secs(30);
/// Short, so that a redelivery is seen soon.
pub const ACK_WAIT: Duration = Duration::from_secs(1);

pub fn config(server: &NatsServer) -> BusConfig {
    BusConfig { ack_wait: ACK_WAIT, ..BusConfig::new(server.url(), "hydrant-test") }
}

pub async fn connect(server: &NatsServer) -> Bus {
    ready(Bus::connect(config(server)).await.unwrap()).await
}

pub async fn ready(bus: Bus) -> Bus {
    let mut connected = bus.connected();
    let waited = tokio::time::timeout(LIMIT, connected.wait_for(|up| *up)).await;
    assert!(waited.is_ok(), "not ready: {:?}", bus.problem());
    waited.unwrap().unwrap();
    bus
}

/// A client of its own, to look at the server or to break it behind the bus's back.
pub async fn raw(server: &NatsServer) -> async_nats::jetstream::Context {
    async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap())
}

pub fn job(upstream: &str, tag: &str) -> HydrationRequested {
    HydrationRequested {
        rule: "lab".to_owned(),
        generation: "g1".to_owned(),
        upstream: upstream.to_owned(),
        repository: "lab/app".parse().unwrap(),
        reference: tag.parse().unwrap(),
        lane: Lane::Interactive,
        platforms: Vec::new(),
        requested_at: Timestamp::UNIX_EPOCH,
    }
}

/// What handlers saw, by tag.
#[derive(Clone, Default)]
pub struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    pub fn note(&self, what: impl ToString) {
        self.0.lock().unwrap().push(what.to_string());
    }

    pub fn list(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for what in self.list() {
            *counts.entry(what).or_default() += 1;
        }
        counts
    }

    pub async fn wait(&self, what: &str, enough: impl Fn(&[String]) -> bool) {
        until(what, LIMIT, async || enough(&self.list()).then_some(())).await;
    }
}

/// A consume loop under way.
pub struct Running {
    pub shutdown: CancellationToken,
    pub paused: watch::Sender<bool>,
    pub rejected: Arc<Mutex<Vec<Rejected>>>,
    task: JoinHandle<()>,
}

impl Running {
    pub async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(LIMIT, self.task).await.expect("the loop ends").unwrap();
    }

    /// As if the process had been killed.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    pub fn rejected(&self) -> Vec<Rejected> {
        self.rejected.lock().unwrap().clone()
    }
}

pub struct Setup {
    pub slots: usize,
    pub paused: bool,
    pub drain: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self { slots: 4, paused: false, drain: LIMIT }
    }
}

pub fn run<F>(
    bus: &Bus,
    upstream: &str,
    setup: Setup,
    handle: impl Fn(Job) -> F + Send + Sync + 'static,
) -> Running
where
    F: Future<Output = Verdict> + Send + 'static,
{
    let (shutdown, paused) = (CancellationToken::new(), watch::Sender::new(setup.paused));
    let options = ConsumeOptions {
        slots: setup.slots,
        paused: paused.subscribe(),
        shutdown: shutdown.clone(),
        drain: setup.drain,
    };
    let rejected = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&rejected);
    let reject = move |rejection| {
        record.lock().unwrap().push(rejection);
        async { Ok::<_, String>(()) }
    };
    let task = tokio::spawn(consume(bus.jobs(upstream), options, handle, reject));
    Running { shutdown, paused, rejected, task }
}

/// A loop whose handler notes each job's tag and is done.
pub fn run_noting(bus: &Bus, upstream: &str, seen: &Seen) -> Running {
    let seen = seen.clone();
    run(bus, upstream, Setup::default(), move |job| {
        seen.note(&job.message.reference);
        async { Verdict::Done }
    })
}

/// Waits until nothing is left on the work queue.
pub async fn drained(server: &NatsServer) {
    let jetstream = raw(server).await;
    until("an empty queue", LIMIT, async || (queued(&jetstream).await == 0).then_some(())).await;
}

pub async fn queued(jetstream: &async_nats::jetstream::Context) -> u64 {
    let stream = jetstream.get_stream("HYDRANT_JOBS").await.unwrap();
    stream.cached_info().state.messages
}
