//! A trace goes on over the bus, from the one who queued a job into its handler, and from there
//! with an event into a delivery. One test, because telemetry starts once per process.

// Test helpers fail by panicking, as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

use hydrant_bus::{Bus, BusConfig, ConsumeOptions, Consumed, Consumer, Received, Verdict, consume};
use hydrant_proto::{Event, EventData, EventKind, HydrationRequested, Lane};
use hydrant_telemetry::{LogFormat, TelemetryConfig, init, propagation::current_trace_id};
use hydrant_testkit::{NatsServer, OtlpReceiver};
use jiff::Timestamp;
use std::{future::Future, time::Duration};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

const LIMIT: Duration = Duration::from_secs(30);

async fn serve<M, F>(
    consumer: Consumer<M>,
    shutdown: CancellationToken,
    handle: impl Fn(Received<M>) -> F + Send + Sync + 'static,
) where
    M: Consumed,
    F: Future<Output = Verdict> + Send + 'static,
{
    let paused = watch::channel(false).1;
    let options = ConsumeOptions { slots: 1, paused, shutdown, drain: LIMIT };
    consume(consumer, options, handle, |_| async { Ok::<_, String>(()) }).await;
}

#[tokio::test]
async fn one_trace_from_the_miss_to_the_delivery() {
    let receiver = OtlpReceiver::start().await;
    let telemetry = init(&TelemetryConfig {
        service_name: "hydrant-test".to_owned(),
        log_format: LogFormat::Text,
        log_filter: "warn".to_owned(),
        otlp_endpoint: Some(receiver.endpoint()),
    })
    .unwrap();
    let server = NatsServer::start().await;
    let bus = Bus::connect(BusConfig::new(server.url(), "test")).await.unwrap();
    bus.connected().wait_for(|up| *up).await.unwrap();
    let (shutdown, (told, mut heard)) = (CancellationToken::new(), mpsc::unbounded_channel());
    let mut deliveries = bus.event_deliveries("ci");
    deliveries.attach().await.unwrap();

    let importer = bus.clone();
    let jobs = serve(bus.jobs("lab"), shutdown.clone(), move |_| {
        let bus = importer.clone();
        async move {
            let event =
                Event::new(EventKind::ImageHydrated, Timestamp::now(), EventData::default());
            bus.publish_event(&event).await.unwrap();
            Verdict::Done
        }
    });
    let jobs = tokio::spawn(jobs);
    let deliveries = tokio::spawn(serve(deliveries, shutdown.clone(), move |_| {
        told.send(current_trace_id()).unwrap();
        async { Verdict::Done }
    }));
    let job = HydrationRequested {
        rule: "lab".to_owned(),
        generation: "g".to_owned(),
        upstream: "lab".to_owned(),
        repository: "lab/app".parse().unwrap(),
        reference: "1".parse().unwrap(),
        lane: Lane::Interactive,
        platforms: Vec::new(),
        requested_at: Timestamp::UNIX_EPOCH,
    };
    let pull = tracing::info_span!(target: "hydrant_test", "pull");
    let trace = pull.in_scope(current_trace_id).expect("the pull has a trace");
    bus.publish_job(&job).instrument(pull).await.unwrap();

    let delivered = tokio::time::timeout(LIMIT, heard.recv()).await.unwrap().unwrap();
    assert_eq!(delivered.as_deref(), Some(trace.as_str()));
    shutdown.cancel();
    jobs.await.unwrap();
    deliveries.await.unwrap();
    tokio::task::spawn_blocking(move || telemetry.shutdown()).await.unwrap();
    let names = receiver
        .wait_until("pull, hydration, delivery", LIMIT, |spans| {
            let ours = spans.iter().filter(|span| span.trace_id == trace);
            let names: Vec<_> = ours.map(|span| span.name.clone()).collect();
            ["pull", "process HYDRANT_JOBS", "process HYDRANT_EVENTS"]
                .iter()
                .all(|name| names.iter().any(|n| n == name))
                .then_some(names)
        })
        .await;
    assert!(names.len() >= 3, "{names:?}");
}
