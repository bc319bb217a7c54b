//! What the bus survives: restarts, wipes, deletions, freezes.

use crate::support::{
    LIMIT, Seen, Setup, config, connect, drained, job, raw, ready, run, run_noting,
};
use hydrant_bus::{Bus, BusError, Published, Verdict};
use hydrant_testkit::{NatsServer, until};
use std::time::{Duration, Instant};

/// Publishes until it is certain that the job is queued, as the sweep would.
async fn publish_surely(bus: &Bus, tag: &str) {
    until("a queued job", LIMIT, async || bus.publish_job(&job("lab", tag)).await.ok()).await;
}

#[tokio::test]
async fn a_server_killed_again_and_again_while_jobs_run_loses_none() {
    let mut server = NatsServer::options().durable().start().await;
    let bus = connect(&server).await;
    let seen = Seen::default();
    let noted = seen.clone();
    let running = run(&bus, "lab", Setup::default(), move |job| {
        noted.note(&job.message.reference);
        async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Verdict::Done
        }
    });
    for round in 0..3 {
        for n in 0..20 {
            publish_surely(&bus, &format!("r{round}-{n}")).await;
        }
        let before = seen.list().len();
        seen.wait("some progress", |list| list.len() > before).await;
        server.kill9();
        server.restart().await;
    }
    drained(&server).await;
    assert_eq!(seen.counts().len(), 60, "every job was handled: {:?}", seen.counts());
    running.stop().await;
}

#[tokio::test]
async fn calls_fail_at_once_while_the_server_is_down_and_work_when_it_is_back() {
    let mut server = NatsServer::start().await;
    let bus = connect(&server).await;
    server.kill9();
    let mut connected = bus.connected();
    connected.wait_for(|up| !up).await.unwrap();
    let began = Instant::now();
    let error = bus.publish_job(&job("lab", "1")).await.unwrap_err();
    assert!(matches!(error, BusError::Disconnected(_)), "{error:?}");
    assert!(began.elapsed() < Duration::from_millis(50), "{:?}", began.elapsed());
    assert!(bus.problem().is_some());
    server.restart().await;
    ready(bus.clone()).await;
    assert_eq!(bus.publish_job(&job("lab", "1")).await.unwrap(), Published::Queued);
}

#[tokio::test]
async fn everything_works_when_the_server_comes_after_the_bus() {
    let mut server = NatsServer::start().await;
    server.kill9();
    let bus = Bus::connect(config(&server)).await.unwrap();
    let seen = Seen::default();
    let running = run_noting(&bus, "lab", &seen);
    assert!(matches!(bus.publish_job(&job("lab", "1")).await, Err(BusError::Disconnected(_))));
    server.restart().await;
    ready(bus.clone()).await;
    bus.publish_job(&job("lab", "1")).await.unwrap();
    seen.wait("the job", |list| list == ["1"]).await;
    running.stop().await;
}

#[tokio::test]
async fn a_wiped_server_gets_its_streams_again_and_work_goes_on() {
    let mut server = NatsServer::start().await;
    let bus = connect(&server).await;
    let seen = Seen::default();
    let running = run_noting(&bus, "lab", &seen);
    bus.publish_job(&job("lab", "1")).await.unwrap();
    seen.wait("the first job", |list| list.len() == 1).await;
    server.kill9();
    std::fs::remove_dir_all(server.data()).unwrap();
    server.restart().await;
    publish_surely(&bus, "2").await;
    seen.wait("the job after the wipe", |list| list.contains(&"2".to_owned())).await;
    running.stop().await;
}

#[tokio::test]
async fn a_server_restored_from_an_older_copy_takes_the_same_jobs_again() {
    let mut server = NatsServer::start().await;
    let bus = connect(&server).await;
    bus.publish_job(&job("lab", "old")).await.unwrap();
    server.stop().await;
    let (data, copy) = (server.data(), tempfile::tempdir().unwrap());
    copy_directory(&data, copy.path());
    server.restart().await;
    let seen = Seen::default();
    let running = run_noting(&bus, "lab", &seen);
    publish_surely(&bus, "new").await;
    seen.wait("both jobs", |list| list.len() >= 2).await;
    drained(&server).await;
    server.kill9();
    std::fs::remove_dir_all(&data).unwrap();
    copy_directory(copy.path(), &data);
    server.restart().await;
    // The old job is back, and what was lost can be queued under its own key.
    publish_surely(&bus, "new").await;
    seen.wait("both jobs again", |list| list.iter().filter(|t| *t == "old").count() >= 2).await;
    drained(&server).await;
    assert!(seen.counts()["new"] >= 2, "{:?}", seen.counts());
    running.stop().await;
}

fn copy_directory(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_directory(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[tokio::test]
async fn deleted_streams_and_consumers_are_made_again() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let jetstream = raw(&server).await;
    let seen = Seen::default();
    let running = run_noting(&bus, "lab", &seen);
    bus.publish_job(&job("lab", "1")).await.unwrap();
    seen.wait("the first job", |list| list.len() == 1).await;

    jetstream
        .delete_consumer_from_stream("importer-interactive-lab", "HYDRANT_JOBS")
        .await
        .unwrap();
    bus.publish_job(&job("lab", "2")).await.unwrap();
    seen.wait("the job after the consumer was deleted", |list| list.len() == 2).await;

    jetstream.delete_stream("HYDRANT_JOBS").await.unwrap();
    bus.publish_job(&job("lab", "3")).await.unwrap();
    seen.wait("the job after the stream was deleted", |list| list.len() == 3).await;
    running.stop().await;
}

#[tokio::test]
async fn an_edited_stream_is_put_right_and_what_cannot_be_is_said_loudly() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let jetstream = raw(&server).await;
    let mut edited =
        jetstream.get_stream("HYDRANT_JOBS").await.unwrap().cached_info().config.clone();
    edited.discard = async_nats::jetstream::stream::DiscardPolicy::Old;
    edited.max_age = Duration::from_secs(3600);
    edited.max_messages = 77;
    jetstream.update_stream(edited).await.unwrap();
    bus.ensure_topology().await.unwrap();
    let found = jetstream.get_stream("HYDRANT_JOBS").await.unwrap().cached_info().config.clone();
    assert_eq!(found.discard, async_nats::jetstream::stream::DiscardPolicy::New);
    assert_eq!(found.max_age, Duration::ZERO);
    assert_eq!(found.max_messages, 77, "how large it may grow is the operator's");

    jetstream.delete_stream("HYDRANT_JOBS").await.unwrap();
    let wrong = async_nats::jetstream::stream::Config {
        name: "HYDRANT_JOBS".to_owned(),
        subjects: vec!["hydrate.>".to_owned()],
        storage: async_nats::jetstream::stream::StorageType::Memory,
        ..Default::default()
    };
    jetstream.create_stream(wrong).await.unwrap();
    let error = bus.ensure_topology().await.unwrap_err();
    assert!(error.to_string().contains("HYDRANT_JOBS"), "{error}");
    assert!(!*bus.connected().borrow());
    assert!(bus.problem().unwrap().contains("remove the stream"), "{:?}", bus.problem());
}

#[tokio::test]
async fn a_frozen_server_wedges_nothing() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let seen = Seen::default();
    let running = run_noting(&bus, "lab", &seen);
    bus.publish_job(&job("lab", "1")).await.unwrap();
    seen.wait("the first job", |list| list.len() == 1).await;
    server.freeze();
    let began = Instant::now();
    let error = bus.publish_job(&job("lab", "2")).await.unwrap_err();
    assert!(matches!(error, BusError::Unknown { .. }), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());
    server.thaw();
    publish_surely(&bus, "3").await;
    seen.wait("the job after the freeze", |list| list.contains(&"3".to_owned())).await;
    drained(&server).await;
    running.stop().await;
}
