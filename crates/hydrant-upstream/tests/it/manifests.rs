//! Manifests, tags and referrers.

use crate::lab::{Lab, app, tag};
use futures::future::join_all;
use hydrant_proto::{Digest, FailureClass, MediaType, Reference};
use hydrant_testkit::{Fault, ImageBuilder};
use hydrant_upstream::{
    Priority::{Background, Interactive},
    UpstreamError,
};
use std::time::Duration;

const BUDGET: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_manifest_comes_byte_for_byte_by_tag_and_by_digest() {
    let lab = Lab::start().await;
    let by_tag = lab.client.manifest(&app(), &tag("1"), Interactive).await.unwrap();
    assert_eq!((&by_tag.bytes, &by_tag.digest), (&lab.image.manifest, &lab.image.digest));
    let digest = Reference::Digest(lab.image.digest.clone());
    let by_digest = lab.client.manifest(&app(), &digest, Interactive).await.unwrap();
    assert_eq!(by_digest, by_tag);
    let accept =
        lab.fake.requests_of("GET", "*/manifests/1")[0].header("accept").unwrap().to_owned();
    assert!(MediaType::ALL.iter().all(|kind| accept.contains(kind.as_str())), "{accept}");
    assert!(!accept.contains("manifest.v1+prettyjws"));
}

#[tokio::test]
async fn a_head_is_never_a_get() {
    let lab = Lab::start().await;
    let head = lab.client.head_manifest(&app(), &tag("1"), Interactive, BUDGET).await.unwrap();
    assert_eq!(head.digest.as_ref(), Some(&lab.image.digest));
    assert_eq!(head.size, Some(lab.image.manifest.len() as u64));
    assert_eq!(head.media_type, Some(MediaType::OciManifest));
    let silent = Fault::none().without_header("docker-content-digest");
    for fault in [Fault::status(500), Fault::status(405), silent] {
        lab.fake.inject("*/manifests/*", fault.method("HEAD").times(1));
        let _ = lab.client.head_manifest(&app(), &tag("1"), Interactive, BUDGET).await;
    }
    let missing = lab.client.head_manifest(&app(), &tag("nope"), Interactive, BUDGET).await;
    assert_eq!(missing.unwrap_err().class(), FailureClass::Unknown);
    assert_eq!(lab.fake.gets("*/manifests/*"), 0);
}

#[tokio::test]
async fn a_head_ends_within_its_budget() {
    let lab = Lab::start().await;
    lab.fake.inject("*", Fault::black_hole());
    let began = std::time::Instant::now();
    let budget = Duration::from_millis(200);
    let error = lab.client.head_manifest(&app(), &tag("1"), Interactive, budget).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::UpstreamDown);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_hundred_callers_cost_one_request() {
    let lab = Lab::start().await;
    lab.fake.inject("*", Fault::delay(Duration::from_millis(100)));
    let (repository, reference) = (app(), tag("1"));
    let all = join_all((0..100).map(|_| lab.client.manifest(&repository, &reference, Interactive)));
    assert!(all.await.into_iter().all(|found| found.is_ok()));
    assert_eq!(lab.fake.gets("*/manifests/*"), 1);
}

#[tokio::test]
async fn what_is_unknown_is_not_asked_for_again_at_once() {
    let lab = Lab::start().await;
    for _ in 0..3 {
        let missing = lab.client.manifest(&app(), &tag("nope"), Interactive).await.unwrap_err();
        assert!(matches!(missing, UpstreamError::Unknown { .. }), "{missing}");
    }
    assert_eq!(lab.fake.gets("*/manifests/*"), 1);
    assert!(lab.client.manifest(&app(), &tag("1"), Interactive).await.is_ok());
}

#[tokio::test]
async fn work_in_the_background_finds_what_was_pushed_a_moment_ago() {
    let lab = Lab::start().await;
    let (repository, new) = (app(), tag("new"));
    assert!(lab.client.manifest(&repository, &new, Interactive).await.is_err());
    lab.fake.insert(&lab.image, "lab/app", "new");
    assert!(lab.client.manifest(&repository, &new, Interactive).await.is_err());
    assert!(lab.client.head_manifest(&repository, &new, Background, BUDGET).await.is_ok());
    // What the background found is no longer unknown to anybody.
    assert!(lab.client.manifest(&repository, &new, Interactive).await.is_ok());
}

#[tokio::test]
async fn what_is_forgotten_to_be_unknown_is_asked_for_again() {
    let lab = Lab::start().await;
    let (repository, new) = (app(), tag("new"));
    assert!(lab.client.manifest(&repository, &new, Interactive).await.is_err());
    lab.fake.insert(&lab.image, "lab/app", "new");
    lab.client.forget_unknown(&repository, &new).await;
    assert!(lab.client.manifest(&repository, &new, Interactive).await.is_ok());
}

#[tokio::test]
async fn answers_that_do_not_agree_are_refused() {
    let lab = Lab::start().await;
    let wrong = Digest::of(b"wrong").to_string();
    for (fault, class) in [
        (Fault::html(), FailureClass::Integrity),
        (Fault::wrong_bytes(), FailureClass::Integrity),
        (Fault::short(10), FailureClass::Integrity),
        (Fault::short(0), FailureClass::Integrity),
        (Fault::long(10), FailureClass::Integrity),
        (Fault::endless(), FailureClass::Integrity),
        (Fault::truncate(10), FailureClass::UpstreamDown),
        (Fault::none().header("docker-content-digest", &wrong), FailureClass::Integrity),
        (Fault::none().header("content-type", "application/json"), FailureClass::Integrity),
        (Fault::none().header("content-encoding", "gzip"), FailureClass::Integrity),
    ] {
        let injected = lab.fake.inject("*/manifests/*", fault.times(1));
        let error = lab.client.manifest(&app(), &tag("1"), Interactive).await.unwrap_err();
        assert_eq!(error.class(), class, "{error}");
        assert_eq!(injected.fired(), 1, "{error}");
    }
    let v1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let fault = Fault::none().header("content-type", v1).body(r#"{"schemaVersion":1}"#);
    lab.fake.inject("*/manifests/*", fault.without_header("docker-content-digest"));
    let error = lab.client.manifest(&app(), &tag("1"), Interactive).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::Unsupported, "{error}");
}

#[tokio::test]
async fn a_digest_that_names_other_bytes_is_refused() {
    let lab = Lab::start().await;
    let claimed = Digest::of(b"claimed");
    let kind = MediaType::OciManifest.as_str();
    lab.fake.put_manifest("lab/app", &claimed.to_string(), kind, lab.image.manifest.clone());
    let error =
        lab.client.manifest(&app(), &Reference::Digest(claimed), Interactive).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::Integrity, "{error}");
}

#[tokio::test]
async fn tags_come_in_the_pages_of_the_upstream() {
    let lab = Lab::start().await;
    lab.fake.insert(&lab.image, "lab/app", "2");
    let first = lab.client.tags(&app(), Some(1), None, Interactive).await.unwrap();
    assert_eq!((first.tags.len(), first.more), (1, true));
    let last = first.tags[0].as_str();
    let second = lab.client.tags(&app(), Some(1), Some(last), Interactive).await.unwrap();
    assert_eq!(second.tags[0].as_str(), "2");
    lab.fake.inject("*/tags/list", Fault::none().body(r#"{"name":"lab/app","tags":["ok","b d"]}"#));
    let cleaned = lab.client.tags(&app(), None, None, Interactive).await.unwrap();
    assert_eq!(cleaned.tags.iter().map(|tag| tag.as_str()).collect::<Vec<_>>(), ["ok"]);
    lab.fake.inject("*/tags/list", Fault::none().body(r#"{"name":"lab/app","tags":null}"#));
    assert!(lab.client.tags(&app(), None, None, Interactive).await.unwrap().tags.is_empty());
}

#[tokio::test]
async fn referrers_fall_back_to_their_tag() {
    let lab = Lab::start().await;
    let digest = lab.image.digest.clone();
    let none = lab.client.referrers(&app(), &digest, Interactive).await.unwrap();
    assert_eq!(none, None);
    let other = ImageBuilder::new(7).build().digest;
    let index = hydrant_testkit::Image::index(vec![lab.image.clone()]);
    lab.fake.insert(&index, "lab/app", &other.to_string().replace(':', "-"));
    let found = lab.client.referrers(&app(), &other, Interactive).await.unwrap();
    assert_eq!(found, Some(index.manifest));
}
