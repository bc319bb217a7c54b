//! Members of a cluster, all in this process: each has its own connection to NATS and its own port
//! for the others, both behind a proxy that can be made to fail.

use hydrant_boot::serve::{Limits, serve};
use hydrant_bus::{Bus, BusConfig};
use hydrant_flight::{Cluster, Flights, Grant};
use hydrant_proto::RepositoryName;
use hydrant_rules::{Resources, Table};
use hydrant_store::Store;
use hydrant_testkit::{FakeUpstream, Flow, NatsServer, Proxy};
use hydrant_upstream::{Client, SecretSource, Upstreams};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub const MIB: u64 = 1024 * 1024;
/// Room for everything at once.
const SPOOL: u64 = 128 * MIB;

pub struct Member {
    pub flights: Flights,
    pub bus: Bus,
    pub to_nats: Proxy,
    pub to_peer: Proxy,
    _stop: tokio_util::sync::DropGuard,
}

impl Member {
    pub async fn join(nats: &NatsServer, store: Store, spool: PathBuf) -> Self {
        let to_nats = Proxy::start(&nats.url().replace("nats://", "")).await;
        let config = BusConfig::new(format!("nats://{}", to_nats.host()), "hydrant-test");
        let bus = Bus::connect(config).await.unwrap();
        bus.connected().wait_for(|up| *up).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to_peer = Proxy::start(&listener.local_addr().unwrap().to_string()).await;
        let address = to_peer.host().parse().unwrap();
        let cluster = Cluster { state: bus.shared_state(), address };
        let flights = Flights::new(store, spool, SPOOL, Some(cluster)).unwrap();
        let (routes, stop) = (flights.peer_routes(), CancellationToken::new());
        tokio::spawn(serve(listener, routes, Limits::default(), stop.clone()));
        Self { flights, bus, to_nats, to_peer, _stop: stop.drop_guard() }
    }

    /// Takes this member off the network, its connections left open.
    pub fn freeze(&self) {
        self.to_nats.flow(Flow::Hold);
        self.to_peer.flow(Flow::Hold);
    }

    pub fn thaw(&self) {
        self.to_nats.flow(Flow::Pass);
        self.to_peer.flow(Flow::Pass);
    }
}

/// A client of `upstream`, by the name `lab`, with more `settings` in TOML.
pub fn client(upstream: &FakeUpstream, settings: &str) -> Arc<Client> {
    let text = format!(
        "[[upstream]]\nname='lab'\nendpoint='{}'\nallow_private=true\n{settings}\n[[rule]]\n\
         name='lab'\ndownstream='lab/*'\nupstream='lab'\n",
        upstream.url()
    );
    let table = Table::compile(Resources::from_toml(&text, Path::new("/")).unwrap()).unwrap();
    let route = table.route(&name("lab/app")).unwrap();
    Upstreams::new(SecretSource::default()).get(&route.upstream, None).unwrap()
}

pub fn name(text: &str) -> RepositoryName {
    text.parse().unwrap()
}

pub fn grant(repository: &str) -> Grant {
    Grant { repository: name(repository), origin: "here".into() }
}
