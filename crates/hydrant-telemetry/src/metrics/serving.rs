//! The figures of the way a pull takes: server, pulls, flights, upstreams.

use super::{
    instruments::{BYTES, bytes, counter, gauge, level, seconds},
    labels::{
        BreakerState, FarOutcome, FlightPart, PullKind, PullOutcome, RequestKind, SpareReason,
    },
    readings::{Readings, Shown},
};
use crate::{
    names::{self, label},
    spans::Server,
};
use hydrant_proto::FailureClass;
use opentelemetry::{
    KeyValue,
    metrics::{Counter, Gauge, Histogram, Meter, ObservableGauge, UpDownCounter},
};
use std::{slice, time::Duration};

/// Requests to our own HTTP servers.
#[derive(Debug)]
pub struct HttpServer {
    duration: Histogram<f64>,
    active: UpDownCounter<i64>,
}

/// One request under way, until it is dropped.
#[derive(Debug)]
#[must_use = "the request counts as under way until this is dropped"]
pub struct ActiveRequest {
    active: UpDownCounter<i64>,
    method: &'static str,
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.active.add(-1, &active_labels(self.method));
    }
}

fn active_labels(method: &'static str) -> [KeyValue; 2] {
    [KeyValue::new(label::HTTP_METHOD, method), KeyValue::new(label::URL_SCHEME, "http")]
}

impl HttpServer {
    pub(super) fn new(meter: &Meter) -> Self {
        Self {
            duration: seconds(
                meter,
                names::HTTP_SERVER_DURATION,
                "Time until the last byte went out",
            ),
            active: level(meter, names::HTTP_SERVER_ACTIVE, "Requests under way"),
        }
    }

    /// `method` is ours, as of [`HttpServer::answered`].
    pub fn started(&self, method: &'static str) -> ActiveRequest {
        self.active.add(1, &active_labels(method));
        ActiveRequest { active: self.active.clone(), method }
    }

    /// `method` and `route` are ours, never text of the request: `GET`, `/v2/{name}/tags/list`.
    pub fn answered(&self, method: &'static str, route: &'static str, status: u16, took: Duration) {
        let labels = [
            KeyValue::new(label::URL_SCHEME, "http"),
            KeyValue::new(label::HTTP_METHOD, method),
            KeyValue::new(label::HTTP_ROUTE, route),
            KeyValue::new(label::HTTP_STATUS, i64::from(status)),
        ];
        if status < 500 {
            return self.duration.record(took.as_secs_f64(), &labels);
        }
        let error = KeyValue::new(label::ERROR_TYPE, status.to_string());
        let labels: Vec<_> = labels.into_iter().chain([error]).collect();
        self.duration.record(took.as_secs_f64(), &labels);
    }
}

/// Requests of ours to configured destinations: upstreams and webhooks.
#[derive(Debug)]
pub struct HttpClient {
    duration: Histogram<f64>,
}

impl HttpClient {
    pub(super) fn new(meter: &Meter) -> Self {
        let about = "Time until the response headers";
        Self { duration: seconds(meter, names::HTTP_CLIENT_DURATION, about) }
    }

    /// With a status, or a word for why there is none.
    pub(crate) fn answered(
        &self,
        method: &'static str,
        server: &Server,
        outcome: Result<u16, &'static str>,
        took: Duration,
    ) {
        let mut labels = vec![
            KeyValue::new(label::HTTP_METHOD, method),
            KeyValue::new(label::SERVER_ADDRESS, server.address.clone()),
            KeyValue::new(label::SERVER_PORT, i64::from(server.port)),
        ];
        if let Ok(status) = outcome {
            labels.push(KeyValue::new(label::HTTP_STATUS, i64::from(status)));
        }
        let error = match outcome {
            Ok(status) => (status >= 400).then(|| status.to_string()),
            Err(why) => Some(why.to_owned()),
        };
        labels.extend(error.map(|error| KeyValue::new(label::ERROR_TYPE, error)));
        self.duration.record(took.as_secs_f64(), &labels);
    }
}

/// Pulls of clients.
#[derive(Debug)]
pub struct Pulls {
    answers: Counter<u64>,
    duration: Histogram<f64>,
    served: Counter<u64>,
}

impl Pulls {
    pub(super) fn new(meter: &Meter) -> Self {
        Self {
            answers: counter(meter, names::PULLS, "Pulls by what was asked and how it was served"),
            duration: seconds(meter, names::PULL_DURATION, "Time from request to the answer's end"),
            served: bytes(meter, names::PULL_BYTES, "Bytes of content sent to clients"),
        }
    }

    /// `class` says why, when the outcome is an error or a stale answer.
    pub fn answered(
        &self,
        kind: PullKind,
        outcome: PullOutcome,
        class: Option<FailureClass>,
        took: Duration,
    ) {
        let kind = KeyValue::new(label::KIND, kind.as_str());
        let outcome = KeyValue::new(label::OUTCOME, outcome.as_str());
        self.duration.record(took.as_secs_f64(), &[kind.clone(), outcome.clone()]);
        let class = KeyValue::new(label::CLASS, class.map_or("none", FailureClass::as_str));
        self.answers.add(1, &[kind, outcome, class]);
    }

    pub fn served(&self, kind: PullKind, bytes: u64) {
        self.served.add(bytes, &[KeyValue::new(label::KIND, kind.as_str())]);
    }
}

/// Blobs being fetched.
#[derive(Debug)]
pub struct Flights {
    started: Counter<u64>,
    active: UpDownCounter<i64>,
    spool: Gauge<u64>,
    spool_limit: Gauge<u64>,
    joins: Counter<u64>,
    parts: Counter<u64>,
    far: Counter<u64>,
    far_bytes: Counter<u64>,
}

/// One flight under way, until it is dropped.
#[derive(Debug)]
#[must_use = "the flight counts as active until this is dropped"]
pub struct ActiveFlight(UpDownCounter<i64>);

impl Drop for ActiveFlight {
    fn drop(&mut self) {
        self.0.add(-1, &[]);
    }
}

impl Flights {
    pub(super) fn new(meter: &Meter) -> Self {
        Self {
            started: counter(meter, names::FLIGHTS, "Flights begun"),
            active: level(meter, names::FLIGHTS_ACTIVE, "Flights under way"),
            spool: meter
                .u64_gauge(names::FLIGHT_SPOOL)
                .with_unit(BYTES)
                .with_description("Bytes of spool files")
                .build(),
            spool_limit: meter
                .u64_gauge(names::FLIGHT_SPOOL_LIMIT)
                .with_unit(BYTES)
                .with_description("Most bytes that spool files may take")
                .build(),
            joins: counter(meter, names::FLIGHT_JOINS, "Readers that joined a flight under way"),
            parts: counter(meter, names::FLIGHT_PARTS, "Parts taken in flights, by which"),
            far: counter(meter, names::FLIGHT_FAR, "Ranges far ahead of a flight, by outcome"),
            far_bytes: bytes(
                meter,
                names::FLIGHT_FAR_BYTES,
                "Bytes fetched as ranges far ahead of a flight, which the flight fetches again",
            ),
        }
    }

    pub fn started(&self) -> ActiveFlight {
        self.started.add(1, &[]);
        self.active.add(1, &[]);
        ActiveFlight(self.active.clone())
    }

    pub fn joined(&self) {
        self.joins.add(1, &[]);
    }

    pub fn part(&self, part: FlightPart) {
        self.parts.add(1, &[KeyValue::new(label::PART, part.as_str())]);
    }

    /// A range that a client wanted long before the flight came to it.
    pub fn far(&self, outcome: FarOutcome) {
        self.far.add(1, &[KeyValue::new(label::OUTCOME, outcome.as_str())]);
    }

    /// Bytes of the upstream that its flight fetches once more.
    pub fn fetched_ahead(&self, bytes: u64) {
        self.far_bytes.add(bytes, &[]);
    }

    /// Bytes the spool files of this process take at this moment.
    pub fn spool(&self, bytes: u64) {
        self.spool.record(bytes, &[]);
    }

    pub fn spool_limit(&self, bytes: u64) {
        self.spool_limit.record(bytes, &[]);
    }
}

/// Requests to upstreams.
#[derive(Debug)]
pub struct Upstreams {
    requests: Counter<u64>,
    duration: Histogram<f64>,
    fetched: Counter<u64>,
    retries: Counter<u64>,
    breaker: Gauge<u64>,
    spared: Counter<u64>,
    quotas: Readings<QuotaLeft>,
    _quota_remaining: ObservableGauge<u64>,
    _quota_limit: ObservableGauge<u64>,
    concurrency: Gauge<u64>,
}

/// What an upstream still allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaLeft {
    pub remaining: u64,
    /// Of a whole window, if it told.
    pub limit: Option<u64>,
}

fn upstream_label(upstream: &str) -> KeyValue {
    KeyValue::new(label::UPSTREAM, upstream.to_owned())
}

fn quota_gauge(
    meter: &Meter,
    name: &'static str,
    about: &'static str,
    quotas: &Readings<QuotaLeft>,
    figure: fn(QuotaLeft) -> Option<u64>,
) -> ObservableGauge<u64> {
    let quotas = quotas.clone();
    let gauge = meter.u64_observable_gauge(name).with_description(about);
    let told = gauge.with_callback(move |gauge| {
        quotas.each(|left, label| {
            if let Some(figure) = figure(left) {
                gauge.observe(figure, slice::from_ref(label));
            }
        });
    });
    told.build()
}

impl Upstreams {
    pub(super) fn new(meter: &Meter) -> Self {
        let quotas = Readings::new();
        Self {
            requests: counter(meter, names::UPSTREAM_REQUESTS, "Requests sent to upstreams"),
            duration: seconds(meter, names::UPSTREAM_DURATION, "Time until the response headers"),
            fetched: bytes(meter, names::UPSTREAM_BYTES, "Body bytes received from upstreams"),
            retries: counter(meter, names::UPSTREAM_RETRIES, "Requests that repeat a failed one"),
            breaker: gauge(meter, names::UPSTREAM_BREAKER, "0 closed, 1 half open, 2 open"),
            spared: counter(meter, names::UPSTREAM_SPARED, "Requests not sent, by reason"),
            _quota_remaining: quota_gauge(
                meter,
                names::UPSTREAM_QUOTA_REMAINING,
                "Requests left, by the upstream's own word",
                &quotas,
                |left| Some(left.remaining),
            ),
            _quota_limit: quota_gauge(
                meter,
                names::UPSTREAM_QUOTA_LIMIT,
                "Requests of a whole window, by the upstream's own word",
                &quotas,
                |left| left.limit,
            ),
            quotas,
            concurrency: gauge(
                meter,
                names::UPSTREAM_CONCURRENCY,
                "Requests that may be under way at once from this process",
            ),
        }
    }

    /// One request was sent and answered, or failed; `took` is the time until the headers.
    pub fn answered(
        &self,
        upstream: &str,
        kind: RequestKind,
        outcome: Result<(), FailureClass>,
        took: Duration,
    ) {
        let outcome = outcome.map_or_else(FailureClass::as_str, |()| "ok");
        let labels = [
            upstream_label(upstream),
            KeyValue::new(label::KIND, kind.as_str()),
            KeyValue::new(label::OUTCOME, outcome),
        ];
        self.requests.add(1, &labels);
        self.duration.record(took.as_secs_f64(), &labels);
    }

    pub fn fetched(&self, upstream: &str, kind: RequestKind, bytes: u64) {
        self.fetched
            .add(bytes, &[upstream_label(upstream), KeyValue::new(label::KIND, kind.as_str())]);
    }

    pub fn retried(&self, upstream: &str) {
        self.retries.add(1, &[upstream_label(upstream)]);
    }

    /// A request was not sent, to spare the upstream or what it allows us.
    pub fn spared(&self, upstream: &str, reason: SpareReason) {
        let reason = KeyValue::new(label::REASON, reason.as_str());
        self.spared.add(1, &[upstream_label(upstream), reason]);
    }

    /// Shows what the upstream says is left, as `read` knows it whenever somebody looks.
    pub fn quota(
        &self,
        upstream: &str,
        read: impl Fn() -> Option<QuotaLeft> + Send + Sync + 'static,
    ) -> Shown {
        self.quotas.show(upstream_label(upstream), read)
    }

    pub fn concurrency(&self, upstream: &str, limit: u32) {
        self.concurrency.record(u64::from(limit), &[upstream_label(upstream)]);
    }

    pub fn breaker(&self, upstream: &str, state: BreakerState) {
        self.breaker.record(state.level(), &[upstream_label(upstream)]);
    }
}
