//! What arrives, how often, and what becomes of what does not.

use crate::{
    bench::{Bench, SECRET, SOON, hydrated},
    raw::{Answer, RawEndpoint},
};
use hydrant_notifier::{Limits, Schedule, Settings};
use hydrant_proto::{DeliveryOutcome, Event, EventKind, FailureClass};
use hydrant_store::{DeadLetter, DeadLetterId, GivenUp};
use hydrant_testkit::{Reply, WebhookSink, until};
use jiff::{SignedDuration, Timestamp};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

const TENTH: Duration = Duration::from_millis(100);

/// Retries follow each other at once.
fn quick() -> Settings {
    Settings { schedule: Schedule::exactly([TENTH; 20]), ..Settings::default() }
}

async fn dead_letters(bench: &Bench, count: usize) -> Vec<DeadLetter> {
    until(&format!("{count} dead letters"), SOON, async || {
        let letters = bench.store.dead_letters(None, 1_000).await.ok()?.items;
        (letters.len() >= count).then_some(letters)
    })
    .await
}

/// Why the shared resources say the webhook is off.
async fn disabled(bench: &Bench, webhook: &str) -> String {
    until("the webhook being disabled", SOON, async || {
        let (resources, _) = bench.editor.read().await.ok()?;
        resources.webhook.into_iter().find(|found| found.name.as_str() == webhook)?.disabled
    })
    .await
}

#[tokio::test]
async fn an_event_arrives_once_with_a_signature_that_the_reference_library_accepts() {
    let (bench, sink) = (Bench::start().await, WebhookSink::start().await);
    bench.webhooks(&[("ci", &sink.url(), "")]).await;
    let notifier = bench.notifier(quick()).await;
    let event = hydrated(1);
    bench.publish(&event).await;
    bench.publish(&event).await;
    let log = bench.log("ci", 1).await;
    assert_eq!((log[0].status, log[0].attempt, &log[0].error), (Some(200), 1, &None));
    assert_eq!(log[0].outcome, DeliveryOutcome::Delivered);

    bench.publish(&hydrated(2)).await;
    let received = sink.wait_for(2, SOON).await;
    assert_eq!(received.len(), 2);
    let first = &received[0];
    let reference = standardwebhooks::Webhook::new(SECRET).unwrap();
    reference.verify(&first.body, &first.headers).unwrap();
    hydrant_notifier::verify(SECRET, &first.headers, &first.body).unwrap();
    assert_eq!(first.method, "POST");
    assert_eq!(first.header("content-type"), "application/cloudevents+json; charset=utf-8");
    assert_eq!((first.id(), first.kind().as_str()), (event.id.as_str(), "image.hydrated"));
    assert_eq!(first.json()["id"], event.id.as_str());
    assert_eq!(first.json()["subject"], "lab/app:1");
    notifier.stop().await;
}

#[tokio::test]
async fn how_long_an_endpoint_fails_is_shown_until_it_is_well_or_off() {
    let (bench, sink) = (Bench::start().await, WebhookSink::start().await);
    bench.webhooks(&[("failing", &sink.url(), "")]).await;
    sink.script([Reply::status(500), Reply::status(200), Reply::status(500)]);
    let schedule = Schedule::exactly([20 * TENTH; 5]);
    let _notifier = bench.notifier(Settings { schedule, ..Settings::default() }).await;
    let shown = || {
        let text = hydrant_telemetry::metrics_text();
        let series = "hydrant_webhook_failing_for_seconds{webhook=\"failing\"} ";
        let line = text.lines().find_map(|line| line.strip_prefix(series))?;
        Some(line.parse::<f64>().unwrap())
    };
    let is = |time: f64| async move { until_shown(shown, |shown| shown == Some(time)).await };
    is(0.0).await;
    bench.publish(&hydrated(1)).await;
    bench.log("failing", 1).await;
    until_shown(shown, |shown| shown > Some(0.1)).await;
    bench.log("failing", 2).await;
    is(0.0).await;
    bench.publish(&hydrated(2)).await;
    bench.log("failing", 3).await;
    until_shown(shown, |shown| shown > Some(0.1)).await;
    bench.webhooks(&[("failing", &sink.url(), "disabled = 'enough'")]).await;
    until_shown(shown, |shown| shown.is_none()).await;
}

async fn until_shown(shown: impl Fn() -> Option<f64>, wanted: impl Fn(Option<f64>) -> bool) {
    until("the figure", SOON, async || wanted(shown()).then_some(())).await;
}

#[tokio::test]
async fn failures_are_tried_again_with_the_same_id_and_body() {
    let (bench, sink) = (Bench::start().await, WebhookSink::start().await);
    bench.webhooks(&[("ci", &sink.url(), "")]).await;
    sink.script([Reply::status(500), Reply::close(), Reply::hang(), Reply::status(404)]);
    let limits = Limits { total: 3 * TENTH, ..Limits::default() };
    let _notifier = bench.notifier(Settings { limits, ..quick() }).await;
    bench.publish(&hydrated(1)).await;
    let log = bench.log("ci", 5).await;
    let statuses: Vec<_> = log.iter().map(|attempt| attempt.status).collect();
    assert_eq!(statuses, [Some(500), None, None, Some(404), Some(200)]);
    assert!(log[2].error.as_ref().unwrap().contains("no answer within 0.3 s"), "{log:?}");
    let attempts: Vec<_> = log.iter().map(|attempt| attempt.attempt).collect();
    assert_eq!(attempts, [1, 2, 3, 4, 5]);
    let received = sink.received();
    assert!(received.iter().all(|r| (r.id(), &r.body) == (received[0].id(), &received[0].body)));
}

#[tokio::test]
async fn a_redirect_is_a_failure_and_never_followed() {
    let (bench, sink) = (Bench::start().await, WebhookSink::start().await);
    let elsewhere = WebhookSink::start().await;
    bench.webhooks(&[("ci", &sink.url(), "")]).await;
    sink.script([Reply::redirect(&elsewhere.url())]);
    let _notifier = bench.notifier(quick()).await;
    bench.publish(&hydrated(1)).await;
    let log = bench.log("ci", 2).await;
    assert_eq!((log[0].status, log[1].status), (Some(302), Some(200)));
    assert!(log[0].error.as_ref().unwrap().contains("not followed"));
    assert!(elsewhere.received().is_empty());
}

#[tokio::test]
async fn retry_after_is_obeyed() {
    let (bench, sink) = (Bench::start().await, WebhookSink::start().await);
    bench.webhooks(&[("ci", &sink.url(), "")]).await;
    sink.script([Reply::status(429).header("retry-after", "2")]);
    let _notifier = bench.notifier(quick()).await;
    bench.publish(&hydrated(1)).await;
    let received = sink.wait_for(2, SOON).await;
    assert!(received[1].at - received[0].at >= Duration::from_secs(2));
}

#[tokio::test]
async fn a_410_disables_the_webhook_and_says_why() {
    let (bench, sink) = (Bench::start().await, WebhookSink::start().await);
    sink.usually(Reply::status(410));
    bench.webhooks(&[("ci", &sink.url(), "")]).await;
    let notifier = bench.notifier(quick()).await;
    bench.publish(&hydrated(1)).await;
    let reason = disabled(&bench, "ci").await;
    assert!(reason.contains("410 Gone"), "{reason}");
    let letters = dead_letters(&bench, 1).await;
    assert_eq!((letters[0].class, letters[0].attempts), (Some(FailureClass::Denied), 1));
    assert!(letters[0].reason.contains("410"), "{}", letters[0].reason);

    // Also before this process has seen its own change, nothing more is sent.
    bench.publish(&hydrated(2)).await;
    sink.usually(Reply::status(200));
    notifier.stop().await;
    assert_eq!(sink.received().len(), 1);
}

#[tokio::test]
async fn an_endpoint_that_only_fails_is_disabled_in_the_end() {
    let (bench, sink) = (Bench::start().await, WebhookSink::start().await);
    bench.webhooks(&[("ci", &sink.url(), "")]).await;
    sink.usually(Reply::status(503));
    let patience = SignedDuration::from_millis(250);
    let _notifier = bench.notifier(Settings { patience, ..quick() }).await;
    bench.publish(&hydrated(1)).await;
    let reason = disabled(&bench, "ci").await;
    assert!(reason.contains("every delivery has failed since"), "{reason}");
}

#[tokio::test]
async fn an_exhausted_schedule_ends_in_a_dead_letter() {
    let (bench, sink) = (Bench::start().await, WebhookSink::start().await);
    bench.webhooks(&[("ci", &sink.url(), "")]).await;
    sink.usually(Reply::status(500));
    let schedule = Schedule::exactly([TENTH; 2]);
    let _notifier = bench.notifier(Settings { schedule, ..Settings::default() }).await;
    let event = hydrated(1);
    bench.publish(&event).await;
    let letter = dead_letters(&bench, 1).await.remove(0);
    assert_eq!(letter.id, DeadLetterId::of_delivery("ci", &event.id));
    assert_eq!(letter.given_up, GivenUp::Delivery { webhook: "ci".into(), event });
    assert_eq!((letter.attempts, letter.class), (3, Some(FailureClass::UpstreamDown)));
    assert!(letter.reason.contains("500"), "{}", letter.reason);
    let log = bench.log("ci", 3).await;
    assert_eq!(log[2].outcome, DeliveryOutcome::DeadLettered);

    // It has left the bus: the next event is the next request.
    sink.usually(Reply::status(200));
    bench.publish(&hydrated(2)).await;
    let received = sink.wait_for(4, SOON).await;
    assert_eq!(received[3].id(), hydrated(2).id);
    assert_eq!(bench.log("ci", 4).await.len(), 4);
}

#[tokio::test]
async fn killed_after_the_200_the_next_one_sends_the_same_id_again() {
    let bench = Bench::start().await;
    let endpoint = RawEndpoint::start(Answer::OkWithoutItsBody).await;
    bench.webhooks(&[("ci", &endpoint.url(), "")]).await;
    let notifier = bench.notifier(quick()).await;
    let event = hydrated(1);
    bench.publish(&event).await;
    until("the first request", SOON, async || (endpoint.ids().len() == 1).then_some(())).await;
    notifier.crash().await;

    let _notifier = bench.notifier(quick()).await;
    until("the second request", SOON, async || (endpoint.ids().len() == 2).then_some(())).await;
    assert_eq!(endpoint.ids(), [event.id.as_str(), event.id.as_str()]);
    assert_eq!(bench.log("ci", 1).await[0].attempt, 1, "nobody saw the other fail");
}

#[tokio::test]
async fn a_restart_keeps_the_count_and_the_time_of_attempts() {
    let (bench, sink) = (Bench::start().await, WebhookSink::start().await);
    bench.webhooks(&[("ci", &sink.url(), "")]).await;
    sink.script([Reply::status(500)]);
    let pause = Duration::from_secs(3);
    let settings = Settings { schedule: Schedule::exactly([pause]), ..Settings::default() };
    let notifier = bench.notifier(settings.clone()).await;
    bench.publish(&hydrated(1)).await;
    bench.log("ci", 1).await;
    notifier.stop().await;
    let _notifier = bench.notifier(settings).await;
    let received = sink.wait_for(2, SOON).await;
    assert!(received[1].at - received[0].at >= pause, "the pause was cut short");
    assert_eq!(bench.log("ci", 2).await[1].attempt, 2);
}

/// As when a process stops with deliveries it has not begun, or has them while it is paused.
#[tokio::test]
async fn what_is_given_back_unhandled_uses_up_no_attempt() {
    let (bench, sink) = (Bench::start().await, WebhookSink::start().await);
    bench.webhooks(&[("ci", &sink.url(), "")]).await;
    sink.usually(Reply::status(500));
    let schedule = Schedule::exactly([TENTH; 2]);
    bench.given_back("ci", &hydrated(1), 5).await;
    let _notifier = bench.notifier(Settings { schedule, ..Settings::default() }).await;
    let letter = dead_letters(&bench, 1).await.remove(0);
    assert_eq!(letter.attempts, 3);
    let log = bench.log("ci", 3).await;
    assert_eq!(log.iter().map(|attempt| attempt.attempt).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(sink.received().len(), 3);
}

#[tokio::test]
async fn a_response_without_end_is_cut_and_counts_by_its_status() {
    let bench = Bench::start().await;
    let endpoint = RawEndpoint::start(Answer::OkWithoutEnd).await;
    bench.webhooks(&[("ci", &endpoint.url(), "")]).await;
    let _notifier = bench.notifier(quick()).await;
    let began = Instant::now();
    bench.publish(&hydrated(1)).await;
    assert_eq!(bench.log("ci", 1).await[0].outcome, DeliveryOutcome::Delivered);
    until("the connection being cut", SOON, async || (endpoint.closed() == 1).then_some(())).await;
    assert!(began.elapsed() < Limits::default().total);
    // Socket buffers on both sides take some megabytes before a writer notices.
    assert!(endpoint.body_bytes() < 32 * 1024 * 1024, "{} bytes", endpoint.body_bytes());
}

#[tokio::test]
async fn a_hanging_endpoint_delays_no_other() {
    let bench = Bench::start().await;
    let (hanging, healthy) = (WebhookSink::start().await, WebhookSink::start().await);
    hanging.usually(Reply::hang());
    bench.webhooks(&[("hanging", &hanging.url(), ""), ("healthy", &healthy.url(), "")]).await;
    let limits = Limits { total: Duration::from_secs(600), ..Limits::default() };
    let _notifier = bench.notifier(Settings { limits, ..quick() }).await;
    let burst: Vec<_> = (0..10_000).map(hydrated).collect();
    bench.publish_all(&burst).await;
    healthy.wait_for(burst.len(), Duration::from_secs(120)).await;

    let mut published = HashMap::new();
    for number in 0..200 {
        let event = hydrated(20_000 + number);
        published.insert(event.id.clone(), Instant::now());
        bench.publish(&event).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let received = healthy.wait_for(burst.len() + published.len(), Duration::from_secs(60)).await;
    let mut lags: Vec<_> =
        received.iter().filter_map(|r| Some(r.at - *published.get(r.id())?)).collect();
    lags.sort();
    let p99 = lags[lags.len() * 99 / 100];
    assert!(p99 < Duration::from_secs(1), "p99 {p99:?}, max {:?}", lags.last());
    let under_way = hanging.received().len();
    assert_eq!(under_way, Settings::default().concurrency, "bounded, and no more than that");
}

#[tokio::test]
async fn filters_and_addresses_decide_who_hears_what() {
    let bench = Bench::start().await;
    let (all, failures, other) =
        (WebhookSink::start().await, WebhookSink::start().await, WebhookSink::start().await);
    bench
        .webhooks(&[
            ("all", &all.url(), ""),
            ("failures", &failures.url(), "events = ['hydration.*']"),
            ("other", &other.url(), "repositories = ['other/*']"),
        ])
        .await;
    let _notifier = bench.notifier(quick()).await;
    let failed = Event::new(EventKind::HydrationFailed, Timestamp::now(), hydrated(1).data);
    let test = Event::test("other", Timestamp::now());
    for event in [&hydrated(1), &failed, &test] {
        bench.publish(event).await;
    }
    let last = Event::new(EventKind::HydrationFailed, Timestamp::now(), {
        let mut data = hydrated(2).data;
        data.repository = Some("other/app".parse().unwrap());
        data
    });
    bench.publish(&last).await;
    for (sink, expected) in [
        (&all, vec![&hydrated(1).id, &failed.id, &last.id]),
        (&failures, vec![&failed.id, &last.id]),
        (&other, vec![&test.id, &last.id]),
    ] {
        let received = sink.wait_for(expected.len(), SOON).await;
        let mut ids: Vec<_> = received.iter().map(|r| r.id().to_owned()).collect();
        let mut expected: Vec<_> = expected.into_iter().cloned().collect();
        ids.sort();
        expected.sort();
        assert_eq!(ids, expected);
    }
}

#[tokio::test]
async fn webhooks_are_added_changed_and_disabled_while_running() {
    let bench = Bench::start().await;
    let (old, new) = (WebhookSink::start().await, WebhookSink::start().await);
    let _notifier = bench.notifier(quick()).await;
    let arrives = async |sink: &WebhookSink, numbers: std::ops::Range<u64>| {
        let before = sink.received().len();
        // The change takes effect in its own time, so events are sent until one arrives.
        let mut numbers = numbers;
        until("an event at the endpoint", SOON, async || {
            bench.publish(&hydrated(numbers.next().expect("it takes effect before"))).await;
            tokio::time::sleep(TENTH / 2).await;
            (sink.received().len() > before).then_some(())
        })
        .await;
    };
    bench.webhooks(&[("ci", &old.url(), "")]).await;
    arrives(&old, 0..1_000).await;
    bench.webhooks(&[("ci", &new.url(), "")]).await;
    arrives(&new, 1_000..2_000).await;

    bench.webhooks(&[("ci", &new.url(), "disabled = 'for now'"), ("canary", &old.url(), "")]).await;
    arrives(&old, 2_000..3_000).await;
    let before = new.received().len();
    bench.publish(&hydrated(4_000)).await;
    old.wait_for_one("of the canary", SOON, |r| r.id() == hydrated(4_000).id).await;
    assert_eq!(new.received().len(), before);

    // What it missed meanwhile is told once it is enabled again.
    bench.webhooks(&[("ci", &new.url(), "")]).await;
    new.wait_for_one("that was missed", SOON, |r| r.id() == hydrated(4_000).id).await;
}

#[tokio::test]
async fn a_stop_finishes_what_is_under_way() {
    let (bench, sink) = (Bench::start().await, WebhookSink::start().await);
    bench.webhooks(&[("ci", &sink.url(), "")]).await;
    sink.usually(Reply::status(200).after(Duration::from_secs(1)));
    let notifier = bench.notifier(quick()).await;
    bench.publish(&hydrated(1)).await;
    sink.wait_for(1, SOON).await;
    notifier.stop().await;
    let log = bench.log("ci", 1).await;
    assert_eq!((log[0].outcome, log[0].attempt), (DeliveryOutcome::Delivered, 1));
    let _notifier = bench.notifier(quick()).await;
    bench.publish(&hydrated(2)).await;
    bench.log("ci", 2).await;
    assert_eq!(sink.received().len(), 2);
}

#[tokio::test]
async fn tls_that_fails_is_never_replaced_by_plain_http() {
    let (bench, sink) = (Bench::start().await, WebhookSink::start().await);
    let https = sink.url().replace("http://", "https://");
    bench.webhooks(&[("ci", &https, "")]).await;
    let _notifier = bench.notifier(quick()).await;
    bench.publish(&hydrated(1)).await;
    let log = bench.log("ci", 2).await;
    assert!(log.iter().all(|attempt| attempt.status.is_none()), "{log:?}");
    assert!(matches!(log[0].outcome, DeliveryOutcome::Retry { .. }));
    assert!(sink.received().is_empty());
}

#[tokio::test]
async fn a_secret_that_is_weak_or_gone_is_told_and_not_sent() {
    let (bench, sink) = (Bench::start().await, WebhookSink::start().await);
    bench.webhooks(&[("ci", &sink.url(), "")]).await;
    std::fs::write(bench.directory().join("secret"), "hunter22").unwrap();
    let _notifier = bench.notifier(quick()).await;
    bench.publish(&hydrated(1)).await;
    let log = bench.log("ci", 1).await;
    let error = log[0].error.as_ref().unwrap();
    assert!(error.contains("openssl rand -base64 32") && !error.contains("hunter22"), "{error}");
    std::fs::write(bench.directory().join("secret"), SECRET).unwrap();
    let received = sink.wait_for(1, SOON).await;
    hydrant_notifier::verify(SECRET, &received[0].headers, &received[0].body).unwrap();
}

#[tokio::test]
async fn deliveries_go_on_after_the_bus_was_away() {
    let (mut bench, sink) = (Bench::start().await, WebhookSink::start().await);
    bench.webhooks(&[("ci", &sink.url(), "")]).await;
    let _notifier = bench.notifier(quick()).await;
    bench.publish(&hydrated(1)).await;
    sink.wait_for(1, SOON).await;
    bench.nats.stop().await;
    bench.nats.restart().await;
    bench.bus.connected().wait_for(|connected| *connected).await.unwrap();
    bench.publish(&hydrated(2)).await;
    sink.wait_for_one("after the restart", SOON, |r| r.id() == hydrated(2).id).await;
}
