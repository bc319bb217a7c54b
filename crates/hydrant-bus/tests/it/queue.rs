//! The work queue: one outstanding job per key, and honest answers about what was queued.

use crate::support::{LIMIT, Seen, connect, drained, job, queued, raw, run_noting};
use hydrant_bus::{Bus, BusConfig, BusError, Published, Retry};
use hydrant_proto::{HydrationRequested, Lane};
use hydrant_testkit::{Flow, NatsServer, Proxy, until};

#[tokio::test]
async fn the_same_job_twice_is_one_outstanding() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let first = job("lab", "1");
    assert_eq!(bus.publish_job(&first).await.unwrap(), Published::Queued);
    assert_eq!(bus.publish_job(&first).await.unwrap(), Published::AlreadyQueued);
    assert_eq!(bus.publish_job(&job("lab", "2")).await.unwrap(), Published::Queued);
    assert_eq!(queued(&raw(&server).await).await, 2);
}

#[tokio::test]
async fn a_hundred_publishers_of_one_job_queue_it_once() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let job = job("lab", "1");
    let publishes = (0..100).map(|_| bus.publish_job(&job));
    let outcomes = futures::future::try_join_all(publishes).await.unwrap();
    assert_eq!(outcomes.iter().filter(|o| **o == Published::Queued).count(), 1);
}

#[tokio::test]
async fn a_job_queued_again_right_after_it_was_settled_runs_again() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let seen = Seen::default();
    let running = run_noting(&bus, "lab", &seen);
    for round in 1..=20 {
        assert_eq!(bus.publish_job(&job("lab", "1")).await.unwrap(), Published::Queued);
        seen.wait("the job", |list| list.len() == round).await;
        drained(&server).await;
    }
    running.stop().await;
}

#[tokio::test]
async fn a_full_stream_is_told_from_a_queued_job_and_nothing_is_lost() {
    let server = NatsServer::start().await;
    let config = BusConfig { max_jobs: 3, ..crate::support::config(&server) };
    let bus = crate::support::ready(Bus::connect(config).await.unwrap()).await;
    for tag in ["1", "2", "3"] {
        assert_eq!(bus.publish_job(&job("lab", tag)).await.unwrap(), Published::Queued);
    }
    let full = bus.publish_job(&job("lab", "4")).await.unwrap_err();
    assert!(matches!(full, BusError::Full { .. }), "{full:?}");
    assert_eq!(bus.publish_job(&job("lab", "1")).await.unwrap(), Published::AlreadyQueued);
    let seen = Seen::default();
    let running = run_noting(&bus, "lab", &seen);
    drained(&server).await;
    assert_eq!(bus.publish_job(&job("lab", "4")).await.unwrap(), Published::Queued);
    seen.wait("the fourth", |list| list.len() == 4).await;
    running.stop().await;
}

#[tokio::test]
async fn names_that_are_not_one_word_are_refused() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    for upstream in ["", "*", ">", "a.b", "a b", "a\r\nb"] {
        let bad = HydrationRequested { upstream: upstream.to_owned(), ..job("lab", "1") };
        let error = bus.publish_job(&bad).await.unwrap_err();
        assert!(matches!(error, BusError::Refused { .. }), "{upstream:?}: {error:?}");
    }
}

#[tokio::test]
async fn depth_is_known_per_upstream_and_lane_and_goes_with_the_upstream() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    for upstream in ["lab", "hub"] {
        bus.jobs(upstream).attach().await.unwrap();
    }
    for tag in ["1", "2"] {
        let background = HydrationRequested { lane: Lane::Background, ..job("lab", tag) };
        bus.publish_job(&background).await.unwrap();
    }
    bus.publish_job(&job("hub", "1")).await.unwrap();
    // The server counts what is pending a moment after it acknowledged the publish.
    let expected =
        [("hub".to_owned(), Lane::Interactive, 1), ("lab".to_owned(), Lane::Background, 2)];
    until("the depths", LIMIT, async || {
        let mut waiting: Vec<_> = bus.queue_depth().await.ok()?;
        waiting.retain(|depth| depth.waiting > 0);
        waiting.sort_by(|a, b| a.upstream.cmp(&b.upstream));
        let shown = waiting.into_iter().map(|d| (d.upstream, d.lane, d.waiting));
        shown.eq(expected.clone()).then_some(())
    })
    .await;

    bus.retain_upstreams(&["hub"]).await.unwrap();
    assert_eq!(queued(&raw(&server).await).await, 1);
    let left = bus.queue_depth().await.unwrap();
    assert!(left.iter().all(|depth| depth.upstream == "hub"), "{left:?}");
}

#[tokio::test]
async fn a_lost_answer_leaves_the_outcome_unknown_and_asking_again_is_harmless() {
    let server = NatsServer::start().await;
    let proxy = Proxy::start(&format!("127.0.0.1:{}", server.port())).await;
    let url = format!("nats://{}", proxy.host());
    let config = BusConfig { url, ..crate::support::config(&server) };
    let bus = crate::support::ready(Bus::connect(config).await.unwrap()).await;
    proxy.flow(Flow::LoseAnswers);
    let outcome = bus.publish_job(&job("lab", "1")).await.unwrap_err();
    assert!(matches!(outcome, BusError::Unknown { .. }), "{outcome:?}");
    assert_eq!(outcome.retry(), Retry::ReadBack);
    proxy.flow(Flow::Pass);
    let again = until("an answer", LIMIT, async || bus.publish_job(&job("lab", "1")).await.ok());
    assert_eq!(again.await, Published::AlreadyQueued, "the first had arrived");
    assert_eq!(queued(&raw(&server).await).await, 1);
}
