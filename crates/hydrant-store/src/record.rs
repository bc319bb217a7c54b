//! hydrant's own records: JSON documents, read and written whole, changed by compare-and-set where
//! several writers meet.

use crate::{backend::Backend, error::StoreError, key::Key};
use bytes::Bytes;
use hydrant_proto::Digest;
use object_store::{PutMode, UpdateVersion, path::Path};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{File, OpenOptions},
    io,
    path::PathBuf,
};
use tokio::task::spawn_blocking;

/// Largest record read, in bytes.
const MAX_RECORD_BYTES: u64 = 1024 * 1024;

/// The version of a record that was read; a write with it succeeds only if it is still the newest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(Seen);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    /// Stores with conditional writes.
    Object { e_tag: Option<String>, version: Option<String> },
    /// A directory: the content itself. Records that change carry a nonce, so none recurs.
    Content(Digest),
}

impl Backend {
    pub async fn read_record<T: DeserializeOwned>(
        &self,
        key: Key<'_>,
    ) -> Result<Option<(T, Version)>, StoreError> {
        let path = key.path();
        let Some((bytes, meta)) = self.read_path(&path, MAX_RECORD_BYTES).await? else {
            return Ok(None);
        };
        let version = match self.directory {
            Some(_) => Seen::Content(Digest::of(&bytes)),
            None => Seen::Object { e_tag: meta.e_tag, version: meta.version },
        };
        Ok(Some((parse(&path, &bytes)?, Version(version))))
    }

    /// Reads a record found by listing; `None` if it was removed meanwhile.
    pub async fn read_listed<T: DeserializeOwned>(
        &self,
        path: &Path,
    ) -> Result<Option<T>, StoreError> {
        let read = self.read_path(path, MAX_RECORD_BYTES).await?;
        read.map(|(bytes, _)| parse(path, &bytes)).transpose()
    }

    /// Writes a record, whatever is there.
    pub async fn write_record(
        &self,
        key: Key<'_>,
        record: &impl Serialize,
    ) -> Result<(), StoreError> {
        self.write(key, json(record).into()).await
    }

    /// Writes a record if it is still as `expected` says; `None` expects that there is none.
    ///
    /// When storage does not say what came of the write, the record is read back: if it is this
    /// one, by its nonce, the write succeeded.
    pub async fn swap_record(
        &self,
        key: Key<'_>,
        record: &impl Serialize,
        expected: Option<Version>,
    ) -> Result<(), StoreError> {
        let (path, bytes) = (key.path(), json(record));
        let outcome = match (&self.directory, expected.map(|version| version.0)) {
            (Some(root), expected) => {
                self.swap_locked(root.clone(), &path, bytes.clone(), expected).await
            }
            (None, None) => self.put_opts(&path, bytes.clone(), PutMode::Create).await.map(drop),
            (None, Some(Seen::Object { e_tag, version })) => {
                let mode = PutMode::Update(UpdateVersion { e_tag, version });
                self.put_opts(&path, bytes.clone(), mode).await.map(drop)
            }
            (None, Some(Seen::Content(_))) => Err(StoreError::Conflict { key: path.to_string() }),
        };
        match outcome {
            Err(error @ (StoreError::Conflict { .. } | StoreError::Unavailable { .. })) => {
                let now = self.read_path(&path, MAX_RECORD_BYTES).await;
                if now.is_ok_and(|now| now.is_some_and(|(now, _)| now == bytes)) {
                    return Ok(());
                }
                Err(error)
            }
            other => other,
        }
    }

    /// Compare-and-set in a directory: read, compare and rename under a lock that all processes of
    /// the directory take.
    async fn swap_locked(
        &self,
        root: PathBuf,
        path: &Path,
        bytes: Bytes,
        expected: Option<Seen>,
    ) -> Result<(), StoreError> {
        let lock = lock(root, path).await.map_err(|error| StoreError::Unavailable {
            operation: "lock",
            key: path.to_string(),
            source: object_store::Error::Generic { store: "directory", source: error.into() },
        })?;
        let now = self.read_path(path, MAX_RECORD_BYTES).await?;
        let now = now.map(|(bytes, _)| Seen::Content(Digest::of(&bytes)));
        if now != expected {
            return Err(StoreError::Conflict { key: path.to_string() });
        }
        self.put_opts(path, bytes, PutMode::Overwrite).await?;
        drop(lock);
        Ok(())
    }
}

/// Takes the lock of `path`, one of 256; it is released when the file is dropped.
async fn lock(root: PathBuf, path: &Path) -> io::Result<File> {
    let shard = Digest::of(path.as_ref().as_bytes()).hex()[..2].to_owned();
    let take = move || {
        let dir = root.join("hydrant/v1/locks");
        std::fs::create_dir_all(&dir)?;
        let file = OpenOptions::new().create(true).append(true).open(dir.join(shard))?;
        file.lock()?;
        Ok(file)
    };
    spawn_blocking(take).await.expect("taking a lock does not panic")
}

fn json(record: &impl Serialize) -> Bytes {
    serde_json::to_vec(record).expect("records hold only strings, numbers and lists").into()
}

fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes)
        .map_err(|source| StoreError::Record { key: path.to_string(), source })
}
