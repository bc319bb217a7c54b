//! Blobs: ranges, redirects, bodies that go wrong.

use crate::lab::{Lab, PASSWORD, Setup, USER, app};
use bytes::Bytes;
use futures::StreamExt;
use hydrant_proto::FailureClass;
use hydrant_testkit::{Bearer, FakeUpstream, Fault, until};
use hydrant_upstream::{
    BlobBody, Options, Part,
    Priority::{Background, Interactive},
    UpstreamError,
};
use serde_json::json;
use std::time::Duration;

async fn all(body: BlobBody) -> Result<Bytes, UpstreamError> {
    let chunks: Vec<_> = body.stream.collect().await;
    let chunks: Result<Vec<_>, _> = chunks.into_iter().collect();
    Ok(chunks?.concat().into())
}

#[tokio::test]
async fn a_blob_comes_whole_or_from_an_offset() {
    let lab = Lab::start().await;
    let whole = lab.image.blobs[1].content.bytes();
    let body = lab.client.blob(&app(), lab.layer(), 0, Interactive).await.unwrap();
    assert_eq!((body.size, body.offset), (Some(300_000), 0));
    assert_eq!(all(body).await.unwrap(), whole);
    let body = lab.client.blob(&app(), lab.layer(), 299_990, Interactive).await.unwrap();
    assert_eq!((body.size, body.offset), (Some(300_000), 299_990));
    assert_eq!(all(body).await.unwrap(), whole[299_990..]);
    let middle = Part { from: 10, until: Some(20), of: Some(300_000) };
    let body = lab.client.blob(&app(), lab.layer(), middle, Interactive).await.unwrap();
    assert_eq!(all(body).await.unwrap(), whole[10..20]);
    let size = lab.client.head_blob(&app(), lab.layer(), Interactive).await.unwrap();
    assert_eq!(size, Some(300_000));
    let missing = "lab/other".parse().unwrap();
    assert_eq!(lab.client.head_blob(&missing, lab.layer(), Interactive).await.unwrap(), None);
    let error = lab.client.blob(&missing, lab.layer(), 0, Interactive).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::Unknown);
}

#[tokio::test]
async fn a_size_the_head_does_not_tell_comes_with_the_first_byte() {
    let one_at_a_time = Setup { extra: json!({"concurrency": 1}), ..Setup::default() };
    let lab = Lab::with(one_at_a_time).await;
    let silent = Fault::none().header("transfer-encoding", "chunked").method("HEAD");
    let silent = lab.fake.inject("*/blobs/*", silent);
    let size = lab.client.head_blob(&app(), lab.layer(), Interactive).await.unwrap();
    assert_eq!((size, silent.fired()), (Some(300_000), 1));
    let first = &lab.fake.requests_of("GET", "*/blobs/*")[0];
    assert_eq!(first.header("range"), Some("bytes=0-0"));
    lab.fake.inject("*/blobs/*", Fault::no_range());
    let error = lab.client.head_blob(&app(), lab.layer(), Interactive).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::UpstreamDown, "{error}");
}

#[tokio::test]
async fn another_range_than_asked_for_is_not_taken() {
    let lab = Lab::start().await;
    let wrong_size = Part { from: 100, until: None, of: Some(1) };
    for (fault, part) in [
        (Fault::shifted_range(-10), Part::from(100)),
        (Fault::shifted_range(10), Part::from(100)),
        (Fault::no_range(), Part::from(100)),
        (Fault::none(), wrong_size),
        (Fault::none(), Part::from(300_000)),
    ] {
        lab.fake.inject("*/blobs/*", fault.times(1));
        let error = lab.client.blob(&app(), lab.layer(), part, Interactive).await.unwrap_err();
        assert!(matches!(error, UpstreamError::RangeNotHonoured { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_or_stalls_ends_in_an_error() {
    let options = Options { body_idle: Duration::from_millis(300), ..Options::default() };
    let lab = Lab::with(Setup { options, ..Setup::default() }).await;
    for fault in [Fault::truncate(70_000), Fault::stall(70_000), Fault::slow(10_000)] {
        lab.fake.inject("*/blobs/*", fault.times(1));
        let mut body = lab.client.blob(&app(), lab.layer(), 0, Interactive).await.unwrap();
        let mut got = 0;
        let error = loop {
            match body.stream.next().await {
                Some(Ok(chunk)) => got += chunk.len(),
                Some(Err(error)) => break error,
                None => panic!("a clean end after {got} bytes"),
            }
        };
        assert_eq!(error.class(), FailureClass::UpstreamDown, "{error}");
        assert!(got < 300_000);
        assert!(body.stream.next().await.is_none());
    }
}

#[tokio::test]
async fn a_cdn_never_sees_the_authorization() {
    let lab = Lab::with_credential().await;
    lab.fake.require_bearer(Bearer::new().user(USER, PASSWORD));
    let cdn = FakeUpstream::start().await;
    cdn.insert(&lab.image, "any", "1");
    lab.fake.redirect_blobs(Some(&cdn.url()));
    let body = lab.client.blob(&app(), lab.layer(), 0, Interactive).await.unwrap();
    assert_eq!(all(body).await.unwrap(), lab.image.blobs[1].content.bytes());
    assert!(lab.fake.requests_of("GET", "*/blobs/*")[0].header("authorization").is_some());
    cdn.inject("*", Fault::status(401).header("www-authenticate", r#"Basic realm="give me""#));
    let error = lab.client.blob(&app(), lab.layer(), 0, Interactive).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::UpstreamDown, "{error}");
    assert_eq!(cdn.requests().len(), 2);
    assert!(cdn.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn redirects_are_bounded_and_stay_on_the_list() {
    let cdn = FakeUpstream::start().await;
    let setup = Setup { extra: json!({"redirect_hosts": ["cdn.example"]}), ..Setup::default() };
    let lab = Lab::with(setup).await;
    lab.fake.redirect_blobs(Some(&cdn.url()));
    let error = lab.client.blob(&app(), lab.layer(), 0, Interactive).await.unwrap_err();
    assert!(error.to_string().contains("redirect_hosts"), "{error}");
    assert!(cdn.requests().is_empty());

    lab.fake.redirect_blobs(None);
    lab.fake.inject("*/blobs/*", Fault::redirect("?again"));
    let error = lab.client.blob(&app(), lab.layer(), 0, Interactive).await.unwrap_err();
    assert!(error.to_string().contains("more than 5"), "{error}");
    assert_eq!(lab.fake.gets("*/blobs/*"), 7);

    lab.fake.heal();
    for to in ["file:///etc/passwd", "http://u:p@cdn.example/x", "http://0.0.0.0/", "http://"] {
        lab.fake.inject("*/blobs/*", Fault::redirect(to).times(1));
        let error = lab.client.blob(&app(), lab.layer(), 0, Interactive).await.unwrap_err();
        assert_eq!(error.class(), FailureClass::UpstreamDown, "{to}: {error}");
        assert!(!error.to_string().contains("u:p"), "{error}");
    }
}

#[tokio::test]
async fn a_body_keeps_its_slot_until_it_is_dropped() {
    let setup = Setup { extra: json!({"concurrency": 4}), ..Setup::default() };
    let lab = Lab::with(setup).await;
    lab.fake.inject("*/blobs/*", Fault::stall(10));
    let mut bodies = Vec::new();
    for _ in 0..3 {
        bodies.push(lab.client.blob(&app(), lab.layer(), 0, Background).await.unwrap());
    }
    let waiting = tokio::spawn({
        let (client, layer) = (lab.client.clone(), lab.layer().clone());
        async move { client.blob(&app(), &layer, 0, Background).await }
    });
    bodies.push(lab.client.blob(&app(), lab.layer(), 0, Interactive).await.unwrap());
    let busy = lab.client.blob(&app(), lab.layer(), 0, Interactive).await.unwrap_err();
    assert_eq!(busy.class(), FailureClass::UpstreamLimit, "{busy}");
    assert_eq!(lab.fake.gets("*/blobs/*"), 4);
    drop(bodies);
    until("the waiting call", Duration::from_secs(5), async || {
        (lab.fake.gets("*/blobs/*") == 5).then_some(())
    })
    .await;
    assert!(waiting.await.unwrap().is_ok());
}
