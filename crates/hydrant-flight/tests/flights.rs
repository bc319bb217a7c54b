//! Flights against a scripted upstream: one read, whoever comes, stays or goes.

// A test reports what went wrong by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use hydrant_flight::{Flight, FlightError, Flights, Grant, Opened, Source, Stage};
use hydrant_proto::{Digest, FailureClass, RepositoryName};
use hydrant_rules::{Resources, Table};
use hydrant_store::Store;
use hydrant_testkit::{Blob, FakeUpstream, Fault, ImageBuilder};
use hydrant_upstream::{BreakerState as State, Client, Priority, SecretSource, Upstreams};
use std::{path::Path, pin::pin, sync::Arc};

const MIB: u64 = 1024 * 1024;

struct Lab {
    upstream: FakeUpstream,
    store: Store,
    flights: Flights,
    client: Arc<Client>,
    layer: Blob,
    _spool: tempfile::TempDir,
}

impl Lab {
    async fn start(size: u64) -> Self {
        let upstream = FakeUpstream::start().await;
        let image = ImageBuilder::new(1).layers(&[size]).build();
        upstream.insert(&image, "app", "1");
        let layer = image.all_blobs().into_iter().max_by_key(|blob| blob.size).unwrap().clone();
        let (store, spool) = (Store::in_memory(), tempfile::tempdir().unwrap());
        let flights = Flights::new(store.clone(), spool.path().into(), 64 * MIB, None).unwrap();
        let client = client(&upstream);
        Self { upstream, store, flights, client, layer, _spool: spool }
    }

    fn source(&self) -> Source {
        Source {
            client: self.client.clone(),
            upstream_repository: name("app"),
            digest: self.layer.digest.clone(),
            size: None,
            urgency: Priority::Interactive.into(),
        }
    }

    async fn fly(&self) -> Flight {
        self.flights.join_or_start(self.source(), &grant("lab/app")).await.unwrap()
    }

    fn reads(&self) -> usize {
        self.upstream.gets("*/blobs/*")
    }
}

fn client(upstream: &FakeUpstream) -> Arc<Client> {
    client_with(upstream, "")
}

fn client_with(upstream: &FakeUpstream, settings: &str) -> Arc<Client> {
    let text = format!(
        "[[upstream]]\nname='lab'\nendpoint='{}'\nallow_private=true\n{settings}\n[[rule]]\nname='lab'\n\
         downstream='lab/*'\nupstream='lab'\n",
        upstream.url()
    );
    let table = Table::compile(Resources::from_toml(&text, Path::new("/")).unwrap()).unwrap();
    let route = table.route(&name("lab/app")).unwrap();
    Upstreams::new(SecretSource::default()).get(&route.upstream, None).unwrap()
}

fn name(text: &str) -> RepositoryName {
    text.parse().unwrap()
}

fn grant(repository: &str) -> Grant {
    Grant { repository: name(repository), origin: "here".into() }
}

async fn collect(flight: &Flight) -> Result<Vec<u8>, FlightError> {
    let whole = flight.read(0, None).try_fold(Vec::new(), |mut whole, bytes: Bytes| async move {
        whole.extend_from_slice(&bytes);
        Ok(whole)
    });
    whole.await
}

#[tokio::test(flavor = "multi_thread")]
async fn any_number_of_readers_cost_one_read_and_all_get_the_same() {
    let lab = Lab::start(3 * MIB).await;
    let readers = (0..50).map(|_| async { collect(&lab.fly().await).await });
    for bytes in futures::future::join_all(readers).await {
        assert_eq!(Digest::of(&bytes.unwrap()), lab.layer.digest);
    }
    lab.flights.drain().await;
    assert_eq!(lab.reads(), 1);
    assert_eq!(lab.store.blob_size(&lab.layer.digest).await.unwrap(), Some(lab.layer.size));
    assert!(lab.store.has_link(&name("lab/app"), &lab.layer.digest).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_blob_is_not_fetched_again_but_linked() {
    let lab = Lab::start(MIB).await;
    lab.fly().await.stored().await.unwrap();
    let other = grant("lab/other");
    let flight = lab.flights.join_or_start(lab.source(), &other).await.unwrap();
    assert_eq!(flight.stored().await.unwrap(), lab.layer.size);
    assert_eq!(flight.opened().await.unwrap(), Opened::Stored { size: lab.layer.size });
    assert!(lab.store.has_link(&other.repository, &lab.layer.digest).await.unwrap());
    assert_eq!(lab.reads(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_did_not_see_a_blob_in_storage_just_before_it_landed_does_not_fetch_it_again() {
    let lab = Lab::start(MIB).await;
    lab.fly().await.stored().await.unwrap();
    lab.flights.drain().await;
    let late = lab.flights.begin(lab.source(), &grant("lab/app")).unwrap().unwrap();
    assert_eq!(late.stored().await.unwrap(), lab.layer.size);
    assert_eq!(lab.reads(), 1);
    // Another repository is entitled by a delivery of its own.
    let other = lab.flights.begin(lab.source(), &grant("lab/other")).unwrap().unwrap();
    other.stored().await.unwrap();
    assert_eq!(lab.reads(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_leaves_and_one_that_stands_still_stop_nobody() {
    let lab = Lab::start(3 * MIB).await;
    let flight = lab.fly().await;
    let mut still = pin!(flight.read(0, None));
    still.next().await.unwrap().unwrap();
    let mut leaving = Box::pin(flight.read(0, None));
    leaving.next().await.unwrap().unwrap();
    drop(leaving);
    assert_eq!(flight.stored().await.unwrap(), lab.layer.size);
    // The one that stood still gets the rest from the spool.
    let rest: Vec<Bytes> = still.try_collect().await.unwrap();
    assert!(!rest.is_empty());
    assert_eq!(lab.reads(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_answered_from_the_flight() {
    let lab = Lab::start(3 * MIB).await;
    let flight = lab.fly().await;
    let part: Vec<Bytes> = flight.read(MIB, Some(MIB + 1000)).try_collect().await.unwrap();
    let whole = collect(&flight).await.unwrap();
    assert_eq!(part.concat(), whole[MIB as usize..MIB as usize + 1000]);
    assert_eq!(lab.reads(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_end_in_an_error_one_byte_short_and_are_not_stored() {
    let lab = Lab::start(MIB).await;
    lab.upstream.inject("*/blobs/*", Fault::wrong_bytes());
    let flight = lab.fly().await;
    let mut body = pin!(flight.read(0, None));
    let (mut length, mut failure) = (0, None);
    while let Some(item) = body.next().await {
        match item {
            Ok(bytes) => length += bytes.len() as u64,
            Err(error) => failure = Some(error),
        }
    }
    assert_eq!(failure.expect("an error at the end").class(), FailureClass::Integrity);
    assert!(length < lab.layer.size, "{length} bytes went out");
    lab.flights.drain().await;
    assert_eq!(lab.store.blob_size(&lab.layer.digest).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_break_is_resumed_by_a_range_and_costs_no_byte_twice() {
    let lab = Lab::start(3 * MIB).await;
    lab.upstream.inject("*/blobs/*", Fault::truncate(MIB));
    let bytes = collect(&lab.fly().await).await.unwrap();
    assert_eq!(Digest::of(&bytes), lab.layer.digest);
    let resumed = lab.upstream.requests_of("GET", "*/blobs/*");
    assert!(resumed.len() > 1);
    assert!(lab.upstream.bytes("*/blobs/*") < lab.layer.size + MIB / 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_break_together_are_all_resumed() {
    let lab = Lab::start(MIB).await;
    let fault = Fault::slow(4 * MIB).and(Fault::truncate(2 * MIB)).times(8);
    let broken = lab.upstream.inject("*/blobs/*", fault);
    let mut blobs = Vec::new();
    for seed in 2..10 {
        let image = ImageBuilder::new(seed).layers(&[3 * MIB]).build();
        lab.upstream.insert(&image, "app", &seed.to_string());
        blobs.push(image.all_blobs().into_iter().max_by_key(|blob| blob.size).unwrap().clone());
    }
    let reading = blobs.iter().map(async |blob| {
        let source = Source { digest: blob.digest.clone(), ..lab.source() };
        let flight = lab.flights.join_or_start(source, &grant("lab/app")).await.unwrap();
        Digest::of(&collect(&flight).await.unwrap()) == blob.digest
    });
    assert!(futures::future::join_all(reading).await.into_iter().all(|is_right| is_right));
    assert_eq!(broken.fired(), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_promised_the_rest_waits_for_an_upstream_in_trouble_and_who_was_not_hears_of_it() {
    let lab = Lab::start(3 * MIB).await;
    lab.upstream.inject("*/blobs/*", Fault::truncate(MIB).times(1));
    // Enough to open the breaker.
    let trouble = lab.upstream.inject("*/blobs/*", Fault::status(503).after(1));
    let (flight, cured) = (lab.fly().await, async {
        lab.client.breaker().watch().wait_for(|now| *now != State::Closed).await.unwrap();
        let other = Source { digest: Digest::of(b"another"), ..lab.source() };
        let refused = lab.flights.join_or_start(other, &grant("lab/app")).await.unwrap();
        assert_eq!(refused.opened().await.unwrap_err().class(), FailureClass::BreakerOpen);
        trouble.remove();
    });
    let (read, ()) = tokio::join!(collect(&flight), cured);
    assert_eq!(Digest::of(&read.unwrap()), lab.layer.digest);
    assert!(lab.upstream.bytes("*/blobs/*") < lab.layer.size + MIB / 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_without_ranges_is_read_from_its_beginning_again() {
    for fault in [Fault::no_range(), Fault::shifted_range(7)] {
        let lab = Lab::start(3 * MIB).await;
        lab.upstream.inject("*/blobs/*", Fault::truncate(MIB).times(1));
        lab.upstream.inject("*/blobs/*", fault);
        let bytes = collect(&lab.fly().await).await.unwrap();
        assert_eq!(Digest::of(&bytes), lab.layer.digest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_blob_is_read_as_parallel_ranges_and_each_byte_once() {
    let lab = Lab::start(21 * MIB).await;
    let client = client_with(&lab.upstream, "parallel={from='16MiB',ranges=4}");
    let source = Source { client, size: Some(lab.layer.size), ..lab.source() };
    lab.upstream.inject("*/blobs/*", Fault::slow(20 * MIB));
    let flight = lab.flights.join_or_start(source, &grant("lab/app")).await.unwrap();
    assert_eq!(Digest::of(&collect(&flight).await.unwrap()), lab.layer.digest);
    flight.stored().await.unwrap();
    assert_eq!(lab.upstream.bytes("*/blobs/*"), lab.layer.size);
    assert_eq!(lab.upstream.peak("GET", "*/blobs/*"), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_break_off_are_resumed_and_an_upstream_without_them_is_read_whole() {
    for (fault, most) in [
        (Fault::truncate(MIB).times(3), 24 * MIB),
        // What a connection buffers before it is closed counts as sent.
        (Fault::no_range(), 36 * MIB),
        (Fault::shifted_range(3).times(2), 24 * MIB),
    ] {
        let lab = Lab::start(20 * MIB).await;
        let client = client_with(&lab.upstream, "parallel={from='16MiB',ranges=3}");
        let source = Source { client, size: Some(lab.layer.size), ..lab.source() };
        lab.upstream.inject("*/blobs/*", fault);
        let flight = lab.flights.join_or_start(source, &grant("lab/app")).await.unwrap();
        assert_eq!(Digest::of(&collect(&flight).await.unwrap()), lab.layer.digest);
        assert!(lab.upstream.bytes("*/blobs/*") < most, "{}", lab.upstream.bytes("*/blobs/*"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_size_that_the_manifest_does_not_say_is_refused_before_a_byte_goes_out() {
    let lab = Lab::start(MIB).await;
    let source = Source { size: Some(5), ..lab.source() };
    let flight = lab.flights.join_or_start(source, &grant("lab/app")).await.unwrap();
    assert_eq!(flight.opened().await.unwrap_err().class(), FailureClass::Integrity);
    assert!(matches!(flight.progress().stage, Stage::Failed(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_flight_makes_room_for_the_next() {
    let lab = Lab::start(MIB).await;
    lab.upstream.inject("*/blobs/*", Fault::wrong_bytes().times(1));
    collect(&lab.fly().await).await.unwrap_err();
    assert_eq!(Digest::of(&collect(&lab.fly().await).await.unwrap()), lab.layer.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_a_flight_says_so_and_the_blob_can_be_passed_through() {
    let lab = Lab::start(3 * MIB).await;
    let big = ImageBuilder::new(2).layers(&[60 * MIB]).build();
    lab.upstream.insert(&big, "app", "2");
    let layer = big.all_blobs().into_iter().max_by_key(|blob| blob.size).unwrap().clone();
    let stalled = format!("*/blobs/{}", layer.digest);
    lab.upstream.inject(&stalled, Fault::stall(1000));
    let source = Source { digest: layer.digest, ..lab.source() };
    let filling = lab.flights.join_or_start(source, &grant("lab/app")).await.unwrap();
    filling.opened().await.unwrap();

    let six = ImageBuilder::new(3).layers(&[6 * MIB]).build();
    lab.upstream.insert(&six, "app", "3");
    let layer = six.all_blobs().into_iter().max_by_key(|blob| blob.size).unwrap().clone();
    let size = Some(layer.size);
    let source = Source { digest: layer.digest.clone(), size, ..lab.source() };
    let refused = lab.flights.join_or_start(source.clone(), &grant("lab/app")).await.unwrap();
    assert!(matches!(refused.opened().await, Err(FlightError::NoSpool(_))));
    let asked = format!("*/blobs/{}", layer.digest);
    assert_eq!(lab.upstream.gets(&asked), 0, "what has no place is not asked for");
    let passed: Vec<Bytes> = lab
        .flights
        .pass_through(source, &grant("lab/app"))
        .await
        .unwrap()
        .into_stream()
        .try_collect()
        .await
        .unwrap();
    assert_eq!(Digest::of(&passed.concat()), layer.digest);
    assert_eq!(lab.upstream.gets(&asked), 1);
    lab.flights.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flight_that_lands_after_its_rule_was_led_elsewhere_is_linked_to_nobody() {
    let lab = Lab::start(MIB).await;
    lab.store.claim_origin(&name("lab/app"), "here").await.unwrap();
    lab.upstream.inject("*/blobs/*", Fault::slow(2 * MIB));
    let flight = lab.fly().await;
    flight.opened().await.unwrap();
    lab.store.take_over(&name("lab/app"), "elsewhere").await.unwrap();
    flight.stored().await.unwrap();
    assert!(!lab.store.has_link(&name("lab/app"), &lab.layer.digest).await.unwrap());
}

#[tokio::test]
async fn what_landed_is_kept_for_a_while_and_makes_room_for_what_flies() {
    let lab = Lab::start(12 * MIB).await;
    lab.fly().await.stored().await.unwrap();
    let landed = lab.flights.landed(&lab.layer.digest).expect("its bytes are kept");
    assert_eq!(Digest::of(&collect(&landed).await.unwrap()), lab.layer.digest);
    drop(landed);
    let large = ImageBuilder::new(2).layers(&[60 * MIB]).build();
    lab.upstream.insert(&large, "app", "2");
    let layer = large.all_blobs().into_iter().max_by_key(|blob| blob.size).unwrap();
    let source = Source { digest: layer.digest.clone(), ..lab.source() };
    let flight = lab.flights.join_or_start(source, &grant("lab/app")).await.unwrap();
    assert_eq!(flight.stored().await.unwrap(), layer.size);
    assert!(lab.flights.landed(&lab.layer.digest).is_none());
}
