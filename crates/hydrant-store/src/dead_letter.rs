//! Dead letters: what was given up, and why, until somebody retries or drops it.

use crate::{Store, error::StoreError, key, key::Key, object::Stored};
use futures::TryStreamExt;
use hydrant_proto::{Digest, Event, FailureClass, HydrationRequested, JobId, state::JobState};
use hydrant_telemetry::metrics;
use jiff::Timestamp;
use object_store::PutMode;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Most bytes of a malformed message that are kept.
pub const MAX_KEPT_BYTES: usize = 4 * 1024;

/// The identity of a dead letter: a function of what was given up, so that giving it up twice
/// makes one letter.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeadLetterId(Box<str>);

/// The text is not the id of a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("dead letter id must be `job-`, `delivery-` or `malformed-` and 32 lower-case hex digits")]
pub struct InvalidDeadLetterId;

impl DeadLetterId {
    pub fn of_job(job: &JobId) -> Self {
        Self(format!("job-{job}").into())
    }

    pub fn of_delivery(webhook: &str, event_id: &str) -> Self {
        Self::hashed("delivery", &[webhook.as_bytes(), event_id.as_bytes()])
    }

    pub fn of_malformed(subject: &str, bytes: &[u8]) -> Self {
        Self::hashed("malformed", &[subject.as_bytes(), bytes])
    }

    fn hashed(kind: &str, parts: &[&[u8]]) -> Self {
        let mut all = Vec::new();
        for part in parts {
            all.extend_from_slice(&(part.len() as u64).to_be_bytes());
            all.extend_from_slice(part);
        }
        Self(format!("{kind}-{}", &Digest::of(&all).hex()[..32]).into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DeadLetterId {
    type Err = InvalidDeadLetterId;

    fn from_str(text: &str) -> Result<Self, InvalidDeadLetterId> {
        let valid = text.split_once('-').is_some_and(|(kind, hex)| {
            matches!(kind, "job" | "delivery" | "malformed")
                && hex.len() == 32
                && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        });
        if valid { Ok(Self(text.into())) } else { Err(InvalidDeadLetterId) }
    }
}

impl TryFrom<String> for DeadLetterId {
    type Error = InvalidDeadLetterId;

    fn try_from(text: String) -> Result<Self, InvalidDeadLetterId> {
        text.parse()
    }
}

impl From<DeadLetterId> for String {
    fn from(id: DeadLetterId) -> Self {
        id.0.into()
    }
}

impl fmt::Display for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
// A page of them is in memory at most, and a box would stand in the way of matching.
#[allow(clippy::large_enum_variant)]
pub enum GivenUp {
    Job {
        request: HydrationRequested,
    },
    Delivery {
        webhook: String,
        event: Event,
    },
    /// A message nobody could read; its first [`MAX_KEPT_BYTES`] bytes, made printable.
    Malformed {
        subject: String,
        excerpt: String,
    },
}

impl GivenUp {
    pub fn malformed(subject: &str, bytes: &[u8]) -> Self {
        let kept = &bytes[..bytes.len().min(MAX_KEPT_BYTES)];
        Self::Malformed { subject: subject.to_owned(), excerpt: kept.escape_ascii().to_string() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    pub id: DeadLetterId,
    #[serde(flatten)]
    pub given_up: GivenUp,
    /// Absent for a delivery: the endpoint's failure has no class of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<FailureClass>,
    /// For people; no credentials, tokens or bodies.
    pub reason: String,
    pub attempts: u64,
    pub at: Timestamp,
}

impl DeadLetter {
    /// The letter of a job that was given up in `state`.
    pub fn of_job(state: &JobState) -> Self {
        Self {
            id: DeadLetterId::of_job(&state.id()),
            given_up: GivenUp::Job { request: state.job.clone() },
            class: state.class,
            reason: state.reason.clone().unwrap_or_default(),
            attempts: u64::from(state.attempts),
            at: Timestamp::now(),
        }
    }
}

impl Store {
    /// Keeps a letter; a later one of the same id replaces it.
    pub async fn put_dead_letter(&self, letter: &DeadLetter) -> Result<(), StoreError> {
        let path = self.at(Key::DeadLetter(&letter.id));
        self.put_json(&path, letter, PutMode::Overwrite).await?;
        metrics().hydrations.dead_lettered(letter.class);
        Ok(())
    }

    /// One letter; a damaged one counts as none.
    pub async fn dead_letter(&self, id: &DeadLetterId) -> Result<Option<DeadLetter>, StoreError> {
        let stored = self.get_record(&self.at(Key::DeadLetter(id))).await?;
        Ok(stored.and_then(Stored::readable).map(|(letter, _)| letter))
    }

    /// All letters, newest first.
    pub async fn dead_letters(&self) -> Result<Vec<DeadLetter>, StoreError> {
        let records = self.records(key::dead_letters(), None);
        let mut letters: Vec<DeadLetter> = records.try_collect().await?;
        letters.sort_by(|a, b| b.at.cmp(&a.at).then_with(|| a.id.cmp(&b.id)));
        Ok(letters)
    }

    /// Drops a letter; one that is not there is no failure.
    pub async fn delete_dead_letter(&self, id: &DeadLetterId) -> Result<(), StoreError> {
        self.delete(&self.at(Key::DeadLetter(id))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_a_function_of_what_was_given_up_and_parse_back() {
        let a = DeadLetterId::of_delivery("ci", "e1");
        assert_eq!(a, DeadLetterId::of_delivery("ci", "e1"));
        assert_ne!(a, DeadLetterId::of_delivery("c", "ie1"));
        assert_eq!(a.as_str().parse(), Ok(a));
        for bad in ["", "job-", "job-../x", "other-0123456789abcdef0123456789abcdef"] {
            assert_eq!(bad.parse::<DeadLetterId>(), Err(InvalidDeadLetterId), "{bad}");
        }
    }
}
