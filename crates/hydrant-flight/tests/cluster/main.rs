//! Flights of several processes: one read in all, whoever leads, dies, freezes or cannot be reached.
//! Members are sets of parts in one process, each with its own connection to a real nats-server and
//! its own peer port, behind proxies that can cut them off.

// A test reports what went wrong by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../lab/mod.rs"]
mod lab;
mod left;
mod parts;
mod turns;
mod uploads;
mod urgency;

use bytes::Bytes;
use futures::TryStreamExt;
use hydrant_flight::{Flight, FlightError, ManifestSource, Opened, Source};
use hydrant_proto::{Digest, FailureClass, codec, subject::StateKey};
use hydrant_store::Store;
use hydrant_testkit::{Blob, FakeUpstream, Fault, Flow, Gate, ImageBuilder, NatsServer, until};
use hydrant_upstream::{Client, Priority};
use lab::{MIB, grant, name};
use std::{ops::Deref, sync::Arc, time::Duration};
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(30);

struct Lab {
    upstream: FakeUpstream,
    nats: NatsServer,
    store: Store,
    layer: Blob,
}

impl Lab {
    async fn start(size: u64) -> Self {
        let (upstream, nats) = (FakeUpstream::start().await, NatsServer::start().await);
        let image = ImageBuilder::new(1).layers(&[size]).build();
        upstream.insert(&image, "app", "1");
        let layer = image.all_blobs().into_iter().max_by_key(|blob| blob.size).unwrap().clone();
        Self { upstream, nats, store: Store::in_memory(), layer }
    }

    async fn member(&self) -> Member {
        self.member_on(self.store.clone()).await
    }

    async fn member_on(&self, store: Store) -> Member {
        self.member_with(store, "").await
    }

    /// `settings` of its upstream.
    async fn member_with(&self, store: Store, settings: &str) -> Member {
        let spool = tempfile::tempdir().unwrap();
        Member {
            joined: lab::Member::join(&self.nats, store, spool.path().into()).await,
            client: lab::client(&self.upstream, settings),
            digest: self.layer.digest.clone(),
            _spool: spool,
        }
    }

    /// One more blob at the upstream.
    fn another(&self, seed: u64, size: u64) -> Blob {
        let image = ImageBuilder::new(seed).layers(&[size]).build();
        self.upstream.insert(&image, "app", &seed.to_string());
        image.all_blobs().into_iter().max_by_key(|blob| blob.size).unwrap().clone()
    }

    fn reads(&self) -> usize {
        self.upstream.gets("*/blobs/*")
    }

    fn read_bytes(&self) -> u64 {
        self.upstream.bytes("*/blobs/*")
    }

    async fn check(&self, flight: &Flight) {
        let read = async {
            match flight.opened().await.unwrap() {
                Opened::Flying { .. } => collect(flight).await.unwrap(),
                // It was all there before this member had a byte.
                Opened::Stored { .. } => {
                    let found = self.store.read_blob(&self.layer.digest, None).await;
                    let chunks: Vec<_> =
                        found.unwrap().unwrap().stream.try_collect().await.unwrap();
                    chunks.concat()
                }
            }
        };
        let bytes = timeout(LIMIT, read).await.expect("a reader comes to an end");
        assert_eq!(Digest::of(&bytes), self.layer.digest);
    }
}

/// A member, and the one blob that is flown.
struct Member {
    joined: lab::Member,
    client: Arc<Client>,
    digest: Digest,
    _spool: tempfile::TempDir,
}

impl Deref for Member {
    type Target = lab::Member;

    fn deref(&self) -> &lab::Member {
        &self.joined
    }
}

impl Member {
    fn source(&self) -> Source {
        Source {
            client: self.client.clone(),
            upstream_repository: name("app"),
            digest: self.digest.clone(),
            size: None,
            urgency: Priority::Interactive.into(),
        }
    }

    /// As a frontend does that knows nothing of the blob: the GET is the proof.
    async fn fly(&self) -> Flight {
        match self.flights.begin(self.source(), &grant("lab/app")).unwrap() {
            Some(flight) => flight,
            None => self.flights.get(&self.digest).unwrap(),
        }
    }

    /// Takes the bus away from this member.
    async fn without_bus(&self) {
        self.to_nats.flow(Flow::Refuse);
        self.to_nats.cut();
        self.bus.connected().wait_for(|up| !up).await.unwrap();
    }

    /// Begins, and waits until this member leads.
    async fn lead(&self) -> Flight {
        let flight = self.fly().await;
        flight.opened().await.unwrap();
        flight
    }
}

async fn collect(flight: &Flight) -> Result<Vec<u8>, FlightError> {
    let whole = flight.read(0, None).try_fold(Vec::new(), |mut whole, bytes: Bytes| async move {
        whole.extend_from_slice(&bytes);
        Ok(whole)
    });
    whole.await
}

async fn spooled(flight: &Flight, bytes: u64) {
    while flight.progress().spooled < bytes {
        flight.changed().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_all_members_cost_one_read_and_the_blob_is_linked_for_each() {
    let lab = Lab::start(8 * MIB).await;
    let members = [lab.member().await, lab.member().await, lab.member().await];
    let reading = members.iter().flat_map(|member| {
        let lab = &lab;
        (0..20).map(move |_| async { lab.check(&member.fly().await).await })
    });
    futures::future::join_all(reading).await;
    for member in &members {
        // Over by now, or about to be.
        if let Some(flight) = member.flights.get(&lab.layer.digest) {
            assert_eq!(flight.stored().await.unwrap(), lab.layer.size);
        }
    }
    assert_eq!((lab.reads(), lab.read_bytes()), (1, lab.layer.size));
    assert!(lab.store.has_link(&name("lab/app"), &lab.layer.digest).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_joiner_of_another_process_begins_at_the_first_byte_without_a_read() {
    let lab = Lab::start(6 * MIB).await;
    let (first, late) = (lab.member().await, lab.member().await);
    lab.upstream.inject("*/blobs/*", Fault::slow(6 * MIB));
    let flight = first.lead().await;
    spooled(&flight, 3 * MIB).await;
    lab.check(&late.fly().await).await;
    assert_eq!(lab.reads(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_a_moment_ago_is_not_read_again_by_who_did_not_see_it() {
    let lab = Lab::start(MIB).await;
    let (first, second) = (lab.member().await, lab.member().await);
    first.lead().await.stored().await.unwrap();
    let flight = second.fly().await;
    assert_eq!(flight.opened().await.unwrap(), Opened::Stored { size: lab.layer.size });
    let unopened = timeout(LIMIT, collect(&flight)).await.expect("it does not wait for ever");
    assert!(unopened.is_err(), "it is not in this flight");
    assert_eq!(lab.reads(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_of_a_blob_that_storage_has_lost_does_not_keep_it_away() {
    let lab = Lab::start(MIB).await;
    let (first, second) = (lab.member().await, lab.member_on(Store::in_memory()).await);
    first.lead().await.stored().await.unwrap();
    lab.check(&second.fly().await).await;
    assert_eq!(lab.reads(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_storage_does_not_deliver_comes_from_the_process_that_stored_it() {
    let lab = Lab::start(2 * MIB).await;
    let (first, second) = (lab.member().await, lab.member().await);
    first.lead().await.stored().await.unwrap();
    let flight = second.flights.begin_past_storage(second.source(), &grant("lab/app"));
    lab.check(&flight.unwrap().unwrap()).await;
    assert_eq!((lab.reads(), lab.read_bytes()), (1, lab.layer.size));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_goes_on_where_a_leader_that_stopped_was() {
    let lab = Lab::start(8 * MIB).await;
    let (first, second) = (lab.member().await, lab.member().await);
    lab.upstream.inject("*/blobs/*", Fault::slow(4 * MIB));
    first.lead().await;
    let follower = second.fly().await;
    spooled(&follower, 2 * MIB).await;
    let reading = tokio::spawn({
        let follower = follower.clone();
        async move { collect(&follower).await }
    });
    first.flights.stop().await;
    assert_eq!(Digest::of(&reading.await.unwrap().unwrap()), lab.layer.digest);
    follower.stored().await.unwrap();
    assert_eq!(lab.reads(), 2);
    assert!(lab.read_bytes() < lab.layer.size + 2 * MIB, "{} bytes", lab.read_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_takes_over_has_what_the_others_have_before_it_asks_upstream() {
    let lab = Lab::start(32 * MIB).await;
    let (first, second) = (lab.member().await, lab.member().await);
    // So that the leader is not done before it goes.
    lab.upstream.inject("*/blobs/*", Fault::hold(24 * MIB, &Gate::default()).times(1));
    first.lead().await;
    let ahead = second.fly().await;
    spooled(&ahead, 24 * MIB).await;
    // Others come late, and get nothing before the leader is gone.
    first.to_peer.flow(Flow::Refuse);
    let late = [lab.member().await, lab.member().await, lab.member().await];
    let known = first.to_peer.connections();
    let behind = futures::future::join_all(late.iter().map(Member::fly)).await;
    until("all to look for the leader", LIMIT, async || {
        (first.to_peer.connections() > known + 2 * late.len()).then_some(())
    })
    .await;
    first.flights.stop().await;
    for flight in behind.iter().chain([&ahead]) {
        lab.check(flight).await;
    }
    assert!(lab.read_bytes() < lab.layer.size + 8 * MIB, "{} bytes", lab.read_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_leader_is_replaced_and_follows_when_it_wakes() {
    let lab = Lab::start(24 * MIB).await;
    let (first, second) = (lab.member().await, lab.member().await);
    lab.upstream.inject("*/blobs/*", Fault::slow(MIB).times(1));
    let frozen = first.lead().await;
    let follower = second.fly().await;
    spooled(&follower, MIB / 2).await;
    first.freeze();
    until("another to lead", LIMIT, async || (lab.reads() == 2).then_some(())).await;
    first.thaw();
    let (one, other) = tokio::join!(collect(&follower), collect(&frozen));
    assert_eq!(Digest::of(&one.unwrap()), lab.layer.digest);
    assert_eq!(Digest::of(&other.unwrap()), lab.layer.digest);
    assert_eq!(lab.reads(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_without_spool_space_passes_on_what_the_leader_has() {
    let lab = Lab::start(4 * MIB).await;
    let (first, second) = (lab.member().await, lab.member().await);
    lab.upstream.inject("*/blobs/*", Fault::slow(8 * MIB));
    first.lead().await;
    let passing = second.flights.pass_through(second.source(), &grant("lab/app")).await.unwrap();
    assert_eq!(passing.size(), lab.layer.size);
    let bytes: Vec<Bytes> = passing.into_stream().try_collect().await.unwrap();
    assert_eq!(Digest::of(&bytes.concat()), lab.layer.digest);
    assert_eq!(lab.reads(), 1);
    // What entitles another repository is the upstream's own delivery.
    let passing = second.flights.pass_through(second.source(), &grant("lab/other")).await.unwrap();
    let bytes: Vec<Bytes> = passing.into_stream().try_collect().await.unwrap();
    assert_eq!((bytes.concat().len() as u64, lab.reads()), (lab.layer.size, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_leader_does_not_pass_on_comes_from_upstream() {
    let lab = Lab::start(MIB).await;
    let (first, second) = (lab.member().await, lab.member().await);
    lab.upstream.inject("*/blobs/*", Fault::slow(MIB / 16).times(1));
    first.lead().await;
    first.to_peer.flow(Flow::Hold);
    let app = grant("lab/app");
    let passing = second.flights.pass_through(second.source(), &app);
    let passing = timeout(LIMIT, passing).await.unwrap().unwrap();
    let bytes: Vec<Bytes> = passing.into_stream().try_collect().await.unwrap();
    assert_eq!(Digest::of(&bytes.concat()), lab.layer.digest);
    assert_eq!(lab.reads(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_is_fetched_once_and_is_as_old_as_the_question_for_everybody() {
    let lab = Lab::start(1024).await;
    let (first, second) = (lab.member().await, lab.member().await);
    let source = |member: &Member, remember| ManifestSource {
        client: member.client.clone(),
        upstream_repository: name("app"),
        reference: "1".parse().unwrap(),
        origin: "here".into(),
        priority: Priority::Interactive,
        remember,
    };
    let asked = lab.upstream.inject("*/manifests/*", Fault::delay(Duration::from_millis(300)));
    let (hour, zero) = (Duration::from_secs(3600), Duration::ZERO);
    // Asked at the same time, even who wants the newest takes the other's answer.
    let (one, two) = (source(&first, hour), source(&second, zero));
    let (one, two) = tokio::join!(first.flights.manifest(&one), async {
        until("the first question", LIMIT, async || (asked.fired() > 0).then_some(())).await;
        second.flights.manifest(&two).await
    });
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one.manifest.bytes, two.manifest.bytes);
    assert_eq!((one.asked_at, lab.upstream.gets("*/manifests/*")), (two.asked_at, 1));

    // Afterwards it is as good as it is new, and says when it was asked for.
    let later = second.flights.manifest(&source(&second, hour)).await.unwrap();
    assert_eq!((later.asked_at, lab.upstream.gets("*/manifests/*")), (one.asked_at, 1));
    let newest = second.flights.manifest(&source(&second, zero)).await.unwrap();
    assert!(newest.asked_at > one.asked_at);
    assert_eq!(lab.upstream.gets("*/manifests/*"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_breaks_again_and_again_is_not_noticed() {
    let lab = Lab::start(8 * MIB).await;
    let (first, second) = (lab.member().await, lab.member().await);
    lab.upstream.inject("*/blobs/*", Fault::slow(8 * MIB));
    first.lead().await;
    let follower = second.fly().await;
    for part in 1..6 {
        spooled(&follower, part * MIB).await;
        first.to_peer.cut();
    }
    lab.check(&follower).await;
    assert_eq!(lab.reads(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_out_of_reach_costs_a_second_read_and_no_client() {
    let lab = Lab::start(2 * MIB).await;
    let (first, second) = (lab.member().await, lab.member().await);
    lab.upstream.inject("*/blobs/*", Fault::slow(MIB / 16).times(1));
    first.lead().await;
    first.to_peer.flow(Flow::Refuse);
    first.to_peer.cut();
    lab.check(&second.fly().await).await;
    assert_eq!(lab.reads(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_on_a_link_that_hangs_costs_a_second_read_and_no_client() {
    let lab = Lab::start(2 * MIB).await;
    let (first, second) = (lab.member().await, lab.member().await);
    lab.upstream.inject("*/blobs/*", Fault::slow(MIB / 16).times(1));
    first.lead().await;
    let follower = second.fly().await;
    spooled(&follower, 1).await;
    first.to_peer.flow(Flow::Hold);
    timeout(LIMIT, lab.check(&follower)).await.unwrap();
    assert_eq!(lab.reads(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_leader_stored_behind_a_link_that_hangs_comes_from_storage() {
    let lab = Lab::start(4 * MIB).await;
    let (first, second) = (lab.member().await, lab.member().await);
    lab.upstream.inject("*/blobs/*", Fault::slow(4 * MIB));
    let leading = first.lead().await;
    let follower = second.fly().await;
    spooled(&follower, MIB).await;
    first.to_peer.flow(Flow::Hold);
    leading.stored().await.unwrap();
    timeout(LIMIT, lab.check(&follower)).await.unwrap();
    assert_eq!(lab.reads(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_bus_every_process_reads_for_itself_at_once() {
    let mut lab = Lab::start(MIB).await;
    let (first, second) = (lab.member().await, lab.member().await);
    lab.nats.stop().await;
    for member in [&first, &second] {
        let mut connected = member.bus.connected();
        connected.wait_for(|up| !up).await.unwrap();
    }
    lab.upstream.inject("*/blobs/*", Fault::slow(MIB));
    let (one, two) = (first.lead().await, second.lead().await);
    lab.check(&one).await;
    lab.check(&two).await;
    assert_eq!(lab.reads(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flight_for_another_repository_is_not_joined_unproven() {
    let lab = Lab::start(4 * MIB).await;
    let (first, second) = (lab.member().await, lab.member().await);
    lab.upstream.inject("*/blobs/*", Fault::slow(4 * MIB));
    first.lead().await;
    let other = grant("lab/other");
    let source = Source { upstream_repository: name("other"), ..second.source() };
    let flight = second.flights.begin(source, &other).unwrap().unwrap();
    assert!(matches!(flight.opened().await, Err(FlightError::Foreign)));
    // Who has been found entitled may.
    let flight = second.flights.join_or_start(second.source(), &other).await.unwrap();
    lab.check(&flight).await;
    flight.stored().await.unwrap();
    assert!(lab.store.has_link(&other.repository, &lab.layer.digest).await.unwrap());
    assert_eq!(lab.reads(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_an_unproven_flight_proves_nothing_for_who_began_it() {
    let lab = Lab::start(4 * MIB).await;
    let (first, second) = (lab.member().await, lab.member().await);
    lab.upstream.inject("*/blobs/*", Fault::slow(4 * MIB));
    first.lead().await;
    let stranger = grant("lab/stranger");
    let source = Source { upstream_repository: name("stranger"), ..second.source() };
    // Both are on the flight before it has its turn.
    second.to_nats.flow(Flow::Hold);
    let flight = second.flights.begin(source, &stranger).unwrap().unwrap();
    second.flights.join_or_start(second.source(), &grant("lab/app")).await.unwrap();
    second.to_nats.flow(Flow::Pass);
    assert!(matches!(flight.opened().await, Err(FlightError::Foreign)));
    first.fly().await.stored().await.unwrap();
    assert!(!lab.store.has_link(&stranger.repository, &lab.layer.digest).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_given_later_is_told_to_the_others() {
    let lab = Lab::start(4 * MIB).await;
    let (first, second) = (lab.member().await, lab.member().await);
    lab.upstream.inject("*/blobs/*", Fault::slow(MIB));
    first.lead().await;
    let other = grant("lab/other");
    first.flights.join_or_start(first.source(), &other).await.unwrap();
    let flight = until("the grant to be told", LIMIT, async || {
        let flight = second.flights.begin(second.source(), &other).unwrap()?;
        flight.opened().await.is_ok().then_some(flight)
    })
    .await;
    lab.check(&flight).await;
    assert_eq!(lab.reads(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_the_upstream_is_met_once_and_told_to_the_followers() {
    let lab = Lab::start(MIB).await;
    let (first, second) = (lab.member().await, lab.member().await);
    let failing = Fault::status(503).and(Fault::delay(Duration::from_secs(1)));
    lab.upstream.inject("*/blobs/*", failing);
    let leading = first.fly().await;
    let own = StateKey::Flight(lab.layer.digest.clone());
    until("a leader", LIMIT, async || first.bus.shared_state().get(&own).await.unwrap()).await;
    let following = second.fly().await;
    let (led, followed) = tokio::join!(leading.opened(), following.opened());
    let asked = lab.reads();
    assert_eq!(led.unwrap_err().class(), FailureClass::UpstreamDown);
    assert!(matches!(
        followed.unwrap_err(),
        FlightError::Elsewhere { class: FailureClass::UpstreamDown, .. }
    ));
    assert_eq!(lab.reads(), asked, "the follower did not ask as well");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_reads_a_flight_without_its_key() {
    let lab = Lab::start(4 * MIB).await;
    let first = lab.member().await;
    lab.upstream.inject("*/blobs/*", Fault::slow(MIB));
    first.lead().await;
    let state = first.bus.shared_state();
    let entry = state.get(&StateKey::Flight(lab.layer.digest.clone())).await.unwrap().unwrap();
    let record: hydrant_proto::FlightRecord = codec::decode(&entry.value).unwrap();
    let ask = async |key: &str| {
        let url = format!("http://{}/flights/{}", record.peer, lab.layer.digest);
        let ask = reqwest::Client::new().get(url).bearer_auth(key).header("range", "bytes=0-");
        ask.send().await.unwrap().status().as_u16()
    };
    assert_eq!(ask(&record.key).await, 206);
    for wrong in ["", "x", &record.key[1..], &record.key.replace(|_: char| true, "0")] {
        assert_eq!(ask(wrong).await, 404, "{wrong:?}");
    }
}
