//! The breaker, the retry budget and limits, seen by the upstream's request log.

use crate::lab::{Lab, Setup, app, tag};
use futures::future::join_all;
use hydrant_proto::FailureClass;
use hydrant_testkit::Fault;
use hydrant_upstream::{
    BreakerSettings, BreakerState, Client, Options,
    Priority::{Background, Interactive},
    UpstreamError,
};
use std::time::Duration;

/// In the background, which is not answered from what was missing a moment ago.
async fn ask(client: &Client) -> Result<Option<u64>, UpstreamError> {
    let digest = hydrant_proto::Digest::of(b"whatever");
    client.head_blob(&app(), &digest, Background).await
}

/// Opens for 300 ms, without jitter.
async fn quick() -> Lab {
    let breaker = BreakerSettings {
        open_for: Duration::from_millis(300),
        jitter: 0.0,
        ..BreakerSettings::default()
    };
    let options = Options { breaker, ..Options::default() };
    Lab::with(Setup { options, ..Setup::default() }).await
}

#[tokio::test]
async fn a_failing_upstream_is_left_alone_after_ten_failures() {
    for fault in [Fault::status(500), Fault::cut()] {
        let lab = Lab::start().await;
        ask(&lab.client).await.unwrap();
        lab.fake.forget_requests();
        lab.fake.inject("*", fault);
        for _ in 0..30 {
            ask(&lab.client).await.unwrap_err();
        }
        assert!(lab.fake.requests().len() <= 10, "{}", lab.fake.requests().len());
        let error = ask(&lab.client).await.unwrap_err();
        assert_eq!(error.class(), FailureClass::BreakerOpen);
        assert!(error.retry_after().unwrap() <= Duration::from_secs(6));
        assert!(matches!(lab.client.breaker().state(), BreakerState::Open { .. }));
    }
}

#[tokio::test]
async fn an_upstream_that_is_gone_opens_it() {
    let lab = Lab::start().await;
    lab.fake.stop().await;
    for _ in 0..10 {
        ask(&lab.client).await.unwrap_err();
    }
    assert!(matches!(lab.client.breaker().state(), BreakerState::Open { .. }));
}

#[tokio::test]
async fn one_probe_at_a_time_and_success_closes() {
    let lab = quick().await;
    ask(&lab.client).await.unwrap();
    let fault = lab.fake.inject("*", Fault::status(503));
    while ask(&lab.client).await.unwrap_err().class() != FailureClass::BreakerOpen {}
    fault.remove();
    lab.client.breaker().ready().await;
    assert_eq!(lab.client.breaker().state(), BreakerState::HalfOpen);
    lab.fake.forget_requests();
    lab.fake.inject("*", Fault::delay(Duration::from_millis(50)));
    let all = join_all((0..50).map(|_| ask(&lab.client))).await;
    assert_eq!(all.iter().filter(|answer| answer.is_ok()).count(), 1);
    assert_eq!(lab.fake.requests().len(), 1);
    assert_eq!(lab.client.breaker().state(), BreakerState::Closed);
    assert!(ask(&lab.client).await.is_ok());
}

#[tokio::test]
async fn what_is_missing_or_denied_does_not_open_it() {
    let lab = Lab::start().await;
    for status in [401, 403, 404] {
        lab.fake.inject("*/blobs/*", Fault::status(status).times(20));
        for _ in 0..20 {
            let _ = ask(&lab.client).await;
        }
    }
    assert_eq!(lab.client.breaker().state(), BreakerState::Closed);
}

#[tokio::test]
async fn a_limit_is_obeyed_in_every_spelling() {
    for (retry_after, expected) in [
        ("7", 7),
        ("1000000000000", 3600),
        ("-5", 5),
        ("junk", 5),
        ("Mon, 01 Jan 2001 00:00:00 GMT", 1),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 3600),
    ] {
        let lab = Lab::start().await;
        lab.fake.inject("*/blobs/*", Fault::status(429).header("retry-after", retry_after));
        let error = ask(&lab.client).await.unwrap_err();
        assert_eq!(error.class(), FailureClass::UpstreamLimit);
        assert_eq!(error.retry_after(), Some(Duration::from_secs(expected)), "{retry_after}");
        let next = ask(&lab.client).await.unwrap_err();
        assert_eq!(next.class(), FailureClass::BreakerOpen);
        assert_eq!(lab.fake.heads("*/blobs/*"), 1);
    }
}

#[tokio::test]
async fn a_single_failure_is_repeated_once_and_a_burst_within_the_budget() {
    let lab = Lab::start().await;
    lab.fake.inject("*/manifests/*", Fault::status(502).times(1));
    lab.client.manifest(&app(), &tag("1"), Interactive).await.unwrap();
    assert_eq!(lab.fake.gets("*/manifests/*"), 2);
    for status in [400, 401, 403, 404, 429] {
        let lab = Lab::start().await;
        lab.fake.inject("*/manifests/*", Fault::status(status));
        lab.client.manifest(&app(), &tag("1"), Interactive).await.unwrap_err();
        assert_eq!(lab.fake.gets("*/manifests/*"), 1, "{status}");
    }
}

#[tokio::test]
async fn a_black_hole_ends_at_the_timeout() {
    let lab = Lab::start().await;
    lab.fake.inject("*/blobs/*", Fault::black_hole());
    let began = std::time::Instant::now();
    let error = ask(&lab.client).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::UpstreamDown, "{error}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}
