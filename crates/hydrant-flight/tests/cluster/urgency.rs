//! Flights that began in the background, and that a client came to wait for.

use crate::{LIMIT, Lab, Member, grant, lab::MIB};
use hydrant_flight::{Flight, Source};
use hydrant_proto::Digest;
use hydrant_testkit::{Blob, Fault, until};
use hydrant_upstream::Priority;

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
