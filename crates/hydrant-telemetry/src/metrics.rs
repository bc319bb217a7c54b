//! The figures hydrant keeps about itself, one struct per room, and their exposition as text.
//!
//! They exist from the first call of [`metrics()`], with or without [`crate::init`].

mod instruments;
mod labels;
mod misses;
mod pipeline;
mod queue;
mod readings;
mod serving;
mod working;

pub use labels::{
    BreakerState, DeliveryOutcome, FarOutcome, FlightPart, JobVerdict, MissOutcome, PublishOutcome,
    PullKind, PullOutcome, RequestKind, SpareReason, StoreOperation, StoreOutcome,
};
pub use misses::Misses;
pub use queue::{LaneStock, Queue};
pub use readings::Shown;
pub use serving::{
    ActiveFlight, ActiveRequest, Flights, HttpClient, HttpServer, Pulls, QuotaLeft, Upstreams,
};
pub use working::{Bus, Config, Hydrations, Store, Webhooks};

use pipeline::Pipeline;
use std::sync::LazyLock;

static PIPELINE: LazyLock<Pipeline> = LazyLock::new(Pipeline::new);
static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics::new(&PIPELINE));

/// Every instrument of this process.
#[derive(Debug)]
pub struct Metrics {
    pub http: HttpServer,
    pub http_client: HttpClient,
    pub pulls: Pulls,
    pub misses: Misses,
    pub upstreams: Upstreams,
    pub hydrations: Hydrations,
    pub queue: Queue,
    pub flights: Flights,
    pub webhooks: Webhooks,
    pub store: Store,
    pub bus: Bus,
    pub config: Config,
}

impl Metrics {
    fn new(pipeline: &Pipeline) -> Self {
        let meter = pipeline.meter();
        Self {
            http: HttpServer::new(&meter),
            http_client: HttpClient::new(&meter),
            pulls: Pulls::new(&meter),
            misses: Misses::new(&meter),
            upstreams: Upstreams::new(&meter),
            hydrations: Hydrations::new(&meter),
            queue: Queue::new(&meter),
            flights: Flights::new(&meter),
            webhooks: Webhooks::new(&meter),
            store: Store::new(&meter),
            bus: Bus::new(&meter),
            config: Config::new(&meter),
        }
    }
}

/// The instruments of this process.
pub fn metrics() -> &'static Metrics {
    &METRICS
}

/// Everything counted so far, in the Prometheus text format (version 0.0.4).
pub fn metrics_text() -> String {
    LazyLock::force(&METRICS);
    PIPELINE.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hydrant_proto::{FailureClass, Lane};
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering::Relaxed},
        },
        time::Duration,
    };

    #[test]
    fn every_room_shows_in_the_exposition_with_bounded_labels() {
        let second = Duration::from_secs(1);
        let m = metrics();
        let _request = m.http.started("GET");
        m.http.answered("GET", "/v2/", 503, second);
        m.http.answered("GET", "/v2/{name}/manifests/{reference}", 200, second);
        m.pulls.answered(PullKind::Manifest, PullOutcome::Hit, None, second);
        m.pulls.answered(PullKind::Blob, PullOutcome::Error, Some(FailureClass::Storage), second);
        m.pulls.served(PullKind::Blob, 4096);
        m.upstreams.answered("lab", RequestKind::Manifest, Ok(()), second);
        m.upstreams.answered("lab", RequestKind::Blob, Err(FailureClass::UpstreamDown), second);
        m.upstreams.fetched("lab", RequestKind::Blob, 10);
        m.upstreams.retried("lab");
        m.upstreams.breaker("lab", BreakerState::Open);
        m.hydrations.attempted("lab");
        m.hydrations.settled("lab", JobVerdict::Done, second);
        m.hydrations.stored("lab", 10);
        m.queue.found(vec![lane(Lane::Interactive, 3, 0), lane(Lane::Background, 0, 1)]);
        m.hydrations.expect("quiet");
        m.hydrations.local_after("lab", 5_000 * second);
        let _failing = m.webhooks.failing_for("ci", move || Some(90 * second));
        let _quota =
            m.upstreams.quota("lab", || Some(QuotaLeft { remaining: 7, limit: Some(100) }));
        m.hydrations.ended("lab", JobVerdict::Done);
        m.bus.replicas_missing("HYDRANT_JOBS", 1);
        m.flights.spool_limit(9);
        m.hydrations.dead_lettered(Some(FailureClass::Integrity));
        m.flights.joined();
        m.flights.spool(7);
        m.flights.part(FlightPart::Lead);
        let active = m.flights.started();
        m.webhooks.attempted("ci", DeliveryOutcome::Delivered, second);
        m.webhooks.delivered_after("ci", second);
        m.store.done(StoreOperation::Put, StoreOutcome::Ok, second);
        m.bus.connected(true);
        m.bus.published("HYDRANT_JOBS", PublishOutcome::Sent);
        m.bus.consumed("HYDRANT_JOBS");
        m.bus.processed("HYDRANT_JOBS", JobVerdict::Later, second);
        m.config.applied(5);
        m.config.rejected();
        let text = metrics_text();
        drop(active);
        for line in [
            "hydrant_pulls_total{class=\"storage\",kind=\"blob\",outcome=\"error\"} 1",
            "hydrant_pull_served_bytes_total{kind=\"blob\"} 4096",
            "hydrant_upstream_breaker_state{upstream=\"lab\"} 2",
            "hydrant_upstream_requests_total{kind=\"blob\",outcome=\"upstream-down\",upstream=\"lab\"} 1",
            "hydrant_hydration_queue_depth{lane=\"interactive\",upstream=\"lab\"} 3",
            "hydrant_hydration_jobs_total{upstream=\"lab\",verdict=\"done\"} 1",
            "hydrant_hydration_queue_age_seconds{lane=\"background\",upstream=\"lab\"} 1",
            "hydrant_rule_hydrations_total{rule=\"lab\",verdict=\"done\"} 1",
            "hydrant_rule_hydrations_total{rule=\"quiet\",verdict=\"dead\"} 0",
            "hydrant_hydration_time_to_local_seconds_bucket{upstream=\"lab\",verdict=\"done\",le=\"14400\"} 1",
            "hydrant_webhook_failing_for_seconds{webhook=\"ci\"} 90",
            "hydrant_upstream_quota_remaining{upstream=\"lab\"} 7",
            "hydrant_upstream_quota_limit{upstream=\"lab\"} 100",
            "hydrant_bus_replicas_missing{messaging_destination_name=\"HYDRANT_JOBS\"} 1",
            "hydrant_flights_spool_limit_bytes 9",
            "hydrant_build_info{version=",
            "process_resident_memory_bytes",
            "process_open_fds",
            "hydrant_dead_letters_total{class=\"integrity\"} 1",
            "hydrant_flights_active 1",
            "hydrant_flights_spool_bytes 7",
            "hydrant_bus_connected 1",
            "hydrant_config_revision 5",
            "http_server_request_duration_seconds_bucket",
            "http_server_active_requests{http_request_method=\"GET\",url_scheme=\"http\"} 1",
            "http_server_request_duration_seconds_count{error_type=\"503\",http_request_method=",
            "messaging_client_consumed_messages_total{messaging_destination_name=\"HYDRANT_JOBS\"",
            "messaging_process_duration_seconds_count{error_type=\"later\",messaging_destination",
            "hydrant_webhook_lag_seconds_bucket",
            "hydrant_store_operation_duration_seconds_bucket",
            "messaging_client_sent_messages_total",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("otel_scope"), "{text}");
    }

    fn lane(lane: Lane, waiting: u64, seconds: u64) -> LaneStock {
        let (upstream, oldest) = ("lab".to_owned(), Duration::from_secs(seconds));
        LaneStock { upstream, lane, waiting, oldest }
    }

    #[test]
    fn what_is_not_known_any_more_is_not_told() {
        let m = metrics();
        let gone = LaneStock { upstream: "gone".to_owned(), ..lane(Lane::Background, 5, 900) };
        m.queue.found(vec![gone]);
        let known = Arc::new(AtomicBool::new(true));
        let read = Arc::clone(&known);
        let left = QuotaLeft { remaining: 1, limit: None };
        let _quota = m.upstreams.quota("gone", move || read.load(Relaxed).then_some(left));
        let failing = m.webhooks.failing_for("gone", || Some(Duration::from_secs(9)));
        let told = || metrics_text().lines().filter(|line| line.contains("\"gone\"")).count();
        assert_eq!(told(), 4, "{}", metrics_text());
        m.queue.found(Vec::new());
        known.store(false, Relaxed);
        drop(failing);
        assert_eq!(told(), 0, "{}", metrics_text());
    }

    #[test]
    fn durations_have_the_bounds_we_chose() {
        metrics().store.done(StoreOperation::Get, StoreOutcome::Missing, Duration::from_millis(3));
        let text = metrics_text();
        assert!(text.contains("outcome=\"missing\",le=\"0.005\"} 1"), "{text}");
        assert!(text.contains("outcome=\"missing\",le=\"0.0025\"} 0"), "{text}");
    }
}
