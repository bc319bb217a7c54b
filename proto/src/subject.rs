//! Every subject, stream, consumer and bucket name on the bus, each built here and nowhere else.
//!
//! ```text
//! hydrate.<lane>.<upstream>.<job id>   work queue, one outstanding message per subject
//! events.<event kind>                  what happened, kept for a week
//! deliveries.<webhook>                 log of webhook attempts, in memory
//! deliveries.<webhook>.<event id>      attempts at one event that is to be tried again, as well
//! ```

use crate::{
    digest::Digest,
    event::EventKind,
    job::{HydrationRequested, Lane},
};
use std::fmt;

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

/// What a value of [`STATE_BUCKET`] is about. An upstream here is its name and a fingerprint of what
/// makes it another one (its endpoint, its credential), so it is one token; KV keys refuse `:`, so a
/// digest is two.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StateKey {
    /// Who is fetching this blob: `flight.sha256.<hex>`.
    Flight(Digest),
    /// How far the upload of this blob is: `parts.sha256.<hex>`.
    Parts(Digest),
    /// What one process has seen of an upstream: `breaker.<upstream>.<process>`.
    Breaker { upstream: String, process: String },
    /// Who is fetching this manifest, and then what it got: `manifest.<hash>`, where the hash is of
    /// where it comes from and its reference.
    Manifest(String),
    /// Who may send an upstream whose breaker is not closed its next probe: `probe.<upstream>`.
    Probe(String),
    /// What is left of an upstream's budget: `quota.<upstream>`.
    Quota(String),
    /// Who is asking the upstream about a tag, which is named by a digest: `check.sha256.<hex>`.
    Check(Digest),
}

impl fmt::Display for StateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flight(digest) => {
                write!(f, "flight.{}.{}", digest.algorithm().as_str(), digest.hex())
            }
            Self::Parts(digest) => {
                write!(f, "parts.{}.{}", digest.algorithm().as_str(), digest.hex())
            }
            Self::Breaker { upstream, process } => write!(f, "breaker.{upstream}.{process}"),
            Self::Manifest(hash) => write!(f, "manifest.{hash}"),
            Self::Probe(upstream) => write!(f, "probe.{upstream}"),
            Self::Quota(upstream) => write!(f, "quota.{upstream}"),
            Self::Check(tag) => write!(f, "check.{}.{}", tag.algorithm().as_str(), tag.hex()),
        }
    }
}

/// The key of what any process has seen of an upstream, as a filter.
pub fn breakers(upstream: &str) -> String {
    format!("breaker.{upstream}.*")
}

/// The process that a key of [`StateKey::Breaker`] names; `None` for any other.
pub fn parse_breaker(key: &str) -> Option<&str> {
    let (_, process) = key.strip_prefix("breaker.")?.split_once('.')?;
    Some(process)
}

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

/// The attempts at one event for one webhook; ids of events are hex.
pub fn delivery(webhook: &str, event_id: &str) -> String {
    format!("deliveries.{webhook}.{event_id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_key_is_a_path_of_tokens() {
        let digest = Digest::of(b"blob");
        assert_eq!(
            StateKey::Flight(digest.clone()).to_string(),
            format!("flight.sha256.{}", digest.hex())
        );
        let hub = || "docker-hub".to_owned();
        let breaker = StateKey::Breaker { upstream: hub(), process: "importer-1".to_owned() };
        let texts =
            [breaker, StateKey::Probe(hub()), StateKey::Quota(hub())].map(|k| k.to_string());
        let expected = ["breaker.docker-hub.importer-1", "probe.docker-hub", "quota.docker-hub"];
        assert_eq!(texts, expected);
        assert_eq!(parse_breaker(&texts[0]), Some("importer-1"));
        assert_eq!(parse_breaker(&texts[1]), None);
    }
}
