//! Flights and manifests that were asked for in the background, and that a client came to wait for.

use crate::{
    LIMIT, Lab, Member, grant,
    lab::{MIB, name},
};
use hydrant_flight::{Flight, FlightError, ManifestSource, Source, Sourced};
use hydrant_proto::{Digest, FailureClass};
use hydrant_testkit::{Blob, Fault, until};
use hydrant_upstream::{BlobBody, Priority};
use std::time::Duration;
use tokio::{task::JoinHandle, time::timeout};

/// A member whose only slot at the upstream is taken for a while, and flights that wait for it.
async fn busy(lab: &Lab) -> (Member, Vec<Blob>, Vec<Flight>) {
    let member = lab.member_with(lab.store.clone(), "concurrency = 1").await;
    let slow = format!("*/blobs/{}", lab.layer.digest);
    lab.upstream.inject(&slow, Fault::slow(lab.layer.size / 8));
    member.lead().await;
    let blobs: Vec<_> = (2..8).map(|seed| lab.another(seed, 64 * 1024)).collect();
    let mut flights = Vec::new();
    for blob in &blobs {
        flights.push(in_background(&member, &blob.digest).await);
        let waits = || member.client.waiting() == flights.len();
        until("the flight to wait for a slot", LIMIT, async || waits().then_some(())).await;
    }
    (member, blobs, flights)
}

async fn in_background(member: &Member, digest: &Digest) -> Flight {
    let urgency = Priority::Background.into();
    let source = Source { digest: digest.clone(), urgency, ..member.source() };
    member.flights.join_or_start(source, &grant("lab/app")).await.unwrap()
}

/// Which of the waiting flights the upstream was asked for first.
async fn first_asked(lab: &Lab, blobs: &[Blob], flights: &[Flight]) -> Digest {
    futures::future::join_all(flights.iter().map(Flight::stored)).await;
    let asked = lab.upstream.requests_of("GET", "*/blobs/*");
    let first = asked.iter().find_map(|request| {
        blobs.iter().find(|blob| request.path.ends_with(&blob.digest.to_string()))
    });
    first.unwrap().digest.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flight_that_a_client_joins_goes_before_the_others() {
    let lab = Lab::start(4 * MIB).await;
    let (member, blobs, flights) = busy(&lab).await;
    let wanted = blobs.last().unwrap();
    let source = Source { digest: wanted.digest.clone(), ..member.source() };
    member.flights.join_or_start(source, &grant("lab/app")).await.unwrap();
    assert_eq!(first_asked(&lab, &blobs, &flights).await, wanted.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flight_that_a_client_of_another_process_joins_goes_before_the_others() {
    let lab = Lab::start(4 * MIB).await;
    let other = lab.member().await;
    let (_member, blobs, flights) = busy(&lab).await;
    let wanted = blobs.last().unwrap();
    // It follows in the background, too, before its client comes.
    let following = in_background(&other, &wanted.digest).await;
    following.urge();
    assert_eq!(first_asked(&lab, &blobs, &flights).await, wanted.digest);
}

fn manifest(member: &Member, reference: &str, priority: Priority) -> ManifestSource {
    ManifestSource {
        client: member.client.clone(),
        upstream_repository: name("app"),
        reference: reference.parse().unwrap(),
        origin: "here".into(),
        priority,
        remember: Duration::ZERO,
    }
}

/// A member whose only slot for the background is taken by a body, and a manifest that waits for it.
async fn behind(lab: &Lab) -> (Member, BlobBody, JoinHandle<Result<Sourced, FlightError>>) {
    let member = lab.member_with(lab.store.clone(), "concurrency = 2").await;
    let (app, digest) = (name("app"), &lab.layer.digest);
    let body = member.client.blob(&app, digest, 0, Priority::Background).await.unwrap();
    let (flights, source) = (member.flights.clone(), manifest(&member, "1", Priority::Background));
    let waiting = tokio::spawn(async move { flights.manifest(&source).await });
    let waits = async || (member.client.waiting() == 1).then_some(());
    until("the manifest to wait for a slot", LIMIT, waits).await;
    (member, body, waiting)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_a_client_of_the_same_process_wants_waits_no_more() {
    let lab = Lab::start(4 * MIB).await;
    let (member, _body, waiting) = behind(&lab).await;
    // It may come so soon that the client finds it there.
    let client = manifest(&member, "1", Priority::Interactive);
    let source = ManifestSource { remember: LIMIT, ..client };
    let found = timeout(LIMIT, member.flights.manifest(&source)).await.unwrap().unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().asked_at, found.asked_at);
    assert_eq!(lab.upstream.gets("*/manifests/*"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_waits_elsewhere_is_taken_over_for_a_client() {
    let lab = Lab::start(4 * MIB).await;
    let other = lab.member().await;
    let (_member, _body, waiting) = behind(&lab).await;
    let source = manifest(&other, "1", Priority::Interactive);
    let found = timeout(LIMIT, other.flights.manifest(&source)).await.unwrap().unwrap();
    // Who waited has it, too, though its slot is still taken.
    let same = timeout(LIMIT, waiting).await.unwrap().unwrap().unwrap();
    assert_eq!((same.asked_at, lab.upstream.gets("*/manifests/*")), (found.asked_at, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_for_clients_is_not_refused_to_them_because_the_background_was() {
    let lab = Lab::start(4 * MIB).await;
    lab.another(2, 1024);
    let other = lab.member().await;
    let (member, body, waiting) = behind(&lab).await;
    let low = Fault::none().header("ratelimit-limit", "10").header("ratelimit-remaining", "1");
    lab.upstream.inject("*/manifests/2", low.header("ratelimit-reset", "60"));
    member.flights.manifest(&manifest(&member, "2", Priority::Interactive)).await.unwrap();
    let source = manifest(&other, "1", Priority::Interactive);
    let asked = other.flights.manifest(&source);
    let freed = async {
        // Less than the client's patience with the background.
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(body);
        waiting.await.unwrap().unwrap_err().class()
    };
    let (found, refused) = tokio::join!(asked, freed);
    assert_eq!(refused, FailureClass::UpstreamLimit);
    found.unwrap();
    assert_eq!(lab.upstream.gets("*/manifests/1"), 1);
}
