//! Leases: kept while the holder lives, lost when it cannot know, given back at once.

use crate::support::{LIMIT, config, connect, ready};
use hydrant_bus::{Bus, BusError, Claimed, Entry, Held, Lost, SharedState};
use hydrant_proto::subject::StateKey;
use hydrant_testkit::{NatsServer, until};
use std::{
    sync::mpsc,
    time::{Duration, Instant},
};
use tokio::time::timeout;

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(600);

fn key() -> StateKey {
    StateKey::Probe("hub".to_owned())
}

async fn hold(state: &SharedState, value: &str, ttl: Duration) -> Held {
    match state.hold(&key(), value.to_owned().into(), ttl).await.unwrap() {
        Claimed::Mine(held) => held,
        Claimed::Taken(entry) => panic!("taken by {}", entry.owner),
    }
}

/// Claims the key as soon as it is free, and the bus is there.
async fn hold_soon(state: &SharedState, ttl: Duration) -> Held {
    until("the key to be free", LIMIT, async || {
        match state.hold(&key(), "next".into(), ttl).await {
            Ok(Claimed::Mine(held)) => Some(held),
            Ok(Claimed::Taken(_)) | Err(_) => None,
        }
    })
    .await
}

async fn entry(state: &SharedState) -> Option<Entry> {
    state.get(&key()).await.unwrap()
}

async fn lost(held: &Held) -> Lost {
    let lost = timeout(LIMIT, held.lost()).await.expect("lost in time");
    assert!(!held.is_held());
    lost
}

#[tokio::test]
async fn who_holds_after_a_lease_expired_knows_it_and_after_one_was_given_back_does_not() {
    let server = NatsServer::start().await;
    let (bus, other) = (connect(&server).await, connect(&server).await.shared_state());
    let state = bus.shared_state();
    let first = hold(&state, "one", LONG).await;
    assert!(!first.is_after_expiry());
    first.release().await;
    let second = hold(&other, "two", LONG).await;
    assert!(!second.is_after_expiry());
    second.release().await;
    // As a killed holder leaves it.
    state.create(&key(), "three".into(), SECOND).await.unwrap();
    assert!(hold_soon(&other, LONG).await.is_after_expiry());
}

#[tokio::test]
async fn a_lease_is_kept_as_long_as_its_holder_lives_and_can_be_given_back() {
    let server = NatsServer::start().await;
    let (bus, other) = (connect(&server).await, connect(&server).await.shared_state());
    let state = bus.shared_state();
    // Beats are waited for one by one, so it need not be short to be quick.
    let held = hold(&state, "one", 3 * SECOND).await;
    let first = entry(&other).await.unwrap();
    until("some beats", LIMIT, async || {
        assert!(held.is_held());
        let taken = other.hold(&key(), "two".into(), SECOND).await.unwrap();
        assert!(matches!(taken, Claimed::Taken(_)));
        (entry(&other).await.unwrap().revision.0 >= first.revision.0 + 5).then_some(())
    })
    .await;
    assert_eq!(entry(&other).await.unwrap().value, "one");

    held.set("news".into()).unwrap();
    until("the new value", LIMIT, async || {
        (entry(&other).await.unwrap().value == "news").then_some(())
    })
    .await;
    assert!(held.set(vec![0; 600 * 1024].into()).is_err());

    held.release().await;
    assert_eq!(entry(&other).await, None);
    let held = hold(&other, "two", LONG).await;
    drop(held);
    let held = hold_soon(&state, LONG).await;
    assert!(held.is_held());
}

#[tokio::test]
async fn a_frozen_holder_knows_when_it_wakes_and_does_no_harm() {
    let server = NatsServer::start().await;
    let other = connect(&server).await.shared_state();
    let (config, (asleep, sleeping), (wake, woken)) =
        (config(&server), mpsc::channel(), mpsc::channel());
    // All that the holder runs runs on its thread, which is blocked.
    let holder = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let state = runtime
            .block_on(async { ready(Bus::connect(config).await.unwrap()).await.shared_state() });
        let held = runtime.block_on(hold(&state, "one", SECOND));
        asleep.send(held.is_held()).unwrap();
        woken.recv().unwrap();
        let believes = held.is_held();
        let lost = runtime.block_on(lost(&held));
        runtime.block_on(held.release());
        (believes, lost)
    });
    assert!(sleeping.recv().unwrap(), "held at first");
    let held = hold_soon(&other, LONG).await;
    wake.send(()).unwrap();
    let (believes, lost) = tokio::task::spawn_blocking(|| holder.join().unwrap()).await.unwrap();
    assert!(!believes, "it knows before anything of it has run");
    assert_eq!(lost, Lost::Unconfirmed);
    assert_eq!(entry(&other).await.unwrap().owner, other.owner(), "its last words changed nothing");
    assert!(held.is_held());
}

#[tokio::test]
async fn a_holder_that_was_replaced_is_told_by_whom() {
    let server = NatsServer::start().await;
    let (bus, other) = (connect(&server).await, connect(&server).await.shared_state());
    let held = hold(&bus.shared_state(), "one", 3 * SECOND).await;
    until("removal by another hand", LIMIT, async || {
        let revision = entry(&other).await?.revision;
        other.remove(&key(), revision).await.ok()
    })
    .await;
    let next = hold(&other, "two", LONG).await;
    match lost(&held).await {
        Lost::Taken(entry) => {
            assert_eq!((&*entry.owner, &*entry.value), (other.owner(), &b"two"[..]))
        }
        other => panic!("{other:?}"),
    }
    held.release().await;
    assert_eq!(entry(&other).await.unwrap().value, "two");
    assert!(next.is_held());
}

#[tokio::test]
async fn a_restart_of_the_server_loses_all_leases_and_new_ones_can_be_had() {
    let mut server = NatsServer::start().await;
    let bus = connect(&server).await;
    let state = bus.shared_state();
    let held = hold(&state, "one", 10 * SECOND).await;
    let before = entry(&state).await.unwrap().revision;
    server.kill9();
    server.restart().await;
    assert_eq!(lost(&held).await, Lost::Gone);
    let again = hold_soon(&state, LONG).await;
    assert!(again.is_held());
    assert!(entry(&state).await.unwrap().revision.0 > before.0);
}

#[tokio::test]
async fn a_server_that_is_gone_for_a_whole_lifetime_loses_the_lease() {
    let mut server = NatsServer::start().await;
    let bus = connect(&server).await;
    let held = hold(&bus.shared_state(), "one", SECOND).await;
    let began = Instant::now();
    server.kill9();
    assert_eq!(lost(&held).await, Lost::Unconfirmed);
    assert!(began.elapsed() < 5 * SECOND, "{:?}", began.elapsed());
    held.set("nobody listens".into()).unwrap();
    let began = Instant::now();
    held.release().await;
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_server_that_does_not_answer_for_a_whole_lifetime_loses_the_lease() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let state = bus.shared_state();
    let held = hold(&state, "one", SECOND).await;
    let began = Instant::now();
    server.freeze();
    assert_eq!(lost(&held).await, Lost::Unconfirmed);
    assert!(began.elapsed() < 5 * SECOND, "{:?}", began.elapsed());
    server.thaw();
    hold_soon(&state, LONG).await;
}

#[tokio::test]
async fn a_write_whose_answer_was_late_is_recognised_as_ones_own() {
    let server = NatsServer::start().await;
    let (bus, other) = (connect(&server).await, connect(&server).await.shared_state());
    let held = hold(&bus.shared_state(), "one", 12 * SECOND).await;
    let first = entry(&other).await.unwrap().revision;
    server.freeze();
    until("the freeze", LIMIT, async || {
        timeout(SECOND / 5, other.get(&key())).await.is_err().then_some(())
    })
    .await;
    held.set("said into the void".into()).unwrap();
    // The lease's own write is given up after 4 s, this after 5.
    assert!(other.get(&key()).await.is_err());
    server.thaw();
    let landed = until("the value", LIMIT, async || {
        other.get(&key()).await.ok().flatten().filter(|entry| entry.value == "said into the void")
    })
    .await;
    until("a beat that follows it", LIMIT, async || {
        assert!(held.is_held());
        (entry(&other).await.unwrap().revision.0 > landed.revision.0).then_some(())
    })
    .await;
    assert!(landed.revision.0 > first.0);
    assert_eq!(entry(&other).await.unwrap().value, "said into the void");
}

#[tokio::test]
async fn a_last_value_stays_for_its_time_and_can_be_claimed_over_only_as_it_was_read() {
    let server = NatsServer::start().await;
    let (bus, other) = (connect(&server).await, connect(&server).await.shared_state());
    let held = hold(&bus.shared_state(), "one", LONG).await;
    held.bequeath("left".into(), LONG).await.unwrap();
    let left = entry(&other).await.unwrap();
    assert_eq!(left.value, "left");
    assert!(matches!(
        other.hold(&key(), "two".into(), LONG).await.unwrap(),
        Claimed::Taken(taken) if taken == left
    ));

    let next = other.hold_over(&key(), "two".into(), left.revision, LONG).await.unwrap();
    assert!(next.is_held());
    let late = bus.shared_state().hold_over(&key(), "three".into(), left.revision, LONG).await;
    assert!(matches!(late, Err(BusError::Conflict { .. })));
    assert_eq!(entry(&other).await.unwrap().value, "two");
}
