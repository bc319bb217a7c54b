//! Events: stored once, delivered to each webhook by itself, followed live, traced.

use crate::support::{ACK_WAIT, LIMIT, Seen, connect, raw};
use futures::StreamExt;
use hydrant_bus::{Bus, ConsumeOptions, Consumer, Delivery, Verdict, consume};
use hydrant_proto::{DeliveryAttempt, DeliveryOutcome, Event, EventData, EventKind};
use hydrant_testkit::{NatsServer, until};
use jiff::Timestamp;
use std::{future::Future, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

fn event(seq: u64) -> Event {
    let data = EventData { rule: Some("lab".to_owned()), seq, ..EventData::default() };
    Event::new(EventKind::ImageHydrated, Timestamp::UNIX_EPOCH, data)
}

async fn stored(server: &NatsServer) -> u64 {
    raw(server).await.get_stream("HYDRANT_EVENTS").await.unwrap().cached_info().state.messages
}

/// The consumer of one webhook, made before anything is published.
async fn attached(bus: &Bus, webhook: &str) -> Consumer<Event> {
    let mut consumer = bus.event_deliveries(webhook);
    consumer.attach().await.unwrap();
    consumer
}

fn deliver<F>(
    consumer: Consumer<Event>,
    handle: impl Fn(Delivery) -> F + Send + Sync + 'static,
) -> (CancellationToken, JoinHandle<()>)
where
    F: Future<Output = Verdict> + Send + 'static,
{
    deliver_in(4, &watch::Sender::new(false), consumer, handle)
}

fn deliver_in<F>(
    slots: usize,
    paused: &watch::Sender<bool>,
    consumer: Consumer<Event>,
    handle: impl Fn(Delivery) -> F + Send + Sync + 'static,
) -> (CancellationToken, JoinHandle<()>)
where
    F: Future<Output = Verdict> + Send + 'static,
{
    let (shutdown, paused) = (CancellationToken::new(), paused.subscribe());
    let options =
        ConsumeOptions { slots, paused, shutdown: shutdown.clone(), drain: Duration::ZERO };
    let reject = |_| async { Ok::<_, String>(()) };
    (shutdown, tokio::spawn(consume(consumer, options, handle, reject)))
}

#[tokio::test]
async fn an_event_published_twice_is_stored_once() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    for _ in 0..3 {
        bus.publish_event(&event(1)).await.unwrap();
    }
    bus.publish_event(&event(2)).await.unwrap();
    assert_eq!(stored(&server).await, 2);
    for _ in 0..2 {
        bus.publish_event(&event(1).addressed_to("ci")).await.unwrap();
    }
    assert_eq!(stored(&server).await, 4, "a repeat for one webhook is never swallowed");
}

#[tokio::test]
async fn a_webhook_that_fails_or_hangs_delays_no_other() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let (good, bad) = (attached(&bus, "good").await, attached(&bus, "bad").await);
    let (delivered, tried) = (Seen::default(), Seen::default());
    let noted = tried.clone();
    let (stop_bad, bad) = deliver(bad, move |delivery| {
        noted.note(delivery.deliveries);
        std::future::pending::<Verdict>()
    });
    for seq in 0..50 {
        bus.publish_event(&event(seq)).await.unwrap();
    }
    let noted = delivered.clone();
    let (stop_good, good) = deliver(good, move |delivery| {
        noted.note(&delivery.message.id);
        async { Verdict::Done }
    });
    delivered.wait("every event at the good webhook", |list| list.len() == 50).await;
    assert_eq!(delivered.counts().len(), 50);
    tried.wait("the bad webhook", |list| list.len() == 4).await;
    stop_good.cancel();
    stop_bad.cancel();
    good.await.unwrap();
    bad.await.unwrap();
}

#[tokio::test]
async fn a_delivery_tried_later_counts_its_deliveries_and_outlives_the_process() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let consumer = attached(&bus, "ci").await;
    let seen = Seen::default();
    let noted = seen.clone();
    let (stop, task) = deliver(consumer, move |delivery| {
        noted.note(delivery.deliveries);
        async { Verdict::Later(Duration::from_millis(100)) }
    });
    bus.publish_event(&event(1)).await.unwrap();
    seen.wait("two tries", |list| list.len() >= 2).await;
    stop.cancel();
    task.await.unwrap();
    let next = connect(&server).await;
    let noted = seen.clone();
    let (stop, task) = deliver(next.event_deliveries("ci"), move |delivery| {
        noted.note(format!("next {}", delivery.deliveries));
        async { Verdict::Done }
    });
    seen.wait("the next process", |list| list.iter().any(|s| s.starts_with("next"))).await;
    let last = seen.list().last().unwrap().clone();
    assert!(last.strip_prefix("next ").unwrap().parse::<u64>().unwrap() >= 3, "{last}");
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn a_deleted_webhook_consumer_begins_again_where_it_was() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let consumer = attached(&bus, "ci").await;
    let seen = Seen::default();
    let noted = seen.clone();
    let (stop, task) = deliver(consumer, move |delivery| {
        noted.note(delivery.message.data.seq);
        async { Verdict::Done }
    });
    bus.publish_event(&event(1)).await.unwrap();
    seen.wait("the first event", |list| list.len() == 1).await;
    let jetstream = raw(&server).await;
    jetstream.delete_consumer_from_stream("webhook-ci", "HYDRANT_EVENTS").await.unwrap();
    bus.publish_event(&event(2)).await.unwrap();
    seen.wait("the event after", |list| list.contains(&"2".to_owned())).await;
    assert_eq!(seen.list(), ["1", "2"], "what was settled is not told again");
    stop.cancel();
    task.await.unwrap();
}

/// Handlers of two processes; the first gives every event numbered 1 back for longer than it takes
/// until the server is asked again what is settled.
#[tokio::test]
async fn what_another_process_settled_is_not_told_again() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let (consumer, seen) = (attached(&bus, "ci").await, Seen::default());
    let (paused, noted) = (watch::Sender::new(false), seen.clone());
    let (stop, task) = deliver_in(1, &paused, consumer, move |delivery| {
        let seq = delivery.message.data.seq;
        noted.note(format!("here {seq}"));
        async move { if seq == 1 { Verdict::Later(ACK_WAIT * 3 / 2) } else { Verdict::Done } }
    });
    bus.publish_event(&event(1)).await.unwrap();
    seen.wait("the first event", |list| list == ["here 1"]).await;
    paused.send_replace(true);
    let noted = seen.clone();
    let (stop_other, other) = deliver(bus.event_deliveries("ci"), move |delivery| {
        noted.note(format!("there {}", delivery.message.data.seq));
        async { Verdict::Done }
    });
    seen.wait("it elsewhere", |list| list.last().is_some_and(|last| last == "there 1")).await;
    stop_other.cancel();
    other.await.unwrap();
    paused.send_replace(false);
    let expect = async |seq: u64| {
        bus.publish_event(&event(seq)).await.unwrap();
        let last = format!("here {seq}");
        seen.wait(&last, |list| list.contains(&last)).await;
    };
    expect(2).await;
    expect(3).await;
    let jetstream = raw(&server).await;
    jetstream.delete_consumer_from_stream("webhook-ci", "HYDRANT_EVENTS").await.unwrap();
    expect(4).await;
    let told = seen.list();
    assert_eq!(told.iter().filter(|event| *event == "here 1").count(), 1, "{told:?}");
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn a_webhook_hears_what_happened_since_it_was_written() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let written = bus.resources().save("webhook ci".into(), None).await.unwrap();
    let written = bus.resources().load().await.unwrap().filter(|d| d.revision == written).unwrap();
    bus.publish_event(&event(1)).await.unwrap();
    let seen = Seen::default();
    let noted = seen.clone();
    let consumer = bus.event_deliveries("ci").since(written.written_at);
    let (stop, task) = deliver(consumer, move |delivery| {
        noted.note(delivery.message.data.seq);
        async { Verdict::Done }
    });
    seen.wait("the event from before", |list| list == ["1"]).await;
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn consumers_of_removed_webhooks_go() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    for webhook in ["ci", "old"] {
        attached(&bus, webhook).await;
    }
    bus.retain_webhooks(&["ci"]).await.unwrap();
    let jetstream = raw(&server).await;
    let stream = jetstream.get_stream("HYDRANT_EVENTS").await.unwrap();
    let names: Vec<_> = stream.consumer_names().map(Result::unwrap).collect().await;
    assert_eq!(names, ["webhook-ci"]);
}

/// Hears events in a task of its own, and passes their `seq` on.
fn follow(bus: &Bus, since: Option<Timestamp>) -> mpsc::UnboundedReceiver<u64> {
    let (told, heard) = mpsc::unbounded_channel();
    let mut events = Box::pin(bus.follow_events(since));
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            if told.send(event.data.seq).is_err() {
                return;
            }
        }
    });
    heard
}

async fn next(heard: &mut mpsc::UnboundedReceiver<u64>) -> u64 {
    timeout(LIMIT, heard.recv()).await.expect("an event in time").expect("the follower goes on")
}

#[tokio::test]
async fn followers_hear_events_from_a_time_on_and_through_a_restart() {
    let mut server = NatsServer::options().durable().start().await;
    let bus = connect(&server).await;
    bus.publish_event(&event(1)).await.unwrap();
    let (mut live, mut all) = (follow(&bus, None), follow(&bus, Some(Timestamp::UNIX_EPOCH)));
    assert_eq!(next(&mut all).await, 1);
    let jetstream = raw(&server).await;
    until("both followers", LIMIT, async || {
        let stream = jetstream.get_stream("HYDRANT_EVENTS").await.ok()?;
        (stream.cached_info().state.consumer_count == 2).then_some(())
    })
    .await;
    bus.publish_event(&event(2)).await.unwrap();
    assert_eq!((next(&mut live).await, next(&mut all).await), (2, 2));
    server.kill9();
    server.restart().await;
    until("the event after the restart", LIMIT, async || bus.publish_event(&event(3)).await.ok())
        .await;
    assert_eq!((next(&mut live).await, next(&mut all).await), (3, 3));
}

#[tokio::test]
async fn the_delivery_log_is_kept_per_webhook_newest_first() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let attempt = |webhook: &str, attempt| DeliveryAttempt {
        webhook: webhook.to_owned(),
        event_id: "e".to_owned(),
        kind: EventKind::ImageHydrated,
        attempt,
        at: Timestamp::UNIX_EPOCH,
        status: Some(500),
        error: None,
        duration_ms: ACK_WAIT.as_millis() as u64,
        outcome: DeliveryOutcome::Retry { at: Timestamp::UNIX_EPOCH },
    };
    for n in 1..=5 {
        bus.log_delivery(&attempt("ci", n)).await.unwrap();
    }
    bus.log_delivery(&attempt("other", 9)).await.unwrap();
    let log = bus.delivery_log("ci", 3).await.unwrap();
    assert_eq!(log.iter().map(|a| a.attempt).collect::<Vec<_>>(), [5, 4, 3]);
    assert_eq!(bus.delivery_log("nobody", 3).await.unwrap(), []);
}
