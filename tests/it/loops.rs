//! An upstream that is hydrant itself, or that asks it in turn.

use crate::lab::{SOON, hydrated, nothing_pending, role};
use futures::future::join_all;
use hydrant_testkit::{
    FakeUpstream, Hydrant, Image, ImageBuilder, NatsServer, Proxy, Skopeo, until,
};
use reqwest::{Client, Method};
use serde_json::Value;
use std::ops::Range;

/// Clients that pull at once from each hydrant.
const HERD: usize = 20;

/// `lab/*` is the same repository at `host`, where each tag is checked before it is served.
fn config(host: &str) -> String {
    format!(
        r#"
        [[upstream]]
        name = "lab"
        endpoint = "http://{host}"
        allow_private = true
        [[rule]]
        name = "lab"
        downstream = "lab/*"
        upstream = "lab"
        repository = "lab/*"
        fresh_for = "0s"
        "#
    )
}

fn insert(upstream: &FakeUpstream, repository: &str) -> Image {
    let image = ImageBuilder::new(repository.len() as u64).layers(&[100_000]).build();
    upstream.insert(&image, repository, "1");
    image
}

async fn pull(hydrant: &Hydrant, image: &str) -> String {
    let pulled = Skopeo::pull(format!("{}/{image}", hydrant.host())).run().await;
    pulled.unwrap_or_else(|error| panic!("{image}: {error}")).digest.to_string()
}

/// Each of them is told that it goes round in a circle.
async fn is_refused(hydrant: &Hydrant, paths: &[String]) {
    let client = Client::new();
    let ask = async |path: &String, method: Method| {
        let asked = client.request(method, format!("{}/v2/{path}", hydrant.url())).send().await;
        let answer = asked.expect("hydrant answers");
        assert_eq!(answer.status(), 508, "{path}");
        assert_eq!(answer.headers()["x-hydrant-error"], "upstream-loop");
        answer.text().await.expect("an error is sent whole")
    };
    let gets = join_all(paths.iter().map(|path| ask(path, Method::GET))).await;
    for text in gets {
        let body: Value = serde_json::from_str(&text).expect("an OCI error body");
        let message = body["errors"][0]["message"].as_str().unwrap_or_default();
        assert!(message.contains("name the registry itself"), "{body}");
    }
    ask(&paths[0], Method::HEAD).await;
}

/// Manifests and blobs that nobody has.
fn cold(numbers: Range<usize>) -> Vec<String> {
    let manifests = numbers.clone().map(|n| format!("lab/cold-{}/manifests/1", n % 4));
    let blobs = numbers.map(|n| format!("lab/cold/blobs/sha256:{:064x}", n % 4));
    manifests.chain(blobs).collect()
}

async fn asked_upstream(hydrant: &Hydrant) -> f64 {
    hydrant.metric("hydrant_upstream_requests_total", &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hydrant_that_is_its_own_upstream_says_so_at_once_and_serves_what_it_has() {
    let upstream = FakeUpstream::start().await;
    let (warm, late) = (insert(&upstream, "lab/warm"), insert(&upstream, "lab/cold-0"));
    let door = Proxy::start(&upstream.host()).await;
    let hydrant = role("up", &config(&door.host())).start().await;
    pull(&hydrant, "lab/warm:1").await;
    hydrated(&hydrant, "lab/warm:1").await;

    door.lead_to(&hydrant.host());
    let before = asked_upstream(&hydrant).await;
    let paths = cold(0..HERD);
    is_refused(&hydrant, &paths).await;
    assert_eq!(pull(&hydrant, "lab/warm:1").await, warm.digest.to_string());
    let asked = asked_upstream(&hydrant).await - before;
    // One or two for each, and what it costs to find out that no token is needed.
    assert!(asked <= 2.0 * paths.len() as f64 + 6.0, "{asked} requests for {}", paths.len());

    hydrant.command(["hydrate", "lab/cold-0:1"]).await.success();
    let letter = until("the dead letter", SOON, async || {
        let letters = hydrant.api("/api/v1/dead-letters").await.1;
        letters["items"].get(0).cloned()
    })
    .await;
    assert_eq!(letter["class"], "upstream-loop", "{letter}");
    assert!(letter["reason"].as_str().unwrap().contains("leads back"), "{letter}");
    assert!(hydrant.log().contains("the upstream of rule lab leads to"), "the log names the rule");

    // Its breaker never opened.
    door.lead_to(&upstream.host());
    assert_eq!(pull(&hydrant, "lab/cold-0:1").await, late.digest.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hydrants_that_ask_each_other_say_so_and_a_chain_of_them_is_none() {
    let upstream = FakeUpstream::start().await;
    let (warm, late) = (insert(&upstream, "lab/warm"), insert(&upstream, "lab/cold-0"));
    let door = Proxy::start(&upstream.host()).await;
    let inner = role("up", &config(&door.host())).start().await;
    let outer = role("up", &config(&inner.host())).start().await;
    // A chain: the outer one asks the inner one, which asks the registry, each once.
    assert_eq!(pull(&outer, "lab/warm:1").await, warm.digest.to_string());
    hydrated(&outer, "lab/warm:1").await;
    hydrated(&inner, "lab/warm:1").await;
    assert_eq!(upstream.gets("*/manifests/*"), 1);
    assert_eq!(upstream.gets("*/blobs/*"), warm.all_blobs().len());

    door.lead_to(&outer.host());
    let before = asked_upstream(&inner).await + asked_upstream(&outer).await;
    let paths = cold(0..HERD);
    is_refused(&inner, &paths).await;
    is_refused(&outer, &paths).await;
    // Both at once: each waits for the other.
    let paths = cold(HERD..2 * HERD);
    tokio::join!(is_refused(&inner, &paths), is_refused(&outer, &paths));
    for hydrant in [&inner, &outer] {
        assert_eq!(pull(hydrant, "lab/warm:1").await, warm.digest.to_string());
    }
    let asked = asked_upstream(&inner).await + asked_upstream(&outer).await - before;
    assert!(asked <= 4.0 * 4.0 * paths.len() as f64, "{asked} requests");

    door.lead_to(&upstream.host());
    assert_eq!(pull(&outer, "lab/cold-0:1").await, late.digest.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hydrants_in_a_circle_find_it_though_all_are_asked_at_once() {
    let upstream = FakeUpstream::start().await;
    let door = Proxy::start(&upstream.host()).await;
    let one = role("up", &config(&door.host())).start().await;
    let two = role("up", &config(&one.host())).start().await;
    let three = role("up", &config(&two.host())).start().await;
    door.lead_to(&three.host());
    let paths = cold(0..HERD);
    tokio::join!(is_refused(&one, &paths), is_refused(&two, &paths), is_refused(&three, &paths));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_knows_the_requests_of_another_of_the_same_hydrant() {
    let (nats, store) = (NatsServer::start().await, tempfile::tempdir().unwrap());
    let upstream = FakeUpstream::start().await;
    let door = Proxy::start(&upstream.host()).await;
    let start = |name| {
        let role = role(name, &config(&door.host())).nats(&nats.url());
        role.store(store.path().to_str().unwrap()).start()
    };
    let (one, other) = tokio::join!(start("frontend"), start("frontend"));
    door.lead_to(&other.host());
    is_refused(&one, &cold(0..HERD)).await;
    assert_eq!(asked_upstream(&other).await, 0.0, "it knew the request at once");
    nothing_pending(&nats.url()).await;
}
