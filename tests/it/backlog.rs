//! Many misses while nobody works on them.

use crate::{
    audit,
    lab::{SOON, config, nothing_pending, role},
};
use futures::{StreamExt, stream};
use hydrant_testkit::{FakeUpstream, ImageBuilder, NatsServer, until};
use std::{fs, path::Path};

const MISSES: usize = 1_000;
/// Requests that the upstream bears at once.
const AT_ONCE: usize = 16;

/// Jobs that something was missed of.
fn count(misses: &Path) -> usize {
    fs::read_dir(misses).map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_misses_without_a_worker_are_caught_up_with_within_the_budget() {
    let (upstream, nats) = (FakeUpstream::start().await, NatsServer::start().await);
    let store = tempfile::tempdir().unwrap();
    for n in 0..MISSES {
        let image = ImageBuilder::new(n as u64).layers(&[100]).build();
        upstream.insert(&image, &format!("app-{n}"), "1");
    }
    let limit = format!("concurrency = {AT_ONCE}\nallow_private");
    let config = config(&upstream.url()).replacen("allow_private", &limit, 1);
    let start = |name| {
        let role = role(name, &config).nats(&nats.url());
        role.store(store.path().to_str().unwrap()).start()
    };
    let mut frontend = start("frontend").await;
    let client = reqwest::Client::new();
    let pull = async |n: usize| {
        let url = format!("{}/v2/lab/app-{n}/manifests/1", frontend.url());
        let answer = client.get(url).send().await.expect("hydrant answers");
        assert_eq!(answer.status(), 200);
    };
    stream::iter(0..MISSES).for_each_concurrent(AT_ONCE, pull).await;
    // It writes the last of them down before it ends.
    frontend.terminate().await;
    let misses = store.path().join("hydrant/v1/misses");
    assert_eq!(count(&misses), MISSES);

    let (control, _importer) = tokio::join!(start("control"), start("importer"));
    until("all to be local", SOON, async || (count(&misses) == 0).then_some(())).await;
    nothing_pending(&nats.url()).await;
    let letters = control.api("/api/v1/dead-letters").await.1;
    assert_eq!(letters["total"], 0, "{letters}");
    assert_eq!(audit::directory(store.path()), MISSES, "all of them are local, and whole");
    // What the frontend staged is not fetched again, and each blob once.
    assert_eq!(upstream.gets("*/manifests/*"), MISSES);
    assert_eq!(upstream.gets("*/blobs/*"), 2 * MISSES);
    assert!(upstream.heads("*") <= MISSES, "{} more questions", upstream.heads("*"));
    let peak = upstream.peak("*", "*");
    assert!(peak <= AT_ONCE, "{peak} requests at once");
}
