//! How an upstream is doing: its breaker, its quota, and what waits for it.

use crate::failure::Failure;
use axum::{
    Json,
    extract::{Path, State},
};
use futures::{FutureExt, future::BoxFuture};
use hydrant_boot::ResourceFeed;
use hydrant_bus::Bus;
use hydrant_proto::Lane;
use hydrant_rules::{Kind, Upstream};
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

/// What an upstream says is left of its rate limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QuotaLine {
    /// Requests of a whole window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    pub remaining: u64,
    /// Kept for clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserve: Option<u64>,
    /// Until it is whole again.
    pub reset_seconds: u64,
}

/// How an upstream stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Standing {
    pub breaker: BreakerLine,
    /// Processes that asked it lately.
    pub processes: usize,
    /// Most calls under way at once from this process; absent when it asks no upstream.
    pub concurrency: Option<u32>,
    /// Absent when the upstream told of none.
    pub quota: Option<QuotaLine>,
}

/// Answers how upstreams stand: by what this process knows, or, where it asks no upstream itself, by
/// what others tell each other over the bus.
#[derive(Clone)]
pub struct Standings(Arc<Look>);

/// How the upstream stands, if that is known.
type Look = dyn Fn(Upstream) -> BoxFuture<'static, Option<Standing>> + Send + Sync;

impl Standings {
    pub fn new<F>(look: impl Fn(Upstream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Option<Standing>> + Send + 'static,
    {
        Self(Arc::new(move |upstream| look(upstream).boxed()))
    }

    /// Knows nothing.
    pub fn none() -> Self {
        Self::new(|_| std::future::ready(None))
    }
}

impl fmt::Debug for Standings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Standings(…)")
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct UpstreamStatus {
    name: String,
    /// Absent when nobody has asked the upstream lately, or the bus cannot tell.
    breaker: Option<BreakerLine>,
    processes: Option<usize>,
    concurrency: Option<u32>,
    quota: Option<QuotaLine>,
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
    State(standings): State<Standings>,
    Path(name): Path<String>,
) -> Result<Json<UpstreamStatus>, Failure> {
    let Some(upstream) = feed.current().upstream(&name).cloned() else {
        return Err(Failure::no_resource(Kind::Upstream, &name));
    };
    let standing = (standings.0)(upstream).await;
    let queue = bus.queue_depth().await.ok().map(|depths| {
        let mine = depths.into_iter().filter(|depth| depth.upstream == name);
        mine.map(|depth| LaneDepth {
            lane: depth.lane,
            waiting: depth.waiting,
            outstanding: depth.outstanding,
        })
        .collect()
    });
    let (breaker, processes, concurrency, quota) = match standing {
        Some(Standing { breaker, processes, concurrency, quota }) => {
            (Some(breaker), Some(processes), concurrency, quota)
        }
        None => (None, None, None, None),
    };
    Ok(Json(UpstreamStatus { name, breaker, processes, concurrency, quota, queue }))
}
