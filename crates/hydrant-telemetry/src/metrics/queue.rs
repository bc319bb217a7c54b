//! The figures of the queue, as whoever looked at it last found it.

use crate::names::{self, label};
use hydrant_proto::Lane;
use opentelemetry::{
    KeyValue,
    metrics::{Meter, ObservableGauge},
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long a look is believed. It is taken every half a minute; when none succeeds, nothing is known.
const BELIEVED: Duration = Duration::from_secs(150);

/// What one lane of one upstream has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneStock {
    pub upstream: String,
    pub lane: Lane,
    /// Jobs that no worker has.
    pub waiting: u64,
    /// How long the oldest job has been on the queue, waiting or under way; zero without any.
    pub oldest: Duration,
}

/// The queue of jobs. A lane that was not found any more is not told of.
#[derive(Debug)]
pub struct Queue {
    last: Last,
    _depth: ObservableGauge<u64>,
    _age: ObservableGauge<f64>,
}

type Last = Arc<Mutex<Option<(Instant, Vec<LaneStock>)>>>;

impl Queue {
    pub(super) fn new(meter: &Meter) -> Self {
        let last = Last::default();
        let (of_depth, of_age) = (Arc::clone(&last), Arc::clone(&last));
        let depth = meter
            .u64_observable_gauge(names::HYDRATION_QUEUE)
            .with_description("Jobs queued and not being worked on")
            .with_callback(move |gauge| {
                each(&of_depth, |lane| gauge.observe(lane.waiting, &labels(lane)));
            })
            .build();
        let age = meter
            .f64_observable_gauge(names::HYDRATION_AGE)
            .with_unit("s")
            .with_description("Age of the oldest job that is not settled; 0 without any")
            .with_callback(move |gauge| {
                each(&of_age, |lane| gauge.observe(lane.oldest.as_secs_f64(), &labels(lane)));
            })
            .build();
        Self { last, _depth: depth, _age: age }
    }

    /// All lanes there are, as they are at this moment.
    pub fn found(&self, lanes: Vec<LaneStock>) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), lanes));
    }
}

fn each(last: &Last, tell: impl FnMut(&LaneStock)) {
    let last = last.lock().unwrap_or_else(PoisonError::into_inner);
    let believed = last.as_ref().filter(|(at, _)| at.elapsed() < BELIEVED);
    believed.into_iter().flat_map(|(_, lanes)| lanes).for_each(tell);
}

fn labels(lane: &LaneStock) -> [KeyValue; 2] {
    [
        KeyValue::new(label::UPSTREAM, lane.upstream.clone()),
        KeyValue::new(label::LANE, lane.lane.as_str()),
    ]
}
