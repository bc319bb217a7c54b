//! Short ways to make the instruments the rooms are built from.

use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter, UpDownCounter};

pub(super) const BYTES: &str = "By";

pub(super) fn counter(meter: &Meter, name: &'static str, about: &'static str) -> Counter<u64> {
    meter.u64_counter(name).with_description(about).build()
}

pub(super) fn bytes(meter: &Meter, name: &'static str, about: &'static str) -> Counter<u64> {
    meter.u64_counter(name).with_unit(BYTES).with_description(about).build()
}

pub(super) fn seconds(meter: &Meter, name: &'static str, about: &'static str) -> Histogram<f64> {
    meter.f64_histogram(name).with_unit("s").with_description(about).build()
}

pub(super) fn gauge(meter: &Meter, name: &'static str, about: &'static str) -> Gauge<u64> {
    meter.u64_gauge(name).with_description(about).build()
}

pub(super) fn level(meter: &Meter, name: &'static str, about: &'static str) -> UpDownCounter<i64> {
    meter.i64_up_down_counter(name).with_description(about).build()
}
