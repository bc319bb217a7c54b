//! Spans reach a collector over HTTP, from a thread that knows no async runtime. One test, because
//! telemetry starts once per process.

// Test helpers fail by panicking, as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

use hydrant_telemetry::{LogFormat, TelemetryConfig, TelemetryError, init, propagation};
use hydrant_testkit::OtlpReceiver;
use std::time::Duration;

#[tokio::test]
async fn spans_of_ours_reach_the_collector_under_the_callers_trace() {
    let receiver = OtlpReceiver::start().await;
    let config = TelemetryConfig {
        service_name: "hydrant-test".to_owned(),
        log_format: LogFormat::Text,
        log_filter: "off".to_owned(),
        otlp_endpoint: Some(receiver.endpoint()),
    };
    let telemetry = init(&config).unwrap();
    assert!(matches!(init(&config), Err(TelemetryError::AlreadyStarted)));

    let trace = "0af7651916cd43dd8448eb211c80319c";
    let traced = |flags: &str| {
        let parent = format!("00-{trace}-b7ad6b7169203331-{flags}");
        let pull = tracing::info_span!(target: "hydrant_test", "pull", flags, upstream = "lab");
        propagation::set_parent(&pull, |name| (name == "traceparent").then(|| parent.clone()));
        pull.in_scope(|| {
            tracing::debug_span!(target: "hydrant_test", "fetch").in_scope(|| {});
            tracing::info_span!(target: "hyper", "connection").in_scope(|| {});
        });
    };
    traced("01");
    traced("00");
    tokio::task::spawn_blocking(move || telemetry.shutdown()).await.unwrap();

    let spans = receiver
        .wait_until("two spans", Duration::from_secs(10), |spans| {
            (spans.len() >= 2).then(|| spans.to_vec())
        })
        .await;
    let mut names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["fetch", "pull"], "neither libraries' nor unsampled ones");
    assert!(spans.iter().all(|span| span.trace_id == trace && span.service == "hydrant-test"));
    let pull = spans.iter().find(|span| span.name == "pull").unwrap();
    assert_eq!(pull.parent_span_id.as_deref(), Some("b7ad6b7169203331"));
    assert_eq!(pull.attributes["upstream"], "lab");
}
