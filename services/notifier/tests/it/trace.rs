//! A delivery belongs to the trace its event came about in. One test, because telemetry starts
//! once per process; it passes over the spans of the tests beside it.

use crate::bench::{Bench, SOON, hydrated};
use hydrant_notifier::{Schedule, Settings};
use hydrant_telemetry::{LogFormat, TelemetryConfig, init, propagation};
use hydrant_testkit::{OtlpReceiver, Reply, WebhookSink};
use std::{collections::HashSet, time::Duration};
use tracing::Instrument as _;

#[tokio::test]
async fn one_trace_from_the_event_to_every_attempt() {
    let receiver = OtlpReceiver::start().await;
    let telemetry = init(&TelemetryConfig {
        service_name: "hydrant-notifier".to_owned(),
        log_format: LogFormat::Text,
        log_filter: "error".to_owned(),
        otlp_endpoint: Some(receiver.endpoint()),
    })
    .unwrap();
    let (bench, sink) = (Bench::start().await, WebhookSink::start().await);
    bench.webhooks(&[("ci", &sink.url(), "")]).await;
    sink.script([Reply::status(500)]);
    let schedule = Schedule::exactly([Duration::from_millis(100)]);
    let notifier = bench.notifier(Settings { schedule, ..Settings::default() }).await;
    let publish = async {
        bench.publish(&hydrated(1)).await;
        propagation::current_trace_id().unwrap()
    };
    let trace = publish.instrument(tracing::info_span!(target: "hydrant_test", "import")).await;
    let received = sink.wait_for(2, SOON).await;
    notifier.stop().await;
    tokio::task::spawn_blocking(move || telemetry.flush()).await.unwrap();

    // The attribute tells of the origin, the same each time; the header of this one hop.
    let told: HashSet<_> = received.iter().map(|r| r.json()["traceparent"].to_string()).collect();
    let sending = receiver
        .wait_until("the event to be sent", SOON, |spans| {
            let mut of_it = spans.iter().filter(|s| s.trace_id == trace);
            let sent = of_it.find(|s| s.name == "publish HYDRANT_EVENTS")?;
            Some(format!("\"00-{trace}-{}-01\"", sent.span_id))
        })
        .await;
    assert_eq!(told, HashSet::from([sending]));
    let hops: HashSet<_> = receiver
        .wait_until("both attempts", SOON, |spans| {
            let of_it = || spans.iter().filter(|s| s.trace_id == trace);
            let attempts = of_it().filter(|s| s.name == "process HYDRANT_EVENTS");
            let attempts: HashSet<_> = attempts.map(|s| Some(&s.span_id)).collect();
            // The request of each attempt.
            let asked = of_it().filter(|s| attempts.contains(&s.parent_span_id.as_ref()));
            let hops: HashSet<_> = asked.map(|s| format!("00-{trace}-{}-01", s.span_id)).collect();
            (hops.len() == 2).then_some(hops)
        })
        .await;
    let sent: HashSet<_> = received.iter().map(|r| r.header("traceparent").to_owned()).collect();
    assert_eq!(sent, hops);
}
