//! Completion records: what was hydrated and what was, or is to be, told about it.

use crate::{
    Store,
    cas::{MAX_ROUNDS, Stamp},
    error::StoreError,
    key,
    key::Key,
    object::Stored,
};
use futures::{Stream, StreamExt};
use hydrant_proto::{Digest, Event, JobId, MediaType, Platform, Reference, RepositoryName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The last completed hydration of one job id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletionRecord {
    pub rule: String,
    pub generation: String,
    /// The downstream repository.
    pub repository: RepositoryName,
    pub reference: Reference,
    pub digest: Digest,
    pub media_type: MediaType,
    /// Platforms that are local, of an index.
    #[serde(default)]
    pub platforms: Vec<Platform>,
    /// Bytes of the whole closure.
    pub size_bytes: u64,
    /// Blobs of the whole closure.
    pub blobs: u64,
    /// `seq` of the tag record when it was completed; 0 for a reference by digest.
    #[serde(default)]
    pub seq: u64,
    pub completed_at: Timestamp,
    /// The event to announce, kept whole so that it is the same however often it is told.
    pub event: Event,
}

impl Store {
    /// The completion record of a job id, if it was ever completed. A damaged one counts as none,
    /// so that the job completes again and replaces it.
    pub async fn completion(&self, job: &JobId) -> Result<Option<CompletionRecord>, StoreError> {
        let stored = self.get_record(&self.at(Key::Completion(job))).await?;
        Ok(stored.and_then(Stored::readable).map(|(record, _)| record))
    }

    /// Writes the record unless a newer one (greater `seq`) is there, and returns the record that
    /// stands. Its event is the one to announce: a record that tells the same event id again
    /// keeps the event as it was first written.
    pub async fn put_completion(
        &self,
        job: &JobId,
        record: CompletionRecord,
    ) -> Result<CompletionRecord, StoreError> {
        let path = self.at(Key::Completion(job));
        for _ in 0..MAX_ROUNDS {
            let standing = self.get_record::<CompletionRecord>(&path).await?;
            let (next, stamp) = match standing {
                None => (record.clone(), Stamp::Absent),
                Some(Stored::Unreadable(damaged)) => (record.clone(), self.stamp(&damaged)),
                Some(Stored::Readable(standing, stamp)) => match after(&standing, &record) {
                    Some(next) => (next, stamp),
                    None => return Ok(standing),
                },
            };
            match self.compare_and_set_json(&path, &next, &stamp).await {
                Ok(_) => return Ok(next),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Conflict { key: path.to_string() })
    }

    /// Every completion record written at least `older_than` ago; for a sweep.
    pub fn all_completions(
        &self,
        older_than: Duration,
    ) -> impl Stream<Item = Result<CompletionRecord, StoreError>> + Send + use<> {
        self.records(key::completions(), Some(older_than)).boxed()
    }
}

/// What is to stand after `record` meets `standing`; `None` when nothing changes.
fn after(standing: &CompletionRecord, record: &CompletionRecord) -> Option<CompletionRecord> {
    if standing.seq > record.seq {
        return None;
    }
    let mut next = record.clone();
    if standing.event.id == record.event.id {
        next.event = standing.event.clone();
        next.completed_at = standing.completed_at;
    }
    (next != *standing).then_some(next)
}
