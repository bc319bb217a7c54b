//! Shared state: one winner, lifetimes that are kept, watches that hear of the end.

use crate::support::{LIMIT, connect, raw, ready};
use async_nats::jetstream::stream::{Config, StorageType};
use futures::{Stream, StreamExt, future::join_all};
use hydrant_bus::{Bus, BusError, Claimed, Entry, Revision, SharedState};
use hydrant_proto::{Digest, subject::StateKey};
use hydrant_testkit::{NatsServer, until};
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);

fn key() -> StateKey {
    StateKey::Flight(Digest::of(b"blob"))
}

fn mine<T>(claimed: Claimed<T>) -> T {
    match claimed {
        Claimed::Mine(won) => won,
        Claimed::Taken(entry) => panic!("taken by {}", entry.owner),
    }
}

async fn next<T>(stream: &mut (impl Stream<Item = T> + Unpin)) -> T {
    tokio::time::timeout(LIMIT, stream.next()).await.expect("something in time").unwrap()
}

async fn gone(state: &SharedState) {
    until("no value", LIMIT, async || state.get(&key()).await.unwrap().is_none().then_some(()))
        .await;
}

/// Fifty callers over two connections; the winner's revision.
async fn race(buses: &[Bus; 2], round: &str) -> Revision {
    let claims = (0..50).map(|n| {
        let state = buses[n % 2].shared_state();
        async move { state.create(&key(), format!("{round} {n}").into(), LONG).await.unwrap() }
    });
    let outcomes = join_all(claims).await;
    let found = buses[0].shared_state().get(&key()).await.unwrap().unwrap();
    let won: Vec<_> = (0..50)
        .filter(|&n| matches!(outcomes[n], Claimed::Mine(r) if r == found.revision))
        .collect();
    let [winner] = won[..] else { panic!("{round}: {won:?} of {outcomes:?}") };
    assert_eq!(found.value, format!("{round} {winner}"));
    assert_eq!(found.owner, buses[winner % 2].shared_state().owner());
    let taken = |claimed: &&Claimed<Revision>| matches!(claimed, Claimed::Taken(e) if *e == found);
    assert_eq!(outcomes.iter().filter(taken).count(), 49, "{round}");
    found.revision
}

#[tokio::test]
async fn of_fifty_one_wins_on_a_fresh_key_and_over_every_kind_of_mark() {
    let server = NatsServer::start().await;
    let buses = [connect(&server).await, connect(&server).await];
    let state = buses[0].shared_state();
    let won = race(&buses, "fresh").await;
    state.remove(&key(), won).await.unwrap();
    let won = race(&buses, "removed").await;
    state.update(&key(), "soon over".into(), won, SECOND).await.unwrap();
    gone(&state).await;
    race(&buses, "expired").await;
}

#[tokio::test]
async fn a_value_expires_after_its_lifetime_and_not_before() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let (state, other) = (bus.shared_state(), connect(&server).await.shared_state());
    for ttl in [SECOND, Duration::from_millis(1_300)] {
        let began = Instant::now();
        mine(state.create(&key(), "one".into(), ttl).await.unwrap());
        let taken = other.create(&key(), "two".into(), ttl).await.unwrap();
        assert!(matches!(taken, Claimed::Taken(entry) if entry.owner == state.owner()));
        let won = until("the key to be free", LIMIT, async || {
            match other.create(&key(), "two".into(), LONG).await.unwrap() {
                Claimed::Mine(revision) => Some(revision),
                Claimed::Taken(_) => None,
            }
        })
        .await;
        assert!(began.elapsed() >= ttl, "{:?} is less than {ttl:?}", began.elapsed());
        other.remove(&key(), won).await.unwrap();
    }
}

#[tokio::test]
async fn a_key_created_again_or_updated_expires_again() {
    let server = NatsServer::start().await;
    let state = connect(&server).await.shared_state();
    mine(state.create(&key(), "first".into(), SECOND).await.unwrap());
    gone(&state).await;
    let expired = mine(state.create(&key(), "after expiry".into(), SECOND).await.unwrap());
    gone(&state).await;
    let late = state.update(&key(), "late".into(), expired, SECOND).await.unwrap_err();
    assert!(matches!(late, BusError::Conflict { .. }), "{late:?}");

    let removed = mine(state.create(&key(), "to remove".into(), LONG).await.unwrap());
    state.remove(&key(), removed).await.unwrap();
    assert_eq!(state.get(&key()).await.unwrap(), None);
    let again = state.remove(&key(), removed).await.unwrap_err();
    assert!(matches!(again, BusError::Conflict { .. }), "{again:?}");
    mine(state.create(&key(), "after removal".into(), SECOND).await.unwrap());
    gone(&state).await;

    let revision = mine(state.create(&key(), "long".into(), LONG).await.unwrap());
    let began = Instant::now();
    let updated = state.update(&key(), "short".into(), revision, SECOND).await.unwrap();
    assert!(updated.0 > revision.0);
    gone(&state).await;
    assert!(began.elapsed() >= SECOND);
}

#[tokio::test]
async fn an_update_makes_the_lifetime_begin_anew() {
    let server = NatsServer::start().await;
    let state = connect(&server).await.shared_state();
    let began = Instant::now();
    let mut revision = mine(state.create(&key(), "0".into(), 2 * SECOND).await.unwrap());
    let mut updates = 0;
    while began.elapsed() < 3 * SECOND {
        updates += 1;
        let value = updates.to_string().into();
        revision = state.update(&key(), value, revision, 2 * SECOND).await.unwrap();
    }
    let stale = state.update(&key(), "stale".into(), Revision(revision.0 - 1), SECOND).await;
    assert!(matches!(stale, Err(BusError::Conflict { .. })), "{stale:?}");
    gone(&state).await;
}

#[tokio::test]
async fn a_watch_sees_taken_changed_expired_removed_and_a_restart() {
    let mut server = NatsServer::start().await;
    let bus = connect(&server).await;
    let state = bus.shared_state();
    let mut watch = Box::pin(state.watch(&key()).unwrap());
    let value = |entry: Option<Entry>| entry.map(|entry| entry.value);
    assert_eq!(next(&mut watch).await, None, "what is there now");

    let revision = mine(state.create(&key(), "one".into(), LONG).await.unwrap());
    assert_eq!(value(next(&mut watch).await), Some("one".into()));
    let began = Instant::now();
    state.update(&key(), "two".into(), revision, SECOND).await.unwrap();
    assert_eq!(value(next(&mut watch).await), Some("two".into()));
    assert_eq!(next(&mut watch).await, None, "expired");
    assert!(began.elapsed() < 8 * SECOND, "told, not found by looking: {:?}", began.elapsed());

    let revision = mine(state.create(&key(), "three".into(), LONG).await.unwrap());
    assert_eq!(value(next(&mut watch).await), Some("three".into()));
    state.remove(&key(), revision).await.unwrap();
    assert_eq!(next(&mut watch).await, None, "removed");

    let before = mine(state.create(&key(), "four".into(), LONG).await.unwrap());
    assert_eq!(value(next(&mut watch).await), Some("four".into()));
    server.kill9();
    server.restart().await;
    ready(bus.clone()).await;
    assert_eq!(next(&mut watch).await, None, "a bucket in memory is empty after a restart");
    let after = mine(state.create(&key(), "five".into(), LONG).await.unwrap());
    assert_eq!(value(next(&mut watch).await), Some("five".into()));
    assert!(
        after.0 > before.0,
        "no revision is used twice, else a late write could hit: {after:?}"
    );
}

#[tokio::test]
async fn calls_fail_at_once_while_the_server_is_down() {
    let mut server = NatsServer::start().await;
    let bus = connect(&server).await;
    let state = bus.shared_state();
    server.kill9();
    bus.connected().wait_for(|up| !up).await.unwrap();
    let began = Instant::now();
    let errors = [
        state.create(&key(), "one".into(), SECOND).await.unwrap_err(),
        state.update(&key(), "one".into(), Revision(1), SECOND).await.unwrap_err(),
        state.get(&key()).await.unwrap_err(),
        state.remove(&key(), Revision(1)).await.unwrap_err(),
        state.hold(&key(), "one".into(), SECOND).await.unwrap_err(),
    ];
    assert!(began.elapsed() < Duration::from_millis(250), "{:?}", began.elapsed());
    let disconnected = |error: &BusError| matches!(error, BusError::Disconnected(_));
    assert!(errors.iter().all(disconnected), "{errors:?}");
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused_before_it_is_sent() {
    let server = NatsServer::start().await;
    let state = connect(&server).await.shared_state();
    let refusals = [
        state.create(&key(), vec![0; 512 * 1024].into(), SECOND).await.unwrap_err(),
        state.create(&key(), "never ends".into(), Duration::ZERO).await.unwrap_err(),
        state.create(&key(), "too long".into(), 25 * 3600 * SECOND).await.unwrap_err(),
        state.create(&StateKey::Quota("a.>".to_owned()), "one".into(), SECOND).await.unwrap_err(),
    ];
    let refused = |error: &BusError| matches!(error, BusError::Refused { .. });
    assert!(refusals.iter().all(refused), "{refusals:?}");
    assert_eq!(state.get(&key()).await.unwrap(), None);
}

#[tokio::test]
async fn a_bucket_made_by_an_older_version_learns_to_mark_what_expires() {
    let server = NatsServer::start().await;
    let jetstream = raw(&server).await;
    let older = Config {
        name: "KV_hydrant_state".to_owned(),
        subjects: vec!["$KV.hydrant_state.>".to_owned()],
        storage: StorageType::Memory,
        max_messages_per_subject: 1,
        allow_rollup: true,
        allow_message_ttl: true,
        ..Config::default()
    };
    jetstream.create_stream(older).await.unwrap();
    let state = connect(&server).await.shared_state();
    let mut watch = Box::pin(state.watch(&key()).unwrap());
    assert_eq!(next(&mut watch).await, None);
    let began = Instant::now();
    mine(state.create(&key(), "one".into(), SECOND).await.unwrap());
    assert!(next(&mut watch).await.is_some());
    assert_eq!(next(&mut watch).await, None);
    assert!(began.elapsed() < 8 * SECOND, "told, not found by looking: {:?}", began.elapsed());
}

#[tokio::test]
async fn each_process_tells_for_itself_and_all_hear_of_it() {
    let server = NatsServer::start().await;
    let (one, two) = (connect(&server).await, connect(&server).await);
    let (one, two) = (one.shared_state(), two.shared_state());
    let mut heard = Box::pin(two.watch_breakers("hub-1").unwrap());
    one.put_over(&one.own_breaker("hub-2"), "other".into(), LONG).await.unwrap();
    one.put_over(&one.own_breaker("hub-1"), "a".into(), LONG).await.unwrap();
    let told = next(&mut heard).await;
    assert_eq!((told.process, told.entry.unwrap().value), (one.process(), "a".into()));
    one.put_over(&one.own_breaker("hub-1"), "b".into(), SECOND).await.unwrap();
    assert_eq!(next(&mut heard).await.entry.unwrap().value, "b");
    two.put_over(&two.own_breaker("hub-1"), "c".into(), LONG).await.unwrap();
    let told = next(&mut heard).await;
    assert_eq!((told.process, told.entry.unwrap().value), (two.process(), "c".into()));
    assert_eq!(next(&mut heard).await.entry, None, "the first one's has expired");
    let left = one.breakers("hub-1").await.unwrap();
    assert_eq!(left.iter().map(|told| &told.process).collect::<Vec<_>>(), [&two.process()]);
}
