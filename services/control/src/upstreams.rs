//! How an upstream is doing: its breaker, and what waits for it.

use crate::failure::Failure;
use axum::{
    Json,
    extract::{Path, State},
};
use hydrant_boot::ResourceFeed;
use hydrant_bus::Bus;
use hydrant_proto::Lane;
use hydrant_rules::Kind;
use serde::Serialize;
use std::{fmt, sync::Arc};

/// How the breaker of an upstream stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BreakerLine {
    /// `closed`, `open` or `half-open`.
    pub state: &'static str,
    /// Seconds until an open breaker lets a probe through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
}

/// Answers for the breakers of this process. Breakers are local to the process that asks the
/// upstream, so a control process alone has none.
#[derive(Clone)]
pub struct Breakers(Arc<Look>);

/// How the breaker of the upstream of that name stands, if there is one.
type Look = dyn Fn(&str) -> Option<BreakerLine> + Send + Sync;

impl Breakers {
    /// Breakers that `look` knows by the name of their upstream.
    pub fn new(look: impl Fn(&str) -> Option<BreakerLine> + Send + Sync + 'static) -> Self {
        Self(Arc::new(look))
    }

    /// For a process that asks no upstream.
    pub fn none() -> Self {
        Self::new(|_| None)
    }
}

impl fmt::Debug for Breakers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Breakers(…)")
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct UpstreamStatus {
    name: String,
    /// Absent when this process has not asked the upstream for anything.
    breaker: Option<BreakerLine>,
    /// Absent when the bus cannot be asked.
    queue: Option<Vec<LaneDepth>>,
}

#[derive(Debug, Serialize)]
struct LaneDepth {
    lane: Lane,
    /// Jobs that no worker has.
    waiting: u64,
    /// Jobs that a worker has, or that rest before another try.
    outstanding: u64,
}

pub(crate) async fn status(
    State(feed): State<ResourceFeed>,
    State(bus): State<Bus>,
    State(breakers): State<Breakers>,
    Path(name): Path<String>,
) -> Result<Json<UpstreamStatus>, Failure> {
    if feed.current().upstream(&name).is_none() {
        return Err(Failure::no_resource(Kind::Upstream, &name));
    }
    let breaker = (breakers.0)(&name);
    let queue = bus.queue_depth().await.ok().map(|depths| {
        let mine = depths.into_iter().filter(|depth| depth.upstream == name);
        mine.map(|depth| LaneDepth {
            lane: depth.lane,
            waiting: depth.waiting,
            outstanding: depth.outstanding,
        })
        .collect()
    });
    Ok(Json(UpstreamStatus { name, breaker, queue }))
}
