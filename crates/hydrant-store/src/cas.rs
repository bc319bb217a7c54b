//! Compare-and-set: one writer wins, the others learn it.
//!
//! S3 and memory compare ETags themselves (`If-None-Match: *`, `If-Match`). A directory is locked,
//! read, compared and renamed into (`directory.rs`). An answer that leaves in doubt whether the
//! write happened is settled by reading back: records carry a nonce, so our own bytes in place
//! mean our own success.

use crate::{
    Backend, Store,
    directory::Directory,
    error::{StoreError, classify},
    object::{Object, timed, to_json},
    tag::TagRecord,
};
use bytes::Bytes;
use hydrant_proto::Digest;
use hydrant_telemetry::metrics::StoreOperation;
use object_store::{PutMode, PutOptions, UpdateVersion, path::Path};
use serde::Serialize;
use std::sync::Arc;

/// Rounds after which a loop of read and compare-and-set gives up. Each lost round is somebody
/// else's success.
pub(crate) const MAX_ROUNDS: usize = 16;

/// Longest object that is compared and set, in bytes.
const MAX_BYTES: u64 = 1024 * 1024;

/// What was seen of a record, to be compared when it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub(crate) stamp: Stamp,
    pub(crate) seq: u64,
    /// `None` when there was none that can be read.
    pub(crate) before: Option<Arc<TagRecord>>,
}

impl Version {
    pub(crate) fn of(record: &TagRecord, stamp: Stamp) -> Self {
        Self { stamp, seq: record.seq, before: Some(Arc::new(record.clone())) }
    }

    /// The `seq` of the record that was seen.
    pub fn seq(&self) -> u64 {
        self.seq
    }
}

/// The state of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stamp {
    Absent,
    Is(String),
}

impl Stamp {
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        Self::Is(Digest::of(bytes).hex().to_owned())
    }

    fn mode(&self) -> PutMode {
        match self {
            Self::Absent => PutMode::Create,
            Self::Is(tag) => {
                PutMode::Update(UpdateVersion { e_tag: Some(tag.clone()), version: None })
            }
        }
    }
}

impl Store {
    /// Writes `bytes` if the object is still as `expected`, and returns its new state.
    pub(crate) async fn compare_and_set(
        &self,
        path: &Path,
        bytes: Bytes,
        expected: &Stamp,
    ) -> Result<Stamp, StoreError> {
        self.compare_and_set_after(Vec::new(), path, bytes, expected).await
    }

    /// The same, with what has to be there before it. That may be written even where another writer
    /// was faster.
    pub(crate) async fn compare_and_set_after(
        &self,
        before: Vec<(Path, Bytes)>,
        path: &Path,
        bytes: Bytes,
        expected: &Stamp,
    ) -> Result<Stamp, StoreError> {
        match &self.backend {
            Backend::S3(_) | Backend::Memory => {
                self.put_in_order(before).await?;
                self.set_by_condition(path, bytes, expected).await
            }
            Backend::Directory(directory) => {
                let objects = before.into_iter().chain([(path.clone(), bytes)]).collect();
                let work = self.clone().set_under_lock(
                    Arc::clone(directory),
                    path.clone(),
                    objects,
                    expected.clone(),
                );
                // A caller that goes away must not release the lock in the middle of the write.
                tokio::spawn(work).await.expect("the write neither panics nor is cancelled")
            }
        }
    }

    pub(crate) async fn compare_and_set_json<T: Serialize>(
        &self,
        path: &Path,
        record: &T,
        expected: &Stamp,
    ) -> Result<Stamp, StoreError> {
        self.compare_and_set(path, to_json(record), expected).await
    }

    async fn set_by_condition(
        &self,
        path: &Path,
        bytes: Bytes,
        expected: &Stamp,
    ) -> Result<Stamp, StoreError> {
        let options = PutOptions::from(expected.mode());
        let put = self.objects.put_opts(path, bytes.clone().into(), options);
        match timed(StoreOperation::Put, put).await {
            Ok(put) => match put.e_tag {
                Some(tag) => Ok(Stamp::Is(tag)),
                None => self.read_back(path, &bytes).await?.ok_or_else(|| conflict(path)),
            },
            Err(error) => self.settle(path, &bytes, error).await,
        }
    }

    /// Decides what a failed conditional write was. A refusal, too, may be the answer to a second
    /// try of the library after its first one had succeeded.
    async fn settle(
        &self,
        path: &Path,
        ours: &Bytes,
        error: object_store::Error,
    ) -> Result<Stamp, StoreError> {
        let error = classify(path, error).in_doubt();
        match (self.read_back(path, ours).await, error) {
            (Ok(Some(stamp)), _) => Ok(stamp),
            (Ok(None), error) => Err(error),
            (Err(read), StoreError::Conflict { key }) => match read {
                StoreError::Unavailable { cause, .. } | StoreError::Throttled { cause, .. } => {
                    Err(StoreError::Unknown { key, cause })
                }
                read => Err(read),
            },
            (Err(_), error) => Err(error),
        }
    }

    /// The state of the object if its bytes are `ours`.
    async fn read_back(&self, path: &Path, ours: &Bytes) -> Result<Option<Stamp>, StoreError> {
        let found = self.get_whole(path, MAX_BYTES).await?;
        Ok(found.filter(|object| object.bytes == *ours).map(|object| self.stamp(&object)))
    }

    async fn set_under_lock(
        self,
        directory: Arc<Directory>,
        path: Path,
        objects: Vec<(Path, Bytes)>,
        expected: Stamp,
    ) -> Result<Stamp, StoreError> {
        let _lock = directory.lock(&path).await?;
        let found = self.get_whole(&path, MAX_BYTES).await?;
        if expected != found.map_or(Stamp::Absent, |object: Object| self.stamp(&object)) {
            return Err(conflict(&path));
        }
        let (_, bytes) = objects.last().expect("the object itself is the last");
        let stamp = Stamp::of_bytes(bytes);
        self.put_in_order(objects).await.map_err(StoreError::in_doubt)?;
        Ok(stamp)
    }
}

fn conflict(path: &Path) -> StoreError {
    StoreError::Conflict { key: path.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faulty::Fault;

    #[tokio::test]
    async fn a_lost_answer_is_recognised_as_our_own_success() {
        let (store, _) = Store::faulty(Fault::LosesAnswers);
        let path = Path::from("record");
        let first = store.compare_and_set(&path, "1".into(), &Stamp::Absent).await.unwrap();
        store.compare_and_set(&path, "2".into(), &first).await.unwrap();
        let stale = store.compare_and_set(&path, "3".into(), &first).await;
        assert!(matches!(stale, Err(StoreError::Conflict { .. })), "{stale:?}");
    }

    #[tokio::test]
    async fn a_write_without_an_answer_is_in_doubt() {
        let (store, _) = Store::faulty(Fault::Fails);
        let path = Path::from("record");
        let put = store.compare_and_set(&path, "1".into(), &Stamp::Absent).await;
        assert!(matches!(put, Err(StoreError::Unknown { .. })), "{put:?}");
    }
}
