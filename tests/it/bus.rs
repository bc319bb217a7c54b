//! A bus that stands still, and one of three servers: pulls go on, and afterwards there is one
//! history.

use crate::{
    audit,
    lab::{SOON, announced, config, config_with_hook, hydrated, nothing_pending, role},
};
use futures::future::join_all;
use hydrant_testkit::{
    FakeUpstream, ImageBuilder, NatsServer, PortLease, Skopeo, WebhookSink, until,
};
use std::time::{Duration, Instant};

async fn cold_pull(upstream: &FakeUpstream, host: &str, name: &str) -> Duration {
    let seed = name.bytes().fold(7_u64, |sum, byte| sum * 31 % 1_000_003 + u64::from(byte));
    let image = ImageBuilder::new(seed).layers(&[50_000, 1000]).build();
    upstream.insert(&image, name, "1");
    let began = Instant::now();
    let pulled = Skopeo::pull(format!("{host}/lab/{name}:1")).run().await;
    assert_eq!(pulled.expect("a cold pull").digest, image.digest, "{name}");
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_stands_still_until_it_is_given_up_holds_up_no_pull_and_loses_nothing() {
    let (upstream, nats) = (FakeUpstream::start().await, NatsServer::start().await);
    let store = tempfile::tempdir().unwrap();
    let hydrant = role("up", &config(&upstream.url()))
        .store(store.path().to_str().unwrap())
        .nats(&nats.url())
        .env("HYDRANT_SWEEP_AFTER", "1s")
        .env("HYDRANT_SWEEP_EVERY", "2s")
        .start()
        .await;
    cold_pull(&upstream, &hydrant.host(), "before").await;
    nats.freeze();
    let mut names = vec!["before".to_owned()];
    let checks = format!("{}/readyz?verbose", hydrant.admin_url());
    // Until the client has noticed that nothing answers, which takes it some pings.
    until("the bus to be given up", SOON, async || {
        let name = format!("during-{}", names.len());
        cold_pull(&upstream, &hydrant.host(), &name).await;
        names.push(name);
        let told = reqwest::get(&checks).await.ok()?.text().await.ok()?;
        told.contains("[!] bus:").then_some(())
    })
    .await;
    nats.thaw();
    for name in names {
        hydrated(&hydrant, &format!("lab/{name}:1")).await;
    }
    nothing_pending(&nats.url()).await;
    drop(hydrant);
    audit::directory(store.path());
}

/// Three servers that form a cluster.
async fn cluster() -> Vec<NatsServer> {
    let ports: Vec<_> = (0..3).map(|_| PortLease::take()).collect();
    let route = |port: &PortLease| format!("\"nats://127.0.0.1:{}\"", port.port());
    let routes: Vec<_> = ports.iter().map(route).collect();
    let start = |(n, port): (usize, &PortLease)| {
        let (port, routes) = (port.port(), routes.join(", "));
        let config = format!(
            "server_name: n{n}\n\
             cluster {{ name: lab, listen: \"127.0.0.1:{port}\", routes: [{routes}] }}"
        );
        async move { NatsServer::options().config(&config).start().await }
    };
    let servers = join_all(ports.iter().enumerate().map(start)).await;
    // The servers live longer than the test needs the leases: nobody else takes these ports.
    std::mem::forget(ports);
    servers
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_of_three_servers_is_cut_off_pulls_go_on_and_there_is_one_history() {
    let (upstream, sink) = (FakeUpstream::start().await, WebhookSink::start().await);
    let (servers, store) = (cluster().await, tempfile::tempdir().unwrap());
    let urls: Vec<_> = servers.iter().map(NatsServer::url).collect();
    let hydrant = role("up", &config_with_hook(&upstream.url(), &sink))
        .store(store.path().to_str().unwrap())
        .args(["--nats-replicas", "3"])
        .nats(&urls.join(","))
        .env("HYDRANT_ACK_WAIT", "3s")
        .env("HYDRANT_SWEEP_AFTER", "1s")
        .env("HYDRANT_SWEEP_EVERY", "2s")
        .start()
        .await;
    let mut names = Vec::new();
    // One of them leads the queue.
    for (n, server) in servers.iter().enumerate() {
        server.freeze();
        for m in 0..3 {
            let name = format!("app-{n}-{m}");
            cold_pull(&upstream, &hydrant.host(), &name).await;
            names.push(name);
        }
        // The two others go on with the queue.
        for name in &names {
            hydrated(&hydrant, &format!("lab/{name}:1")).await;
        }
        server.thaw();
    }
    nothing_pending(&urls.join(",")).await;
    let told = until("every announcement", SOON, async || {
        let told = announced(&sink);
        (told.len() == names.len()).then_some(told)
    })
    .await;
    for (image, ids) in told {
        assert!(ids.iter().all(|id| *id == ids[0]), "{image} has two histories: {ids:?}");
    }
    drop(hydrant);
    assert_eq!(audit::directory(store.path()), names.len());
}
