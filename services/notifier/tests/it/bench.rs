//! A notifier with real neighbours: nats-server, a store, endpoints. Each test its own.

use futures::future::join_all;
use hydrant_boot::{Editor, Readiness, ResourceFeed};
use hydrant_bus::{Bus, BusConfig, ConsumeOptions, Delivery, Verdict, consume};
use hydrant_notifier::{Context, Settings};
use hydrant_proto::{DeliveryAttempt, Event, EventData, EventKind};
use hydrant_rules::{Resources, Table};
use hydrant_store::Store;
use hydrant_testkit::{NatsServer, until};
use jiff::Timestamp;
use std::{fs, path::Path, time::Duration};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=";
/// Longest wait for something that should happen at once.
pub const SOON: Duration = Duration::from_secs(15);

const SECOND: Duration = Duration::from_secs(1);

/// The neighbours; they outlive the notifiers that a test starts and drops.
pub struct Bench {
    pub nats: NatsServer,
    pub bus: Bus,
    pub store: Store,
    pub feed: ResourceFeed,
    pub editor: Editor,
    directory: TempDir,
}

/// A running notifier. Dropping it is the sudden end.
pub struct Running {
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Bench {
    pub async fn start() -> Self {
        let nats = NatsServer::start().await;
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("secret"), SECRET).unwrap();
        let ack_wait = Duration::from_secs(2);
        let config = BusConfig { ack_wait, ..BusConfig::new(nats.url(), "test") };
        let bus = Bus::connect(config).await.unwrap();
        bus.connected().wait_for(|connected| *connected).await.unwrap();
        let store = Store::in_memory();
        let feed = ResourceFeed::fixed(Table::empty());
        let editor = Editor::new(bus.resources(), feed.clone());
        Self { nats, bus, store, feed, editor, directory }
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Puts these webhooks, and no others, into effect. Each is a name, an address and more TOML.
    pub async fn webhooks(&self, webhooks: &[(&str, &str, &str)]) {
        let secret = self.directory().join("secret");
        let text = |(name, url, more): &(&str, &str, &str)| {
            format!(
                "[[webhook]]\nname = '{name}'\nurl = '{url}'\nallow_private = true\n\
                 secret = {{ file = '{}' }}\n{more}\n",
                secret.display()
            )
        };
        let text: String = webhooks.iter().map(text).collect();
        let resources = Resources::from_toml(&text, self.directory()).unwrap();
        self.feed.replace(Table::compile(resources).unwrap());
    }

    /// Starts a notifier and waits until it can miss nothing.
    pub async fn notifier(&self, settings: Settings) -> Running {
        let readiness = Readiness::default();
        let context = Context {
            bus: self.bus.clone(),
            store: self.store.clone(),
            feed: self.feed.clone(),
            editor: self.editor.clone(),
            readiness: readiness.clone(),
            settings,
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(hydrant_notifier::run(context, stop.clone()));
        until("the notifier being ready", SOON, async || {
            let report = readiness.report();
            (report.contains("webhooks") && readiness.is_ready()).then_some(())
        })
        .await;
        Running { stop, task }
    }

    pub async fn publish(&self, event: &Event) {
        self.bus.publish_event(event).await.unwrap();
    }

    pub async fn publish_all(&self, events: &[Event]) {
        for some in events.chunks(100) {
            join_all(some.iter().map(|event| self.publish(event))).await;
        }
    }

    /// Publishes an event that the webhook's consumer delivers `times`, and gets back each time.
    pub async fn given_back(&self, webhook: &str, event: &Event, times: u64) {
        let mut consumer = self.bus.event_deliveries(webhook);
        consumer.attach().await.unwrap();
        self.publish(event).await;
        let (stop, given_back) = (CancellationToken::new(), CancellationToken::new());
        let options = ConsumeOptions {
            slots: 1,
            paused: watch::channel(false).1,
            shutdown: stop.clone(),
            drain: SOON,
        };
        let enough = given_back.clone();
        let handle = move |delivery: Delivery| {
            if delivery.deliveries >= times {
                enough.cancel();
            }
            let rest = if delivery.deliveries >= times { SECOND } else { Duration::ZERO };
            async move { Verdict::Later(rest) }
        };
        let task =
            tokio::spawn(consume(consumer, options, handle, |_| async { Ok::<_, String>(()) }));
        given_back.cancelled().await;
        stop.cancel();
        task.await.unwrap();
    }

    /// The log of a webhook, oldest first, once it has `count` attempts.
    pub async fn log(&self, webhook: &str, count: usize) -> Vec<DeliveryAttempt> {
        until(&format!("{count} attempts in the log of {webhook}"), SOON, async || {
            let mut log = self.bus.delivery_log(webhook, 1_000).await.ok()?;
            log.reverse();
            (log.len() >= count).then_some(log)
        })
        .await
    }
}

impl Running {
    /// Asks it to stop and waits until it has.
    pub async fn stop(mut self) {
        self.stop.cancel();
        (&mut self.task).await.unwrap().unwrap();
    }

    /// Ends it between two steps, as a crash would, and waits until nothing of it runs.
    pub async fn crash(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An `image.hydrated` of `lab/app`, a different one for each number.
pub fn hydrated(number: u64) -> Event {
    let data = EventData {
        upstream: Some("lab".into()),
        rule: Some("lab".into()),
        repository: Some("lab/app".parse().unwrap()),
        reference: Some("1".parse().unwrap()),
        seq: number,
        ..EventData::default()
    };
    Event::new(EventKind::ImageHydrated, Timestamp::now(), data)
}
