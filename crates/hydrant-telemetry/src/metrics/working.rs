//! The figures of the work behind a pull: hydration, webhooks, store, bus, configuration.

use super::{
    instruments::{bytes, counter, gauge, seconds},
    labels::{DeliveryOutcome, JobVerdict, PublishOutcome, StoreOperation, StoreOutcome},
    readings::{Readings, Shown},
};
use crate::names::{self, label};
use hydrant_proto::FailureClass;
use opentelemetry::{
    KeyValue,
    metrics::{Counter, Gauge, Histogram, Meter, ObservableGauge},
};
use std::{slice, time::Duration};

/// Jobs. The consume loop of `hydrant-bus` records attempts and verdicts itself.
#[derive(Debug)]
pub struct Hydrations {
    jobs: Counter<u64>,
    duration: Histogram<f64>,
    attempts: Counter<u64>,
    stored: Counter<u64>,
    time_to_local: Histogram<f64>,
    of_rules: Counter<u64>,
    dead_letters: Counter<u64>,
}

impl Hydrations {
    /// Counters that alerts watch begin at 0: from nothing to 1 is no increase to Prometheus.
    pub(super) fn new(meter: &Meter) -> Self {
        let hydrations = Self {
            jobs: counter(meter, names::HYDRATION_JOBS, "Deliveries of jobs by verdict"),
            duration: seconds(meter, names::HYDRATION_DURATION, "Time from delivery to verdict"),
            attempts: counter(meter, names::HYDRATION_ATTEMPTS, "Deliveries of jobs to a handler"),
            stored: bytes(meter, names::HYDRATION_BYTES, "Bytes made durable by hydration"),
            time_to_local: seconds(
                meter,
                names::HYDRATION_TIME_TO_LOCAL,
                "Time from the first request of an image until it is local",
            ),
            of_rules: counter(meter, names::RULE_HYDRATIONS, "Hydrations ended, by rule"),
            dead_letters: counter(meter, names::DEAD_LETTERS, "Dead letters written"),
        };
        for class in FailureClass::ALL.into_iter().map(Some).chain([None]) {
            hydrations.dead_letters.add(0, &[class_label(class)]);
        }
        hydrations
    }

    pub fn attempted(&self, upstream: &str) {
        self.attempts.add(1, &[KeyValue::new(label::UPSTREAM, upstream.to_owned())]);
    }

    pub fn settled(&self, upstream: &str, verdict: JobVerdict, took: Duration) {
        let labels = [
            KeyValue::new(label::UPSTREAM, upstream.to_owned()),
            KeyValue::new(label::VERDICT, verdict.as_str()),
        ];
        self.jobs.add(1, &labels);
        self.duration.record(took.as_secs_f64(), &labels);
    }

    pub fn stored(&self, upstream: &str, bytes: u64) {
        self.stored.add(bytes, &[KeyValue::new(label::UPSTREAM, upstream.to_owned())]);
    }

    /// An image is local that was asked for so long ago, all attempts and waits included.
    pub fn local_after(&self, upstream: &str, took: Duration) {
        let labels = [
            KeyValue::new(label::UPSTREAM, upstream.to_owned()),
            KeyValue::new(label::VERDICT, JobVerdict::Done.as_str()),
        ];
        self.time_to_local.record(took.as_secs_f64(), &labels);
    }

    /// A hydration of this rule is over: `Done` or `Dead`. Rules are configured and at most 2,000;
    /// past the bound of OpenTelemetry the rest is counted as one.
    pub fn ended(&self, rule: &str, verdict: JobVerdict) {
        self.of_rules.add(1, &rule_labels(rule, verdict));
    }

    /// Begins the figures of a rule at 0, for the alert that watches their increase.
    pub fn expect(&self, rule: &str) {
        for verdict in [JobVerdict::Done, JobVerdict::Dead] {
            self.of_rules.add(0, &rule_labels(rule, verdict));
        }
    }

    /// For whoever writes the dead letter; a malformed message has no class.
    pub fn dead_lettered(&self, class: Option<FailureClass>) {
        self.dead_letters.add(1, &[class_label(class)]);
    }
}

fn class_label(class: Option<FailureClass>) -> KeyValue {
    KeyValue::new(label::CLASS, class.map_or("malformed", FailureClass::as_str))
}

fn rule_labels(rule: &str, verdict: JobVerdict) -> [KeyValue; 2] {
    [KeyValue::new(label::RULE, rule.to_owned()), KeyValue::new(label::VERDICT, verdict.as_str())]
}

/// Deliveries to webhooks.
#[derive(Debug)]
pub struct Webhooks {
    deliveries: Counter<u64>,
    duration: Histogram<f64>,
    lag: Histogram<f64>,
    failing: Readings<Duration>,
    _failing_for: ObservableGauge<f64>,
}

impl Webhooks {
    pub(super) fn new(meter: &Meter) -> Self {
        let failing = Readings::<Duration>::new();
        let read = failing.clone();
        let failing_for = meter
            .f64_observable_gauge(names::WEBHOOK_FAILING_FOR)
            .with_unit("s")
            .with_description("Time since the first failure after the last success; 0 while well")
            .with_callback(move |gauge| {
                read.each(|time, label| gauge.observe(time.as_secs_f64(), slice::from_ref(label)));
            })
            .build();
        Self {
            failing,
            _failing_for: failing_for,
            deliveries: counter(meter, names::WEBHOOK_DELIVERIES, "Attempts by outcome"),
            duration: seconds(meter, names::WEBHOOK_DURATION, "Time an endpoint took to answer"),
            lag: seconds(meter, names::WEBHOOK_LAG, "Time from the event to its delivery"),
        }
    }

    pub fn attempted(&self, webhook: &str, outcome: DeliveryOutcome, took: Duration) {
        let labels = [
            KeyValue::new(label::WEBHOOK, webhook.to_owned()),
            KeyValue::new(label::OUTCOME, outcome.as_str()),
        ];
        self.deliveries.add(1, &labels);
        self.duration.record(took.as_secs_f64(), &labels);
    }

    /// Shows how long an endpoint has failed at everything, as `read` knows it whenever somebody
    /// looks; `None` for one that is not served.
    pub fn failing_for(
        &self,
        webhook: &str,
        read: impl Fn() -> Option<Duration> + Send + Sync + 'static,
    ) -> Shown {
        self.failing.show(KeyValue::new(label::WEBHOOK, webhook.to_owned()), read)
    }

    pub fn delivered_after(&self, webhook: &str, lag: Duration) {
        self.lag.record(lag.as_secs_f64(), &[KeyValue::new(label::WEBHOOK, webhook.to_owned())]);
    }
}

/// Requests to the object store.
#[derive(Debug)]
pub struct Store {
    operations: Counter<u64>,
    duration: Histogram<f64>,
}

impl Store {
    pub(super) fn new(meter: &Meter) -> Self {
        let operations = counter(meter, names::STORE_OPERATIONS, "Storage operations by outcome");
        operations.add(0, &store_labels(StoreOperation::Get, StoreOutcome::Corrupt));
        let duration = seconds(meter, names::STORE_DURATION, "Time a storage operation took");
        Self { operations, duration }
    }

    /// Content was found that is not what its key says. A finding and no request of its own: those
    /// that read the content were counted as they were answered.
    pub fn found_corrupt(&self) {
        self.operations.add(1, &store_labels(StoreOperation::Get, StoreOutcome::Corrupt));
    }

    pub fn done(&self, operation: StoreOperation, outcome: StoreOutcome, took: Duration) {
        let labels = store_labels(operation, outcome);
        self.operations.add(1, &labels);
        self.duration.record(took.as_secs_f64(), &labels);
    }
}

fn store_labels(operation: StoreOperation, outcome: StoreOutcome) -> [KeyValue; 2] {
    [
        KeyValue::new(label::OPERATION, operation.as_str()),
        KeyValue::new(label::OUTCOME, outcome.as_str()),
    ]
}

/// The connection to NATS and what is published on it; recorded by `hydrant-bus`.
#[derive(Debug)]
pub struct Bus {
    connected: Gauge<u64>,
    missing: Gauge<u64>,
    sent: Counter<u64>,
    consumed: Counter<u64>,
    process: Histogram<f64>,
}

impl Bus {
    pub(super) fn new(meter: &Meter) -> Self {
        Self {
            connected: gauge(meter, names::BUS_CONNECTED, "1 while connected to NATS"),
            missing: gauge(
                meter,
                names::BUS_REPLICAS_MISSING,
                "Copies of a stream that are away or behind",
            ),
            sent: counter(meter, names::BUS_SENT, "Messages published, by stream and outcome"),
            consumed: counter(meter, names::BUS_CONSUMED, "Messages delivered to a consume loop"),
            process: seconds(meter, names::BUS_PROCESS, "Time from delivery to verdict"),
        }
    }

    pub fn connected(&self, connected: bool) {
        self.connected.record(u64::from(connected), &[]);
    }

    /// Copies of `stream`, one of ours, that it should have and that are away or behind.
    pub fn replicas_missing(&self, stream: &str, copies: u64) {
        self.missing.record(copies, &[KeyValue::new(label::DESTINATION, stream.to_owned())]);
    }

    pub fn published(&self, stream: &'static str, outcome: PublishOutcome) {
        let outcome = KeyValue::new(label::OUTCOME, outcome.as_str());
        let [system, operation, destination] = messaging_labels("publish", stream);
        self.sent.add(1, &[system, operation, destination, outcome]);
    }

    /// A consume loop was given a message.
    pub fn consumed(&self, stream: &'static str) {
        self.consumed.add(1, &messaging_labels("receive", stream));
    }

    /// A handler came to this verdict.
    pub fn processed(&self, stream: &'static str, verdict: JobVerdict, took: Duration) {
        let error = match verdict {
            JobVerdict::Done | JobVerdict::Obsolete | JobVerdict::Returned => None,
            JobVerdict::Later | JobVerdict::Dead | JobVerdict::Malformed => Some(verdict.as_str()),
        };
        let error = error.map(|error| KeyValue::new(label::ERROR_TYPE, error));
        let labels: Vec<_> = messaging_labels("process", stream).into_iter().chain(error).collect();
        self.process.record(took.as_secs_f64(), &labels);
    }
}

fn messaging_labels(operation: &'static str, stream: &'static str) -> [KeyValue; 3] {
    [
        KeyValue::new(label::MESSAGING_SYSTEM, "nats"),
        KeyValue::new(label::MESSAGING_OPERATION, operation),
        KeyValue::new(label::DESTINATION, stream),
    ]
}

/// The resource document.
#[derive(Debug)]
pub struct Config {
    revision: Gauge<u64>,
    rejected: Counter<u64>,
}

impl Config {
    pub(super) fn new(meter: &Meter) -> Self {
        let revision = gauge(meter, names::CONFIG_REVISION, "Revision of the document in effect");
        let rejected = counter(meter, names::CONFIG_REJECTED, "Documents refused as invalid");
        rejected.add(0, &[]);
        Self { revision, rejected }
    }

    pub fn applied(&self, revision: u64) {
        self.revision.record(revision, &[]);
    }

    pub fn rejected(&self) {
        self.rejected.add(1, &[]);
    }
}
