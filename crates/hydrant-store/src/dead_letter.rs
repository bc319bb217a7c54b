//! Dead letters: what was given up, and why, until somebody retries or drops it.

use crate::{Store, error::StoreError, key, key::Key, object::Stored};
use futures::{StreamExt, TryStreamExt, stream};
use hydrant_proto::{Digest, Event, FailureClass, HydrationRequested, JobId, state::JobState};
use hydrant_telemetry::metrics;
use jiff::Timestamp;
use object_store::{ObjectMeta, PutMode};
use serde::{Deserialize, Serialize};
use std::{cmp::Ordering, fmt, str::FromStr};

/// Most bytes of a malformed message that are kept.
pub const MAX_KEPT_BYTES: usize = 4 * 1024;

/// Letters of a page read at once.
const READ_AHEAD: usize = 16;

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

/// A place in the list of letters, which stays one when the letter is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterMark {
    /// When it was written, in milliseconds, by the store's clock.
    written: i64,
    id: DeadLetterId,
}

/// The text is no place in a list of letters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no place in the list of dead letters")]
pub struct InvalidDeadLetterMark;

/// A page of letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterPage {
    pub items: Vec<DeadLetter>,
    /// All there are, listed or not.
    pub total: usize,
    /// Where the next page begins, if there is one.
    pub next: Option<DeadLetterMark>,
}

impl DeadLetterMark {
    fn of(meta: &ObjectMeta) -> Option<Self> {
        let id = meta.location.filename()?.strip_suffix(".json")?.parse().ok()?;
        Some(Self { written: meta.last_modified.timestamp_millis(), id })
    }
}

/// The newest first.
impl Ord for DeadLetterMark {
    fn cmp(&self, other: &Self) -> Ordering {
        other.written.cmp(&self.written).then_with(|| self.id.cmp(&other.id))
    }
}

impl PartialOrd for DeadLetterMark {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl FromStr for DeadLetterMark {
    type Err = InvalidDeadLetterMark;

    fn from_str(text: &str) -> Result<Self, InvalidDeadLetterMark> {
        let (written, id) = text.split_once('.').ok_or(InvalidDeadLetterMark)?;
        let written = written.parse().map_err(|_| InvalidDeadLetterMark)?;
        Ok(Self { written, id: id.parse().map_err(|_| InvalidDeadLetterMark)? })
    }
}

impl fmt::Display for DeadLetterMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.written, self.id)
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

    /// At most `n` letters after `after`, the newest first. All keys are listed, and only the letters
    /// of the page are read; one that cannot be is left out.
    pub async fn dead_letters(
        &self,
        after: Option<&DeadLetterMark>,
        n: usize,
    ) -> Result<DeadLetterPage, StoreError> {
        let listed = self.list_all(self.below(&key::dead_letters()));
        let mut marks: Vec<_> =
            listed.map_ok(|meta| DeadLetterMark::of(&meta)).try_collect().await?;
        let total = marks.len();
        marks.retain(|mark| {
            mark.as_ref().is_some_and(|mark| after.is_none_or(|after| mark > after))
        });
        marks.sort_unstable();
        let more = marks.len() > n;
        marks.truncate(n);
        let next = marks.last().cloned().flatten().filter(|_| more);
        let reads = marks.into_iter().flatten();
        let reads = reads.map(|mark| async move { self.dead_letter(&mark.id).await });
        let letters: Vec<_> = stream::iter(reads).buffered(READ_AHEAD).try_collect().await?;
        Ok(DeadLetterPage { items: letters.into_iter().flatten().collect(), total, next })
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

    #[tokio::test]
    async fn a_page_reads_its_own_letters_and_the_next_goes_on_whatever_was_dropped() {
        let store = Store::in_memory();
        let letter = |n: u32| DeadLetter {
            id: DeadLetterId::of_delivery("ci", &n.to_string()),
            given_up: GivenUp::malformed("x", b"y"),
            class: None,
            reason: n.to_string(),
            attempts: 1,
            at: Timestamp::UNIX_EPOCH,
        };
        for n in 0..25 {
            store.put_dead_letter(&letter(n)).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        let (mut after, mut seen) = (None, Vec::new());
        loop {
            let page = store.dead_letters(after.as_ref(), 10).await.unwrap();
            for letter in &page.items {
                store.delete_dead_letter(&letter.id).await.unwrap();
            }
            seen.extend(page.items.into_iter().map(|letter| letter.reason));
            let Some(next) = page.next else { break };
            after = Some(next.to_string().parse().unwrap());
        }
        assert_eq!(seen, (0..25).rev().map(|n| n.to_string()).collect::<Vec<_>>());
        for bad in ["", "1", "x.job-0123456789abcdef0123456789abcdef", "1.job-x"] {
            assert_eq!(bad.parse::<DeadLetterMark>(), Err(InvalidDeadLetterMark), "{bad}");
        }
    }
}
