//! Every subject, stream, consumer and bucket name on the bus, each built here and nowhere else.
//!
//! ```text
//! hydrate.<lane>.<upstream>.<job id>   work queue, one outstanding message per subject
//! events.<event kind>                  what happened, kept for a week
//! deliveries.<webhook>                 log of webhook attempts, in memory
//! ```

use crate::{
    event::EventKind,
    job::{HydrationRequested, Lane},
};

/// The work-queue stream of jobs.
pub const JOBS_STREAM: &str = "HYDRANT_JOBS";
pub const JOBS_SUBJECTS: &str = "hydrate.>";

/// The stream of events.
pub const EVENTS_STREAM: &str = "HYDRANT_EVENTS";
pub const EVENTS_SUBJECTS: &str = "events.>";

/// The memory-backed log of webhook attempts.
pub const DELIVERIES_STREAM: &str = "HYDRANT_DELIVERIES";
pub const DELIVERIES_SUBJECTS: &str = "deliveries.>";

/// KV bucket of the resource document (file-backed).
pub const CONFIG_BUCKET: &str = "hydrant_config";
/// Its only key: one document, so that a change is one compare-and-set and one notification.
pub const CONFIG_KEY: &str = "resources";
/// KV bucket of the state of jobs (memory-backed; losing it costs only progress bars and attempts).
pub const JOBS_BUCKET: &str = "hydrant_jobs";
/// KV bucket of flights, breakers and quotas (memory-backed, with TTL).
pub const STATE_BUCKET: &str = "hydrant_state";

/// Where a job is published. Upstream names hold only `[a-z0-9-]`, so each is one token.
pub fn job(job: &HydrationRequested) -> String {
    format!("hydrate.{}.{}.{}", job.lane.as_str(), job.upstream, job.id())
}

/// What the consumer of one upstream and lane filters on.
pub fn job_filter(upstream: &str, lane: Lane) -> String {
    format!("hydrate.{}.{upstream}.*", lane.as_str())
}

/// The durable consumer of one upstream and lane.
pub fn job_consumer(upstream: &str, lane: Lane) -> String {
    format!("importer-{}-{upstream}", lane.as_str())
}

/// The upstream and lane of a consumer that [`job_consumer`] named; `None` for any other.
pub fn parse_job_consumer(consumer: &str) -> Option<(&str, Lane)> {
    let (lane, upstream) = consumer.strip_prefix("importer-")?.split_once('-')?;
    let lane = Lane::ALL.into_iter().find(|known| known.as_str() == lane)?;
    Some((upstream, lane))
}

/// Every job of one upstream, in any lane.
pub fn upstream_jobs(upstream: &str) -> String {
    format!("hydrate.*.{upstream}.*")
}

pub fn event(kind: EventKind) -> String {
    format!("events.{}", kind.as_str())
}

/// The durable consumer of one webhook. Webhook names hold only `[a-z0-9-]`.
pub fn webhook_consumer(webhook: &str) -> String {
    format!("webhook-{webhook}")
}

/// The webhook of a consumer that [`webhook_consumer`] named; `None` for any other.
pub fn parse_webhook_consumer(consumer: &str) -> Option<&str> {
    consumer.strip_prefix("webhook-")
}

pub fn deliveries(webhook: &str) -> String {
    format!("deliveries.{webhook}")
}
