//! The job: one hydration on the queue. It says that somebody missed something, never what is
//! right or done; the importer asks storage and the upstream for that.

use crate::{
    codec::Message,
    image::{Image, Platform, Reference, RepositoryName},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{fmt, str::FromStr};

/// How urgent a job is. Each lane has its own consumer, so a prefetch never delays a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lane {
    /// A client missed it and may be waiting.
    Interactive,
    /// Prefetch, sweep, refresh.
    Background,
}

impl Lane {
    pub const ALL: [Self; 2] = [Self::Interactive, Self::Background];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Background => "background",
        }
    }
}

/// What kind of reference a job names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReferenceKind {
    Tag,
    Digest,
}

impl ReferenceKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tag => "tag",
            Self::Digest => "digest",
        }
    }
}

/// The identity of a job: a hash of (rule, generation, repository, kind, reference). Two requests
/// for the same thing under the same rule have the same id, in every process.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(Box<str>);

/// The text is not a job id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("job id must be 32 lower-case hex digits")]
pub struct InvalidJobId;

impl JobId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for JobId {
    type Err = InvalidJobId;

    fn from_str(text: &str) -> Result<Self, InvalidJobId> {
        let valid =
            text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if valid { Ok(Self(text.into())) } else { Err(InvalidJobId) }
    }
}

impl TryFrom<String> for JobId {
    type Error = InvalidJobId;

    fn try_from(text: String) -> Result<Self, InvalidJobId> {
        text.parse()
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.0.into()
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Asks for an image to be made durable.
///
/// It carries no upstream address: the importer takes that from the rule, and drops the job as
/// obsolete when the rule's generation is no longer `generation`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HydrationRequested {
    /// Name of the cache rule.
    pub rule: String,
    /// Fingerprint of the rule and its upstream when the job was made.
    pub generation: String,
    /// Name of the upstream, which is also the shard of the queue.
    pub upstream: String,
    /// The downstream repository.
    pub repository: RepositoryName,
    pub reference: Reference,
    pub lane: Lane,
    /// Platforms asked for beyond the rule's policy; also kept in the miss log, because a job that
    /// is already queued swallows this message.
    #[serde(default)]
    pub platforms: Vec<Platform>,
    /// When the miss happened. Only for measuring lag.
    pub requested_at: Timestamp,
}

impl HydrationRequested {
    pub fn kind(&self) -> ReferenceKind {
        match self.reference {
            Reference::Tag(_) => ReferenceKind::Tag,
            Reference::Digest(_) => ReferenceKind::Digest,
        }
    }

    pub fn image(&self) -> Image {
        Image { repository: self.repository.clone(), reference: self.reference.clone() }
    }

    pub fn id(&self) -> JobId {
        let reference = self.reference.to_string();
        JobId(identity(&[
            &self.rule,
            &self.generation,
            self.repository.as_str(),
            self.kind().as_str(),
            &reference,
        ]))
    }
}

impl Message for HydrationRequested {
    const KIND: &'static str = "hydration-requested";
    const VERSION: u16 = 1;
}

/// 128 bits of SHA-256 over length-prefixed parts, as hex: no two lists of parts share it.
pub(crate) fn identity(parts: &[&str]) -> Box<str> {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    hex::encode(&hasher.finalize()[..16]).into()
}
