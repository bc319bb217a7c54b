//! Jobs handled against a real nats-server, a scripted upstream and a store in memory.

mod ends;
mod jobs;
mod tags;

use super::*;
use hydrant_bus::BusConfig;
use hydrant_proto::{Digest, EventKind, Lane, Platform, Tag};
use hydrant_rules::Resources;
use hydrant_store::{
    Frozen, MissRecord, Owner, S3Settings, Steering, StoreConfig, TagAct, TagRecord, Wanted, Writer,
};
use hydrant_testkit::{
    FakeUpstream, Fault, Flow, Gate, Image, ImageBuilder, NatsServer, Proxy, SeaweedFs, until,
};
use hydrant_upstream::SecretSource;
use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

const SOON: Duration = Duration::from_secs(30);

struct Lab {
    upstream: FakeUpstream,
    worker: Worker,
    nats: NatsServer,
    /// As the bus counts them.
    deliveries: AtomicU64,
    _spool: tempfile::TempDir,
}

impl Lab {
    async fn start() -> Self {
        Self::with_rule("").await
    }

    async fn with_rule(more: &str) -> Self {
        let (upstream, nats) = (FakeUpstream::start().await, NatsServer::start().await);
        let spool = tempfile::tempdir().unwrap();
        let (store, table) = (Store::in_memory(), table(&upstream, more));
        let bus = bus(&nats).await;
        let worker = Worker {
            flights: Flights::new(store.clone(), spool.path().into(), 1 << 30, None).unwrap(),
            store,
            bus,
            upstreams: Upstreams::new(SecretSource::default()),
            feed: ResourceFeed::fixed(table),
            schedule: Schedule::doubling(Duration::from_millis(1), Duration::from_millis(2)),
            patience: SOON,
        };
        Self { upstream, worker, nats, deliveries: AtomicU64::new(0), _spool: spool }
    }

    /// A request for an image, with its miss on record.
    async fn missed(&self, image: &str, wanted: Wanted) -> HydrationRequested {
        let image: hydrant_proto::Image = image.parse().unwrap();
        let route = self.worker.table().route(&image.repository).unwrap();
        let request = HydrationRequested {
            rule: route.rule.name.to_string(),
            generation: route.generation.to_string(),
            upstream: route.upstream.name.to_string(),
            repository: image.repository,
            reference: image.reference,
            lane: Lane::Interactive,
            platforms: Vec::new(),
            requested_at: Timestamp::now(),
        };
        let miss = MissRecord::new(request.clone(), wanted, Timestamp::now());
        self.worker.store.record_miss(&miss).await.unwrap();
        // It is published anew.
        self.deliveries.store(0, Ordering::Relaxed);
        request
    }

    async fn handle(&self, request: &HydrationRequested) -> Verdict {
        let deliveries = self.deliveries.fetch_add(1, Ordering::Relaxed) + 1;
        self.worker.handle(job(request, deliveries)).await
    }

    async fn tag(&self) -> TagRecord {
        let (name, tag) = ("lab/app".parse().unwrap(), "1".parse().unwrap());
        self.worker.store.tag(&name, &tag).await.unwrap().expect("there is a record").0
    }

    async fn letter(&self, request: &HydrationRequested) -> DeadLetter {
        let id = DeadLetterId::of_job(&request.id());
        self.worker.store.dead_letter(&id).await.unwrap().expect("there is a dead letter")
    }

    async fn no_misses(&self, request: &HydrationRequested) {
        assert_eq!(self.worker.store.misses(&request.id()).await.unwrap(), []);
    }

    /// Ids of the events so far, in order.
    async fn events(&self, count: usize) -> Vec<(EventKind, String)> {
        use futures::StreamExt;
        let bus = bus(&self.nats).await;
        let all = bus.follow_events(Some(Timestamp::UNIX_EPOCH)).take(count);
        let told = all.map(|event| (event.kind, event.id)).collect();
        tokio::time::timeout(SOON, told).await.expect("the events are told")
    }
}

async fn bus(nats: &NatsServer) -> Bus {
    let bus = Bus::connect(BusConfig::new(nats.url(), "test".to_owned())).await.unwrap();
    bus.connected().wait_for(|connected| *connected).await.unwrap();
    bus
}

fn table(upstream: &FakeUpstream, more: &str) -> Table {
    let text = format!(
        "[[upstream]]\nname='lab'\nendpoint='{}'\nallow_private=true\n[[rule]]\nname='lab'\n\
         downstream='lab/*'\nupstream='lab'\n{more}",
        upstream.url()
    );
    Table::compile(Resources::from_toml(&text, Path::new("/")).unwrap()).unwrap()
}

fn job(request: &HydrationRequested, deliveries: u64) -> Job {
    Job { message: request.clone(), deliveries, published: Timestamp::now(), traceparent: None }
}

fn image(seed: u64) -> Image {
    ImageBuilder::new(seed).layers(&[100_000, 1000]).build()
}
