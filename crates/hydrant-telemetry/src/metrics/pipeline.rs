//! From instruments to text: the meter provider, its histogram bounds and the Prometheus registry.

use crate::names;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry_sdk::metrics::{
    Aggregation, Instrument, InstrumentKind, SdkMeterProvider, Stream,
};
use prometheus::{Registry, TextEncoder, process_collector::ProcessCollector};

/// Seconds of something a client waits for.
const SHORT: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];
/// Seconds of work behind the scenes.
const LONG: &[f64] =
    &[0.05, 0.25, 1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 1800.0, 3600.0, 14400.0];

const LONG_ONES: [&str; 3] =
    [names::HYDRATION_DURATION, names::HYDRATION_TIME_TO_LOCAL, names::WEBHOOK_LAG];

pub(super) struct Pipeline {
    registry: Registry,
    provider: SdkMeterProvider,
}

impl Pipeline {
    pub(super) fn new() -> Self {
        let registry = Registry::new();
        registry
            .register(Box::new(ProcessCollector::for_self()))
            .expect("the registry is new, so nothing in it can collide");
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .without_target_info()
            .build()
            .expect("the registry is new, so nothing in it can collide");
        let provider =
            SdkMeterProvider::builder().with_reader(exporter).with_view(explicit_bounds).build();
        let pipeline = Self { registry, provider };
        let build = pipeline.meter().u64_gauge(names::BUILD).with_description("Always 1").build();
        build.record(1, &[KeyValue::new(names::label::VERSION, env!("CARGO_PKG_VERSION"))]);
        pipeline
    }

    pub(super) fn meter(&self) -> Meter {
        self.provider.meter("hydrant")
    }

    pub(super) fn text(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .expect("families come from the exporter, which names each")
    }
}

/// Exponential histograms would vanish on the way to Prometheus.
fn explicit_bounds(instrument: &Instrument) -> Option<Stream> {
    if instrument.kind() != InstrumentKind::Histogram {
        return None;
    }
    let bounds = if LONG_ONES.contains(&instrument.name()) { LONG } else { SHORT };
    let aggregation =
        Aggregation::ExplicitBucketHistogram { boundaries: bounds.to_vec(), record_min_max: false };
    Stream::builder().with_aggregation(aggregation).build().ok()
}
