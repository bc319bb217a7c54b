//! What a well-behaved client does not do, seen by the upstream's request log.

use crate::lab::{Lab, Setup, app, tag, upstream};
use futures::future::join_all;
use hydrant_proto::{Digest, FailureClass};
use hydrant_testkit::{Bearer, Fault};
use hydrant_upstream::Priority::{Background, Interactive};
use serde_json::json;
use std::time::{Duration, Instant};

#[tokio::test]
async fn names_nobody_has_cost_few_requests_and_few_tokens() {
    let lab = Lab::start().await;
    lab.fake.require_bearer(Bearer::new());
    lab.client.manifest(&app(), &tag("1"), Interactive).await.unwrap();
    let mut classes = Vec::new();
    for n in 0..300 {
        let ghost = format!("lab/ghost-{n}").parse().unwrap();
        let priority = if n % 2 == 0 { Interactive } else { Background };
        let error = lab.client.manifest(&ghost, &tag("1"), priority).await.unwrap_err();
        classes.push(error.class());
    }
    let turned_away = classes.iter().filter(|class| **class == FailureClass::UpstreamLimit).count();
    assert!(turned_away >= 150, "{turned_away}");
    assert!(lab.fake.gets("/token*") <= 150, "{}", lab.fake.gets("/token*"));
    assert!(lab.fake.gets("*/ghost-*") <= 150, "{}", lab.fake.gets("*/ghost-*"));
    // What is known, and what a known manifest names, goes on.
    lab.client.manifest(&app(), &tag("1"), Interactive).await.unwrap();
    lab.client.blob(&app(), lab.layer(), 0, Interactive).await.unwrap();
}

#[tokio::test]
async fn names_nobody_has_that_are_asked_for_at_once_cost_no_more() {
    let lab = Lab::start().await;
    lab.fake.inject("*", Fault::delay(Duration::from_millis(20)));
    let ghosts: Vec<_> = (0..1_000).map(|n| format!("lab/ghost-{n}").parse().unwrap()).collect();
    let one = tag("1");
    join_all(ghosts.iter().map(|ghost| lab.client.manifest(ghost, &one, Interactive))).await;
    let asked = lab.fake.gets("*/ghost-*");
    assert!((95..=110).contains(&asked), "{asked}");
}

#[tokio::test]
async fn a_client_does_not_wait_behind_the_background_for_the_same_manifest() {
    let lab = Lab::with(Setup { extra: json!({"concurrency": 4}), ..Setup::default() }).await;
    let mut bodies = Vec::new();
    for _ in 0..3 {
        bodies.push(lab.client.blob(&app(), lab.layer(), 0, Background).await.unwrap());
    }
    let (name, one) = (app(), tag("1"));
    let mut behind = Box::pin(lab.client.manifest(&name, &one, Background));
    assert!(futures::poll!(behind.as_mut()).is_pending());
    let both = async { tokio::join!(behind, lab.client.manifest(&name, &one, Interactive)) };
    let (behind, client) = tokio::time::timeout(Duration::from_secs(10), both).await.unwrap();
    assert_eq!(behind.unwrap().digest, client.unwrap().digest);
    assert_eq!(lab.fake.gets("*/manifests/*"), 1);
    drop(bodies);
}

#[tokio::test]
async fn a_missing_blob_is_not_asked_for_again_and_again() {
    let lab = Lab::start().await;
    let ghost = Digest::of(b"ghost");
    for _ in 0..10 {
        assert_eq!(lab.client.head_blob(&app(), &ghost, Interactive).await.unwrap(), None);
        lab.client.blob(&app(), &ghost, 0, Interactive).await.unwrap_err();
    }
    assert_eq!(lab.fake.requests_of("*", "*/blobs/*").len(), 1);
    assert_eq!(lab.client.head_blob(&app(), &ghost, Background).await.unwrap(), None);
    assert_eq!(lab.fake.requests_of("*", "*/blobs/*").len(), 2, "an order is an order");
}

#[tokio::test]
async fn caps_hold() {
    let caps = json!({"caps": {
        "requests_per_second": 10, "connections": 2, "bytes_per_second": "256KiB",
    }});
    let lab = Lab::with(Setup { extra: caps, ..Setup::default() }).await;
    lab.fake.inject("*", Fault::delay(Duration::from_millis(20)));
    let began = Instant::now();
    let name = app();
    let ask = || lab.client.head_blob(&name, lab.layer(), Interactive);
    join_all((0..15).map(|_| ask())).await;
    assert!(began.elapsed() >= Duration::from_millis(1_300), "{:?}", began.elapsed());
    assert_eq!(lab.fake.peak("*", "*/blobs/*"), 2);
    let began = Instant::now();
    let body = lab.client.blob(&app(), lab.layer(), 0, Interactive).await.unwrap();
    let chunks: Vec<_> = futures::StreamExt::collect(body.stream).await;
    assert_eq!(chunks.into_iter().map(|chunk| chunk.unwrap().len()).sum::<usize>(), 300_000);
    assert!(began.elapsed() >= Duration::from_millis(500), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_body_that_takes_long_holds_up_nobody_though_the_upstream_had_a_hiccup() {
    let lab = Lab::with(Setup { extra: json!({"concurrency": 8}), ..Setup::default() }).await;
    let mut bodies = Vec::new();
    for _ in 0..6 {
        bodies.push(lab.client.blob(&app(), lab.layer(), 0, Interactive).await.unwrap());
    }
    lab.fake.inject("*/manifests/*", Fault::status(503).times(2));
    lab.client.manifest(&app(), &tag("1"), Interactive).await.unwrap_err();
    assert!(lab.client.concurrency() < 8, "{}", lab.client.concurrency());
    lab.client.manifest(&app(), &tag("1"), Interactive).await.unwrap();
    drop(bodies);
}

#[tokio::test]
async fn a_change_of_settings_keeps_what_is_known_of_the_upstream() {
    let lab = Lab::start().await;
    lab.fake.inject("*", Fault::status(429).header("retry-after", "60"));
    lab.client.manifest(&app(), &tag("1"), Interactive).await.unwrap_err();
    let slower = upstream(&lab.fake.url(), json!({"concurrency": 3}));
    let changed = lab.upstreams.get(&slower, None).unwrap();
    let error = changed.manifest(&app(), &tag("1"), Interactive).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::BreakerOpen);
    let other = Lab::start().await;
    let elsewhere = lab.upstreams.get(&upstream(&other.fake.url(), json!({})), None).unwrap();
    elsewhere.manifest(&app(), &tag("1"), Interactive).await.unwrap();
}

#[tokio::test]
async fn a_probe_has_a_deadline_of_its_own() {
    let breaker = hydrant_upstream::BreakerSettings {
        open_for: Duration::from_millis(100),
        probe_deadline: Duration::from_millis(300),
        jitter: 0.0,
        ..Default::default()
    };
    let options = hydrant_upstream::Options { breaker, ..Default::default() };
    let extra = json!({"timeout": "300s"});
    let lab = Lab::with(Setup { extra, options, ..Setup::default() }).await;
    lab.fake.inject("*", Fault::status(503).times(10));
    while !matches!(lab.client.breaker().state(), hydrant_upstream::BreakerState::Open { .. }) {
        let _ = lab.client.head_blob(&app(), lab.layer(), Background).await;
    }
    lab.fake.heal();
    lab.fake.inject("*", Fault::black_hole());
    lab.client.breaker().ready().await;
    // Without a deadline this would take five minutes.
    lab.client.head_blob(&app(), lab.layer(), Background).await.unwrap_err();
    assert!(matches!(lab.client.breaker().state(), hydrant_upstream::BreakerState::Open { .. }));
}
