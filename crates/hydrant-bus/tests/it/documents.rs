//! KV: the resource document by compare-and-set, job states, watches that do not end.

use crate::support::{LIMIT, connect, job, ready};
use futures::{Stream, StreamExt};
use hydrant_bus::BusError;
use hydrant_proto::{JobPhase, JobState};
use hydrant_testkit::{NatsServer, until};
use jiff::Timestamp;

async fn next<T>(stream: &mut (impl Stream<Item = T> + Unpin)) -> T {
    tokio::time::timeout(LIMIT, stream.next()).await.expect("something in time").unwrap()
}

#[tokio::test]
async fn of_many_writers_with_the_same_revision_one_wins() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let resources = bus.resources();
    assert_eq!(resources.load().await.unwrap(), None);
    let first = resources.save("one".into(), None).await.unwrap();
    let again = resources.save("two".into(), None).await.unwrap_err();
    assert!(matches!(again, BusError::Conflict { .. }), "{again:?}");
    let writes = (0..20).map(|n| resources.save(format!("v{n}").into(), Some(first)));
    let outcomes = futures::future::join_all(writes).await;
    assert_eq!(outcomes.iter().filter(|o| o.is_ok()).count(), 1);
    let winner = outcomes.iter().position(Result::is_ok).unwrap();
    let stored = resources.load().await.unwrap().unwrap();
    assert_eq!(stored.bytes, format!("v{winner}"));
    assert!(resources.save("late".into(), Some(first)).await.is_err());
    resources.save("next".into(), Some(stored.revision)).await.unwrap();
}

#[tokio::test]
async fn a_watch_goes_through_a_restart_and_a_wipe() {
    let mut server = NatsServer::options().durable().start().await;
    let bus = connect(&server).await;
    let resources = bus.resources();
    let mut watch = Box::pin(resources.watch());
    let one = resources.save("one".into(), None).await.unwrap();
    let seen = next(&mut watch).await;
    assert_eq!((seen.bytes, seen.revision), ("one".into(), one));
    let two = resources.save("two".into(), Some(one)).await.unwrap();
    assert_eq!(next(&mut watch).await.bytes, "two");
    server.kill9();
    server.restart().await;
    ready(bus.clone()).await;
    until("a save after the restart", LIMIT, async || {
        resources.save("three".into(), Some(two)).await.ok()
    })
    .await;
    assert_eq!(next(&mut watch).await.bytes, "three");
    server.kill9();
    std::fs::remove_dir_all(server.data()).unwrap();
    server.restart().await;
    until("a save after the wipe", LIMIT, async || {
        resources.save("new life".into(), None).await.ok()
    })
    .await;
    let seen = next(&mut watch).await;
    assert_eq!(seen.bytes, "new life", "the revision went back, the document is new");
}

#[tokio::test]
async fn job_states_are_read_watched_and_listed() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let states = bus.job_states();
    let queued = JobState::queued(job("lab", "1"), Timestamp::UNIX_EPOCH);
    assert_eq!(states.get(&queued.id()).await.unwrap(), None);
    let mut watch = Box::pin(states.watch(&queued.id()));
    states.put(&queued).await.unwrap();
    assert_eq!(next(&mut watch).await, queued);
    let running = JobState {
        phase: JobPhase::Running,
        writer: "importer-1".to_owned(),
        updated_at: Timestamp::from_second(5).unwrap(),
        ..queued.clone()
    };
    states.put(&running).await.unwrap();
    assert_eq!(next(&mut watch).await, running);
    assert_eq!(states.get(&queued.id()).await.unwrap(), Some(running.clone()));
    let other = JobState::queued(job("lab", "2"), Timestamp::UNIX_EPOCH);
    states.put(&other).await.unwrap();
    assert_eq!(states.list().await.unwrap(), [running, other]);
}
