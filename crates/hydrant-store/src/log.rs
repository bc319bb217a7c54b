//! What storage remembers of work: misses not yet met, images that are complete, and what was
//! given up. Losing the whole bus loses nothing of it.

use crate::{
    Store,
    error::StoreError,
    key::{DEAD_LETTERS, Key, MISSES, misses},
};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use hydrant_proto::{
    Digest, FailureClass, HydrationRequested, JobId, MediaType, Platform, Reference,
    RepositoryName, state::JobState,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Records read at once.
const WIDTH: usize = 8;

/// What of a reference somebody missed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "value")]
pub enum Wanted {
    /// The reference itself, as far as the rule's policy goes.
    Whole,
    /// Every platform of an index.
    All,
    /// A platform of an index.
    Platform(Platform),
    /// A child of an index that has no platform.
    Child(Digest),
}

impl Wanted {
    /// The name of its record: one file name, different for each.
    fn name(&self) -> String {
        match self {
            Self::Whole => "whole".to_owned(),
            Self::All => "all".to_owned(),
            Self::Platform(platform) => {
                format!("platform-{}", platform.to_string().replace('/', "~"))
            }
            Self::Child(digest) => format!("child-{}", digest.hex()),
        }
    }
}

/// A miss that is not met yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissRecord {
    pub request: HydrationRequested,
    pub wanted: Wanted,
    pub missed_at: Timestamp,
}

/// An image that is local.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletionRecord {
    pub rule: String,
    pub generation: String,
    pub repository: RepositoryName,
    pub reference: Reference,
    pub digest: Digest,
    pub media_type: MediaType,
    /// Platforms that are local, of an index.
    pub platforms: Vec<Platform>,
    /// Bytes of the whole closure.
    pub size_bytes: u64,
    /// Blobs of the whole closure.
    pub blobs: u64,
    /// Raised whenever digest or platforms change.
    pub seq: u64,
    pub completed_at: Timestamp,
}

/// What was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Unique, and a valid object name: a job id, or `<webhook>.<event id>`.
    pub id: String,
    pub subject: Undelivered,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<FailureClass>,
    /// For people; no credentials, tokens or bodies.
    pub reason: String,
    pub attempts: u64,
    pub at: Timestamp,
}

/// What a dead letter is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Undelivered {
    /// An image that could not be made local.
    Job { request: HydrationRequested },
    /// An event that an endpoint did not take.
    Delivery { webhook: String, event: hydrant_proto::Event },
    /// A message that could not be read.
    Malformed { subject: String },
}

impl DeadLetter {
    /// The dead letter of a job that was given up in `state`.
    pub fn of_job(state: &JobState) -> Self {
        Self {
            id: state.id().to_string(),
            subject: Undelivered::Job { request: state.job.clone() },
            class: state.class,
            reason: state.reason.clone().unwrap_or_default(),
            attempts: u64::from(state.attempts),
            at: Timestamp::now(),
        }
    }
}

impl Store {
    /// Remembers a miss until [`Store::forget_misses`]. The same miss twice is one record.
    pub async fn record_miss(&self, miss: &MissRecord) -> Result<(), StoreError> {
        let (id, name) = (miss.request.id(), miss.wanted.name());
        self.backend.write_record(Key::Miss(&id, &name), miss).await
    }

    /// The misses of a job that are not met.
    pub async fn misses(&self, job: &JobId) -> Result<Vec<MissRecord>, StoreError> {
        self.read_all(&misses(job), Duration::ZERO).try_collect().await
    }

    /// Forgets misses that have been met or given up.
    pub async fn forget_misses(&self, misses: &[MissRecord]) -> Result<(), StoreError> {
        for miss in misses {
            let (id, name) = (miss.request.id(), miss.wanted.name());
            self.backend.delete(&Key::Miss(&id, &name).path()).await?;
        }
        Ok(())
    }

    /// Every miss whose record has not been written for `older_than`.
    pub fn all_misses(
        &self,
        older_than: Duration,
    ) -> impl Stream<Item = Result<MissRecord, StoreError>> + Send + use<> {
        self.read_all(MISSES, older_than)
    }

    pub async fn completion(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Option<CompletionRecord>, StoreError> {
        let read = self.backend.read_record(Key::Completion(repository, reference)).await?;
        Ok(read.map(|(record, _)| record))
    }

    pub async fn put_completion(&self, record: &CompletionRecord) -> Result<(), StoreError> {
        let key = Key::Completion(&record.repository, &record.reference);
        self.backend.write_record(key, record).await
    }

    pub async fn put_dead_letter(&self, letter: &DeadLetter) -> Result<(), StoreError> {
        self.backend.write_record(Key::DeadLetter(&letter.id), letter).await
    }

    pub async fn dead_letter(&self, id: &str) -> Result<Option<DeadLetter>, StoreError> {
        let read = self.backend.read_record(Key::DeadLetter(id)).await?;
        Ok(read.map(|(record, _)| record))
    }

    pub async fn delete_dead_letter(&self, id: &str) -> Result<(), StoreError> {
        self.backend.delete(&Key::DeadLetter(id).path()).await
    }

    pub fn dead_letters(
        &self,
    ) -> impl Stream<Item = Result<DeadLetter, StoreError>> + Send + use<> {
        self.read_all(DEAD_LETTERS, Duration::ZERO)
    }

    /// Every record below `prefix` that has not been written for `older_than`. One that cannot be
    /// read is logged and passed over: it must not stand in the way of the others.
    fn read_all<T: serde::de::DeserializeOwned + Send + 'static>(
        &self,
        prefix: &str,
        older_than: Duration,
    ) -> impl Stream<Item = Result<T, StoreError>> + Send + use<T> {
        let backend = self.backend.clone();
        let now = Timestamp::now().as_second();
        let old_enough = move |modified: i64| {
            older_than.is_zero() || now - modified >= older_than.as_secs().cast_signed()
        };
        self.backend
            .list(prefix)
            .try_filter(move |meta| {
                futures::future::ready(old_enough(meta.last_modified.timestamp()))
            })
            .map(move |meta| {
                let backend = backend.clone();
                async move { backend.read_listed::<T>(&meta?.location).await }
            })
            .buffered(WIDTH)
            .filter_map(|read| async {
                match read {
                    Err(error @ StoreError::Record { .. }) => {
                        tracing::warn!(%error, "record passed over");
                        None
                    }
                    other => other.transpose(),
                }
            })
            .chain(stream::empty())
    }
}
