//! A fleet inside one test: each member has a connection to the bus and clients of its own.

use futures::future::join_all;
use hydrant_bus::{Bus, BusConfig};
use hydrant_proto::Reference;
use hydrant_testkit::{FakeUpstream, ImageBuilder, NatsServer, until};
use hydrant_upstream::{
    BreakerSettings, Client, Options, Priority, SecretSource, UpstreamError, Upstreams,
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::{CancellationToken, DropGuard};

pub const SOON: Duration = Duration::from_secs(20);

pub struct Member {
    pub client: Arc<Client>,
    pub bus: Bus,
    _stop: DropGuard,
}

pub struct Fleet {
    pub fake: FakeUpstream,
    pub nats: NatsServer,
    pub members: Vec<Member>,
}

impl Fleet {
    /// So many members that have all asked the upstream and know of each other.
    pub async fn start(size: usize, extra: Value) -> Self {
        let (fake, nats) = (FakeUpstream::start().await, NatsServer::start().await);
        fake.insert(&ImageBuilder::new(1).layer(1_000).build(), "lab/app", "1");
        let mut members = Vec::new();
        for n in 0..size {
            members.push(Member::start(&format!("member-{n}"), &fake, &nats, &extra).await);
        }
        let fleet = Self { fake, nats, members };
        fleet.meet().await;
        fleet.fake.forget_requests();
        fleet
    }

    async fn meet(&self) {
        join_all(self.members.iter().map(|member| async { member.ask().await.unwrap() })).await;
        until("all to know of all", SOON, async || {
            let all = self.members.len();
            self.members.iter().all(|m| m.client.guard().sharers() == all).then_some(())
        })
        .await;
    }
}

impl Member {
    async fn start(name: &str, fake: &FakeUpstream, nats: &NatsServer, extra: &Value) -> Self {
        let bus = Bus::connect(BusConfig::new(nats.url(), name)).await.unwrap();
        bus.connected().wait_for(|up| *up).await.unwrap();
        let breaker = BreakerSettings {
            open_for: Duration::from_millis(400),
            jitter: 0.0,
            ..BreakerSettings::default()
        };
        let options = Options { breaker, ..Options::default() };
        let upstreams = Upstreams::with_options(SecretSource::default(), options);
        let mut written = json!({
            "name": "lab", "endpoint": fake.url(), "allow_private": true, "timeout": "2s",
        });
        for (key, value) in extra.as_object().unwrap() {
            written[key] = value.clone();
        }
        let upstream = Arc::new(serde_json::from_value(written).unwrap());
        let client = upstreams.get(&upstream, None).unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(hydrant_fleet::run(bus.clone(), upstreams, stop.clone()));
        Self { client, bus, _stop: stop.drop_guard() }
    }

    /// One call, repeated by nobody.
    pub async fn ask(&self) -> Result<Option<u64>, UpstreamError> {
        self.ask_as(Priority::Interactive).await
    }

    pub async fn ask_as(&self, priority: Priority) -> Result<Option<u64>, UpstreamError> {
        let name = "lab/app".parse().unwrap();
        let tag: Reference = "1".parse().unwrap();
        let head = self.client.head_manifest(&name, &tag, priority, Duration::from_secs(2)).await?;
        Ok(head.size)
    }
}
