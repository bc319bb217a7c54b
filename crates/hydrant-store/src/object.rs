//! Single objects: read, written, deleted, listed; timed, and with errors named.

use crate::{
    Backend, Store,
    batch::Existing,
    cas::Stamp,
    error::{StoreError, classify, is_absence, is_conflict},
    identity::Identity,
    key::Key,
    warm::read_cached,
};
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use hydrant_telemetry::{
    metrics,
    metrics::{StoreOperation, StoreOutcome},
};
use jiff::Timestamp;
use object_store::{
    GetOptions, GetResult, ListResult, ObjectMeta, ObjectStoreExt, PutMode, path::Path,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Longest record or link, in bytes. A completion record with 1,000 platforms stays below.
const MAX_RECORD_BYTES: u64 = 1024 * 1024;
/// Records read at once by a listing.
const READ_AHEAD: usize = 8;

/// An object read whole.
pub(crate) struct Object {
    pub bytes: Bytes,
    pub meta: ObjectMeta,
    /// The file that was read, when it was one.
    pub file: Option<Identity>,
}

/// A record as it lies in storage.
pub(crate) enum Stored<T> {
    Readable(T, Stamp),
    /// Something lies there that is no such record: damaged, or of another version.
    Unreadable(Object),
}

impl<T> Stored<T> {
    pub(crate) fn readable(self) -> Option<(T, Stamp)> {
        match self {
            Self::Readable(record, stamp) => Some((record, stamp)),
            Self::Unreadable(_) => None,
        }
    }
}

impl Store {
    /// The full key, prefix included.
    pub(crate) fn at(&self, key: Key<'_>) -> Path {
        self.below(&key.path())
    }

    /// A full key from one without the prefix. All parts are names from checked grammars.
    pub(crate) fn below(&self, path: &str) -> Path {
        let path = Path::parse(path).expect("keys are made of checked names");
        self.prefix.parts().chain(path.parts()).collect()
    }

    pub(crate) async fn head(&self, path: &Path) -> Result<Option<ObjectMeta>, StoreError> {
        let found = timed(StoreOperation::Head, self.objects.head(path)).await;
        present(path, found)
    }

    /// Opens an object for reading. Its bytes follow as they are polled.
    pub(crate) async fn get(
        &self,
        path: &Path,
        options: GetOptions,
    ) -> Result<Option<GetResult>, StoreError> {
        let found = timed(StoreOperation::Get, self.objects.get_opts(path, options)).await;
        present(path, found)
    }

    /// Reads an object of at most `limit` bytes; a longer one is not what the caller looks for.
    pub(crate) async fn get_whole(
        &self,
        path: &Path,
        limit: u64,
    ) -> Result<Option<Object>, StoreError> {
        let Some(found) = self.get(path, GetOptions::default()).await? else {
            return Ok(None);
        };
        let (meta, file) = (found.meta.clone(), Identity::settled(&found));
        if meta.size > limit {
            return Ok(None);
        }
        let bytes = match read_cached(&found) {
            Some(bytes) => bytes,
            None => found.bytes().await.map_err(|error| classify(path, error))?,
        };
        if bytes.len() as u64 != meta.size {
            let cause = format!("{} bytes came where {} were announced", bytes.len(), meta.size);
            let cause = Arc::new(std::io::Error::other(cause));
            return Err(StoreError::Unavailable { key: path.to_string(), cause });
        }
        Ok(Some(Object { bytes, meta, file }))
    }

    /// Writes an object. With [`PutMode::Create`] an existing one is a conflict.
    pub(crate) async fn put(
        &self,
        path: &Path,
        bytes: Bytes,
        mode: PutMode,
    ) -> Result<(), StoreError> {
        let put = async {
            match (&self.backend, Existing::of(&mode)) {
                (Backend::Directory(directory), Some(existing)) => {
                    directory.write(vec![(path.clone(), bytes)], existing).await
                }
                _ => self.objects.put_opts(path, bytes.into(), mode.into()).await.map(drop),
            }
        };
        timed(StoreOperation::Put, put).await.map_err(|error| classify(path, error))
    }

    /// Writes objects, each of which speaks of those before it: none is there without them.
    pub(crate) async fn put_in_order(&self, objects: Vec<(Path, Bytes)>) -> Result<(), StoreError> {
        let Some((last, _)) = objects.last().cloned() else { return Ok(()) };
        match &self.backend {
            Backend::Directory(directory) => {
                let put = directory.write(objects, Existing::Replace);
                let put = timed(StoreOperation::Put, put).await;
                put.map_err(|error| classify(&last, error))
            }
            Backend::S3(_) | Backend::Memory => {
                for (path, bytes) in objects {
                    self.put(&path, bytes, PutMode::Overwrite).await?;
                }
                Ok(())
            }
        }
    }

    /// Deletes an object; one that is not there is no failure.
    pub(crate) async fn delete(&self, path: &Path) -> Result<(), StoreError> {
        let deleted = timed(StoreOperation::Delete, self.objects.delete(path)).await;
        present(path, deleted).map(drop)
    }

    /// What lies directly below a full key.
    pub(crate) async fn list_directory(&self, path: &Path) -> Result<ListResult, StoreError> {
        let listed = self.objects.list_with_delimiter(Some(path));
        timed(StoreOperation::List, listed).await.map_err(|error| classify(path, error))
    }

    /// Everything below a full key.
    pub(crate) fn list_all(
        &self,
        path: Path,
    ) -> impl Stream<Item = Result<ObjectMeta, StoreError>> + Send + use<> {
        self.objects.list(Some(&path)).map_err(move |error| classify(&path, error))
    }

    pub(crate) async fn put_json<T: Serialize>(
        &self,
        path: &Path,
        record: &T,
        mode: PutMode,
    ) -> Result<(), StoreError> {
        self.put(path, to_json(record), mode).await
    }

    /// A record for a caller who can do without it when it is damaged, and then replaces it; the
    /// damage is logged here.
    pub(crate) async fn get_record<T: DeserializeOwned>(
        &self,
        path: &Path,
    ) -> Result<Option<Stored<T>>, StoreError> {
        let Some(object) = self.get_whole(path, MAX_RECORD_BYTES).await? else {
            return Ok(None);
        };
        Ok(Some(match serde_json::from_slice(&object.bytes) {
            Ok(record) => Stored::Readable(record, self.stamp(&object)),
            Err(error) => {
                tracing::error!(key = %path, %error, "record is not readable, doing without it");
                Stored::Unreadable(object)
            }
        }))
    }

    pub(crate) async fn get_json<T: DeserializeOwned>(
        &self,
        path: &Path,
    ) -> Result<Option<(T, Stamp)>, StoreError> {
        let Some(object) = self.get_whole(path, MAX_RECORD_BYTES).await? else {
            return Ok(None);
        };
        let stamp = self.stamp(&object);
        let record = serde_json::from_slice(&object.bytes).map_err(|error| {
            let reason = format!("record `{path}` is not readable by this version: {error}");
            StoreError::Refused { reason }
        })?;
        Ok(Some((record, stamp)))
    }

    /// A small text object, such as a link.
    pub(crate) async fn get_text(
        &self,
        path: &Path,
    ) -> Result<Option<(String, Stamp)>, StoreError> {
        let object = self.get_whole(path, MAX_RECORD_BYTES).await?;
        Ok(object.map(|object| {
            let stamp = self.stamp(&object);
            (String::from_utf8_lossy(&object.bytes).into_owned(), stamp)
        }))
    }

    /// Every readable record below a key. Those that vanish meanwhile are left out; those that
    /// cannot be read are left out and logged, so that one of them does not hide the others.
    pub(crate) fn records<T: DeserializeOwned + Send + 'static>(
        &self,
        below: String,
        older_than: Option<Duration>,
    ) -> impl Stream<Item = Result<T, StoreError>> + Send + use<T> {
        let store = self.clone();
        self.list_all(self.below(&below))
            .try_filter(move |meta| {
                let old = older_than.is_none_or(|limit| age(meta) >= limit);
                std::future::ready(old)
            })
            .map_ok(move |meta| {
                let store = store.clone();
                async move {
                    match store.get_json::<T>(&meta.location).await {
                        Ok(record) => Ok(record.map(|(record, _)| record)),
                        Err(StoreError::Refused { reason }) => {
                            tracing::warn!(reason, "record left out");
                            Ok(None)
                        }
                        Err(error) => Err(error),
                    }
                }
            })
            .try_buffer_unordered(READ_AHEAD)
            .try_filter_map(async |record| Ok(record))
    }

    /// What a conditional write compares with: the ETag, or on a directory, which has none that
    /// can be trusted within a clock tick, the hash of the bytes.
    pub(crate) fn stamp(&self, object: &Object) -> Stamp {
        match &self.backend {
            Backend::Directory(_) => Stamp::of_bytes(&object.bytes),
            Backend::S3(_) | Backend::Memory => match &object.meta.e_tag {
                Some(tag) => Stamp::Is(tag.clone()),
                None => Stamp::of_bytes(&object.bytes),
            },
        }
    }
}

pub(crate) fn to_json<T: Serialize>(record: &T) -> Bytes {
    serde_json::to_vec(record).expect("records hold only strings, numbers, lists and maps").into()
}

/// How long ago the object was written, by the store's clock against ours.
pub(crate) fn age(meta: &ObjectMeta) -> Duration {
    let millis = Timestamp::now().as_millisecond() - meta.last_modified.timestamp_millis();
    Duration::from_millis(u64::try_from(millis).unwrap_or_default())
}

fn present<T>(path: &Path, found: object_store::Result<T>) -> Result<Option<T>, StoreError> {
    match found {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_absence(&error) => Ok(None),
        Err(error) => Err(classify(path, error)),
    }
}

/// Counts and times one request to the store.
pub(crate) async fn timed<T>(
    operation: StoreOperation,
    request: impl Future<Output = object_store::Result<T>>,
) -> object_store::Result<T> {
    let start = Instant::now();
    let answer = request.await;
    metrics().store.done(operation, outcome(&answer), start.elapsed());
    answer
}

fn outcome<T>(answer: &object_store::Result<T>) -> StoreOutcome {
    match answer {
        Ok(_) => StoreOutcome::Ok,
        Err(error) if is_absence(error) => StoreOutcome::Missing,
        Err(error) if is_conflict(error) => StoreOutcome::Conflict,
        Err(error) if error.to_string().contains("status code: 503") => StoreOutcome::Throttled,
        Err(object_store::Error::Generic { .. }) => StoreOutcome::Unavailable,
        Err(_) => StoreOutcome::Error,
    }
}
