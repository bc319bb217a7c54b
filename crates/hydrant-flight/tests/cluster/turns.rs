//! Turns that come late: what happened before is not done again.

use crate::{LIMIT, Lab, collect, grant, lab::MIB, name, spooled};
use hydrant_flight::{ManifestSource, Source};
use hydrant_proto::{Digest, ManifestRecord, codec, subject::StateKey};
use hydrant_testkit::{Fault, Flow, until};
use hydrant_upstream::Priority;
use std::time::Duration;
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread")]
async fn whoever_takes_over_finds_what_was_stored_meanwhile() {
    let lab = Lab::start(8 * MIB).await;
    let (first, second) = (lab.member().await, lab.member().await);
    lab.upstream.inject("*/blobs/*", Fault::slow(2 * MIB));
    first.lead().await;
    let follower = second.fly().await;
    spooled(&follower, MIB / 2).await;
    lab.store.put_blob_bytes(&lab.layer.digest, lab.layer.content.bytes()).await.unwrap();
    first.flights.stop().await;
    lab.check(&follower).await;
    follower.stored().await.unwrap();
    assert_eq!(lab.reads(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_first_after_a_leader_died_takes_what_its_followers_have() {
    let lab = Lab::start(24 * MIB).await;
    let (first, second, third) = (lab.member().await, lab.member().await, lab.member().await);
    lab.upstream.inject("*/blobs/*", Fault::slow(4 * MIB).times(1));
    first.lead().await;
    let follower = second.fly().await;
    spooled(&follower, 8 * MIB).await;
    // It dies without giving its lease back, and the follower looks for it once a second only.
    first.to_peer.flow(Flow::Hold);
    first.without_bus().await;
    first.flights.stop().await;
    let key = StateKey::Flight(lab.layer.digest.clone());
    let state = third.bus.shared_state();
    until("the lease to expire", LIMIT, async || {
        state.get(&key).await.unwrap().is_none().then_some(())
    })
    .await;
    let late = third.fly().await;
    tokio::join!(lab.check(&follower), lab.check(&late));
    assert!(lab.read_bytes() < lab.layer.size + 6 * MIB, "{} bytes", lab.read_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_gets_its_lease_late_leaves_the_upstream_for_what_is_stored() {
    let lab = Lab::start(24 * MIB).await;
    let first = lab.member().await;
    first.without_bus().await;
    lab.upstream.inject("*/blobs/*", Fault::slow(MIB));
    let flight = first.lead().await;
    lab.store.put_blob_bytes(&lab.layer.digest, lab.layer.content.bytes()).await.unwrap();
    first.to_nats.flow(Flow::Pass);
    lab.check(&flight).await;
    assert!(lab.read_bytes() < lab.layer.size, "{} bytes", lab.read_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_comes_to_lead_takes_what_another_process_has_read_without_a_lease() {
    let lab = Lab::start(32 * MIB).await;
    let (first, second) = (lab.member().await, lab.member().await);
    first.without_bus().await;
    lab.upstream.inject("*/blobs/*", Fault::slow(2 * MIB).times(1));
    let ahead = first.lead().await;
    spooled(&ahead, 8 * MIB).await;
    lab.upstream.inject("*/blobs/*", Fault::slow(MIB / 4).times(1));
    let leading = second.lead().await;
    first.to_nats.flow(Flow::Pass);
    let (one, other) = tokio::join!(collect(&ahead), collect(&leading));
    assert_eq!(Digest::of(&one.unwrap()), lab.layer.digest);
    assert_eq!(Digest::of(&other.unwrap()), lab.layer.digest);
    assert!(lab.read_bytes() < lab.layer.size + 6 * MIB, "{} bytes", lab.read_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_first_blob_waits_for_a_process_out_of_reach() {
    let lab = Lab::start(2 * MIB).await;
    let (first, second) = (lab.member().await, lab.member().await);
    let next = lab.another(2, MIB);
    lab.upstream.inject("*/blobs/*", Fault::slow(MIB / 16).times(2));
    let fly = async |member: &crate::Member| {
        let source = Source { digest: next.digest.clone(), ..member.source() };
        let flight = member.flights.begin(source, &grant("lab/app")).unwrap().unwrap();
        flight.opened().await.unwrap();
        flight
    };
    first.lead().await;
    fly(&first).await;
    first.to_peer.flow(Flow::Refuse);
    first.to_peer.cut();
    lab.check(&second.fly().await).await;
    let tries = first.to_peer.connections();
    let flight = fly(&second).await;
    assert_eq!(Digest::of(&collect(&flight).await.unwrap()), next.digest);
    assert_eq!(first.to_peer.connections(), tries, "it is known to be out of reach");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_of_our_own_whose_answer_was_lost_keeps_nobody_waiting() {
    let lab = Lab::start(1024).await;
    let member = lab.member().await;
    let key = Digest::of(b"here\napp\n1").hex().to_owned();
    let asked = codec::encode(&ManifestRecord::Asked).into();
    let state = member.bus.shared_state();
    state.create(&StateKey::Manifest(key), asked, Duration::from_secs(3600)).await.unwrap();
    let source = ManifestSource {
        client: member.client.clone(),
        upstream_repository: name("app"),
        reference: "1".parse().unwrap(),
        origin: "here".into(),
        priority: Priority::Interactive,
        remember: Duration::ZERO,
    };
    let asking = (0..20).map(|_| member.flights.manifest(&source));
    let asked = timeout(LIMIT, futures::future::join_all(asking)).await.unwrap();
    assert!(asked.iter().all(Result::is_ok));
    assert_eq!(lab.upstream.gets("*/manifests/*"), 1);
}
