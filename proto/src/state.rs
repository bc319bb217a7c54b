//! What processes tell each other about work under way: the state of a job, one attempt of a
//! webhook delivery, whose a shared value is, and who leads a flight. All are kept in memory on the bus; losing them
//! costs only progress bars, attempt counts, the recent log, and work done twice.

use crate::{
    class::FailureClass,
    codec::Message,
    digest::Digest,
    event::EventKind,
    job::{HydrationRequested, JobId},
    manifest::MediaType,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Most blobs whose progress is listed one by one in a [`JobState`].
pub const MAX_LISTED_BLOBS: usize = 64;

/// Where a job is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobPhase {
    /// On the queue, not begun.
    Queued,
    /// A worker has it.
    Running,
    /// Put back after a failure that may pass; see the class and the reason.
    Waiting,
    Done,
    /// Its rule changed or is gone.
    Obsolete,
    /// Given up; a dead letter says why.
    DeadLettered,
}

impl JobPhase {
    pub const ALL: [Self; 6] = [
        Self::Queued,
        Self::Running,
        Self::Waiting,
        Self::Done,
        Self::Obsolete,
        Self::DeadLettered,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Done => "done",
            Self::Obsolete => "obsolete",
            Self::DeadLettered => "dead-lettered",
        }
    }

    /// Whether nothing more will happen unless the job is asked for again.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Queued | Self::Running | Self::Waiting => false,
            Self::Done | Self::Obsolete | Self::DeadLettered => true,
        }
    }
}

impl fmt::Display for JobPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How far one blob of a job is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobProgress {
    pub digest: Digest,
    /// Bytes of the whole blob.
    pub size: u64,
    /// Bytes fetched so far; `size` when it was already stored.
    pub done: u64,
}

/// The state of one job, as the last worker that touched it saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobState {
    pub job: HydrationRequested,
    pub phase: JobPhase,
    /// Attempts so far that failed for a reason of their own; waiting for an open breaker is none.
    #[serde(default)]
    pub attempts: u32,
    #[serde(default)]
    pub blobs_total: u64,
    #[serde(default)]
    pub blobs_done: u64,
    #[serde(default)]
    pub bytes_total: u64,
    #[serde(default)]
    pub bytes_done: u64,
    /// At most [`MAX_LISTED_BLOBS`], the unfinished ones first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blobs: Vec<BlobProgress>,
    /// What the reference resolved to, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Why the last attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<FailureClass>,
    /// For people; no credentials, tokens or bodies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The process that wrote this, so that it recognises its own write.
    #[serde(default)]
    pub writer: String,
    pub updated_at: Timestamp,
}

impl JobState {
    /// The state of a job nobody has begun.
    pub fn queued(job: HydrationRequested, now: Timestamp) -> Self {
        Self {
            job,
            phase: JobPhase::Queued,
            attempts: 0,
            blobs_total: 0,
            blobs_done: 0,
            bytes_total: 0,
            bytes_done: 0,
            blobs: Vec::new(),
            digest: None,
            class: None,
            reason: None,
            writer: String::new(),
            updated_at: now,
        }
    }

    pub fn id(&self) -> JobId {
        self.job.id()
    }
}

impl Message for JobState {
    const KIND: &'static str = "job-state";
    const VERSION: u16 = 1;
}

/// How one attempt to deliver an event ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeliveryOutcome {
    /// The endpoint answered 2xx.
    Delivered,
    /// It will be tried again.
    Retry { at: Timestamp },
    /// Given up; a dead letter says why.
    DeadLettered,
}

/// One attempt to deliver one event to one webhook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryAttempt {
    pub webhook: String,
    pub event_id: String,
    pub kind: EventKind,
    /// 1 for the first.
    pub attempt: u64,
    pub at: Timestamp,
    /// The endpoint's HTTP status, if it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// For people; no secrets or bodies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub duration_ms: u64,
    pub outcome: DeliveryOutcome,
}

impl Message for DeliveryAttempt {
    const KIND: &'static str = "delivery-attempt";
    const VERSION: u16 = 1;
}

/// A value in the bucket of leases and shared state, with its writer's name on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedValue {
    /// The process that wrote it, another one after each start.
    pub owner: String,
    /// Tells this write from every other, so that a writer whose answer was lost recognises it.
    pub nonce: u64,
    /// What it says, in the words of whoever uses the key.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
}

impl Message for SharedValue {
    const KIND: &'static str = "shared-value";
    const VERSION: u16 = 1;
}

/// Who leads the flight of a blob: what its followers need to read along. The value of a flight's
/// lease, for those who can read the bus only: `key` opens the blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlightRecord {
    /// Address (`ip:port`) at which the leader serves its flights to other processes.
    pub peer: String,
    /// What a follower shows there. Of this flight only.
    pub key: String,
    /// The upstream that the leader asks.
    pub upstream: String,
    /// Who may read along: repositories, each with the origin of its content, that were found
    /// entitled to the blob. At most [`MAX_GRANTS`].
    pub grants: Vec<String>,
    /// Size in bytes of the blob, once it is stored and the flight is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<u64>,
}

/// How far the upload of a large blob is, for who goes on with it when the process is gone that
/// began it. It outlives the lease of the flight, and is believed in nothing: what it says is compared
/// with what storage has, and its hash with the digest in the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartsRecord {
    /// The multipart upload.
    pub upload: String,
    /// Size in bytes of the blob.
    pub size: u64,
    /// Parts that are stored, from the first one on.
    pub parts: u64,
    /// Size in bytes of each.
    pub part_size: u64,
    /// Of the entity tags of the parts, in order: another content of any of them shows.
    pub tags: Digest,
    /// State of the hash of their bytes.
    #[serde(with = "serde_bytes")]
    pub hash: Vec<u8>,
}

impl Message for PartsRecord {
    const KIND: &'static str = "parts-record";
    const VERSION: u16 = 1;
}

/// A manifest on its way from its upstream, or what came of it: the value under which processes
/// fetch it once for all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ManifestRecord {
    /// The writer is fetching it, for a client.
    Asked,
    /// The upstream delivered it. `bytes` are left out when they are many; storage has them then.
    Brought {
        digest: Digest,
        media_type: MediaType,
        /// Just before the upstream was asked: what a tag names is its word from then.
        asked_at: Timestamp,
        #[serde(default, with = "serde_bytes", skip_serializing_if = "Option::is_none")]
        bytes: Option<Vec<u8>>,
    },
    /// The upstream is in trouble: who waited need not ask as well.
    Failed { class: FailureClass, reason: String, retry_after_seconds: Option<u64> },
    /// The writer is fetching it when clients leave room for that; a client need not wait for it.
    Ordered,
}

impl Message for ManifestRecord {
    const KIND: &'static str = "manifest-record";
    const VERSION: u16 = 1;
}

/// Most grants told in a [`FlightRecord`]; who is not listed asks its upstream.
pub const MAX_GRANTS: usize = 32;

impl Message for FlightRecord {
    const KIND: &'static str = "flight-record";
    const VERSION: u16 = 1;
}
