//! Parts of a blob that clients want while its flight is far from them. The upstream holds the body
//! of the flight back until a test lets it go on, so what comes before that came ahead of it.

use crate::{LIMIT, Lab, Member, collect, lab::MIB};
use bytes::Bytes;
use futures::{FutureExt, TryStreamExt, future::join_all};
use hydrant_flight::{Flight, Source};
use hydrant_proto::Digest;
use hydrant_testkit::{Fault, Gate, Request, until};
use std::ops::Range;
use tokio::time::timeout;

const KIB: u64 = 1024;
/// Larger than what a flight is waited for.
const SIZE: u64 = 40 * MIB;
/// What of the body goes out before the gate is open.
const HELD_AT: u64 = MIB;

/// A flight whose upstream stands still.
struct Held {
    lab: Lab,
    gate: Gate,
    leader: Member,
    flight: Flight,
}

impl Held {
    async fn start(size: u64) -> Self {
        let lab = Lab::start(size).await;
        let gate = Gate::default();
        lab.upstream.inject("*/blobs/*", Fault::hold(HELD_AT, &gate).times(1));
        let leader = lab.member().await;
        let flight = leader.lead().await;
        Self { lab, gate, leader, flight }
    }

    fn content(&self, part: &Range<u64>) -> Vec<u8> {
        self.lab.layer.content.chunks(part.clone()).flatten().collect()
    }

    async fn check(&self, flight: &Flight, part: Range<u64>) {
        assert!(read(flight, part.clone()).await == self.content(&part), "{part:?}");
    }

    /// What the upstream was asked for besides the whole.
    fn ranges(&self) -> Vec<Request> {
        let mut gets = self.lab.upstream.requests_of("GET", "*/blobs/*");
        gets.retain(|get| get.header("range").is_some());
        gets
    }

    /// Lets the flight come to its end; the bytes it cost.
    async fn land(&self) -> u64 {
        assert!(self.flight.progress().spooled <= HELD_AT, "the flight stands still");
        self.gate.open();
        let whole = timeout(LIMIT, collect(&self.flight)).await.expect("it goes on").unwrap();
        assert_eq!(Digest::of(&whole), self.lab.layer.digest);
        self.flight.stored().await.unwrap();
        self.lab.read_bytes()
    }
}

async fn read(flight: &Flight, part: Range<u64>) -> Vec<u8> {
    let bytes = flight.part(part).try_collect::<Vec<Bytes>>();
    timeout(LIMIT, bytes).await.expect("a part comes").unwrap().concat()
}

fn last(bytes: u64) -> Range<u64> {
    SIZE - bytes..SIZE
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_cold_blob_comes_before_its_flight_does_and_costs_no_more_than_itself() {
    let held = Held::start(SIZE).await;
    held.check(&held.flight, last(100 * KIB)).await;
    // What lies beside it came with it, and nothing is asked for twice.
    held.check(&held.flight, last(128 * KIB)).await;
    held.check(&held.flight, last(51)).await;
    let ranges = held.ranges();
    assert_eq!(ranges.len(), 1);
    let first = SIZE - 128 * KIB;
    assert_eq!(ranges[0].header("range").unwrap(), format!("bytes={first}-{}", SIZE - 1));
    assert_eq!(held.land().await, SIZE + 128 * KIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flight_that_stands_still_is_not_waited_for_though_it_is_near() {
    let held = Held::start(4 * MIB).await;
    held.check(&held.flight, 2 * MIB..2 * MIB + 10).await;
    assert_eq!(held.land().await, 4 * MIB + 64 * KIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_clients_of_three_processes_that_want_the_same_end_cost_one_range() {
    let held = Held::start(SIZE).await;
    let members = [held.lab.member().await, held.lab.member().await];
    let mut flights = vec![held.flight.clone()];
    for member in &members {
        flights.push(member.lead().await);
    }
    let clients = flights.iter().cycle().take(50);
    join_all(clients.map(|flight| held.check(flight, last(64 * KIB)))).await;
    assert_eq!(held.ranges().len(), 1);
    assert_eq!(held.land().await, SIZE + 64 * KIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_fails_waits_for_the_flight() {
    for fault in [Fault::status(503), Fault::short(7), Fault::shifted_range(9), Fault::truncate(9)]
    {
        let held = Held::start(SIZE).await;
        held.lab.upstream.inject("*/blobs/*", fault);
        waits_for_the_flight(&held, 64 * KIB).await;
    }
}

/// Reads the end of the blob, which comes only with the flight.
async fn waits_for_the_flight(held: &Held, bytes: u64) {
    let end = last(bytes);
    let reading = tokio::spawn({
        let flight = held.flight.clone();
        async move { read(&flight, end).await }
    });
    let answered = |get: &Request| get.ended.is_some();
    until("the range to be answered", LIMIT, async || {
        let ranges = held.ranges();
        (!ranges.is_empty() && ranges.iter().all(answered)).then_some(())
    })
    .await;
    held.land().await;
    assert!(reading.await.unwrap() == held.content(&last(bytes)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_without_ranges_is_asked_for_one_once() {
    let held = Held::start(SIZE).await;
    held.lab.upstream.inject("*/blobs/*", Fault::no_range());
    waits_for_the_flight(&held, 64 * KIB).await;
    assert_eq!(held.ranges().len(), 1);
    // Not for another blob either.
    let (other, gate) = (held.lab.another(2, SIZE), Gate::default());
    let its = format!("*/blobs/{}", other.digest);
    held.lab.upstream.inject(&its, Fault::hold(HELD_AT, &gate));
    let source = Source { digest: other.digest, ..held.leader.source() };
    let flight = held.leader.flights.begin(source, &crate::grant("lab/app")).unwrap().unwrap();
    flight.opened().await.unwrap();
    let (part, ()) = tokio::join!(read(&flight, last(1)), async { gate.open() });
    assert_eq!(part.len(), 1);
    assert_eq!(held.lab.upstream.gets(&its), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_nobody_waits_for_any_more_is_given_up() {
    let held = Held::start(SIZE).await;
    let stall = Fault::stall(10).times(1);
    held.lab.upstream.inject("*/blobs/*", stall);
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Box::pin(held.flight.part(last(1)).try_collect::<Vec<Bytes>>());
        assert!((&mut client).now_or_never().is_none());
        clients.push(client);
    }
    let first = until("the range to be asked for", LIMIT, async || {
        futures::future::select_all(&mut clients).now_or_never();
        held.ranges().pop().filter(|range| range.bytes > 0)
    })
    .await;
    assert_eq!((first.ended, held.ranges().len()), (None, 1), "one for both");
    clients.pop();
    assert!(futures::future::select_all(&mut clients).now_or_never().is_none());
    assert_eq!(held.ranges()[0].ended, None, "one is still there");
    drop(clients);
    until("the range to be given up", LIMIT, async || held.ranges()[0].ended).await;
    // Whoever comes then gets it all the same.
    held.check(&held.flight, last(1)).await;
    held.land().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_costs_a_thirty_second_of_itself_more_at_most() {
    const LARGE: u64 = 64 * MIB;
    let held = Held::start(LARGE).await;
    let parts = (0..100).map(|n| LARGE - (n + 1) * 128 * KIB).map(|at| at..at + 1);
    let reads = join_all(parts.map(|part| held.check(&held.flight, part)));
    let landed = async {
        let all = || held.ranges().len() as u64 * 64 * KIB >= LARGE / 32;
        until("all that may be asked for", LIMIT, async || all().then_some(())).await;
        held.land().await
    };
    let (_, cost) = tokio::join!(reads, landed);
    assert_eq!(cost, LARGE + LARGE / 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_part_waits_for_the_flight() {
    let held = Held::start(SIZE).await;
    let (part, cost) = tokio::join!(read(&held.flight, last(5 * MIB)), held.land());
    assert!(part == held.content(&last(5 * MIB)));
    assert_eq!((cost, held.ranges().len()), (SIZE, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_over_from_a_frozen_leader_fetches_parts_itself() {
    let held = Held::start(SIZE).await;
    held.lab.upstream.heal();
    let (member, gate) = (held.lab.member().await, Gate::default());
    let flight = member.lead().await;
    held.leader.freeze();
    let before = held.lab.reads() as u64;
    held.lab.upstream.inject("*/blobs/*", Fault::hold(HELD_AT, &gate).times(1));
    assert_eq!(before, 1);
    // First asked of the leader, which does not answer.
    held.check(&flight, last(1)).await;
    assert!(flight.progress().spooled <= 2 * HELD_AT, "its own body is held, too");
    gate.open();
    assert_eq!(Digest::of(&collect(&flight).await.unwrap()), held.lab.layer.digest);
    held.leader.thaw();
    held.gate.open();
}
