//! Writing a blob: hashed while it is sent, visible only when size and digest agree.

use crate::{
    Backend, Store,
    error::StoreError,
    key::Key,
    upload::{PART_BYTES, Upload},
};
use bytes::{Bytes, BytesMut};
use hydrant_proto::{Digest, Hasher};
use object_store::{PutMode, path::Path};
use std::sync::Arc;
use tokio::task::spawn_blocking;

/// A blob being written. Dropped without [`BlobWriter::commit`] it is aborted in the background;
/// [`Store::settled`] waits for that.
pub struct BlobWriter {
    store: Store,
    digest: Digest,
    expected_size: Option<u64>,
    hasher: Hasher,
    written: u64,
    /// Less than one part.
    buffer: BytesMut,
    /// Begun with the first full part; a smaller blob is one plain write.
    upload: Option<Upload>,
}

impl Store {
    /// Begins to write a blob. No request is made before the first full part. With
    /// `expected_size` (bytes) a blob that grows beyond it is refused at once.
    pub fn begin_blob(&self, digest: &Digest, expected_size: Option<u64>) -> BlobWriter {
        BlobWriter {
            store: self.clone(),
            digest: digest.clone(),
            expected_size,
            hasher: Hasher::new(digest.algorithm()),
            written: 0,
            buffer: BytesMut::new(),
            upload: None,
        }
    }

    /// Writes a small blob at once, after checking it.
    pub async fn put_blob_bytes(&self, digest: &Digest, bytes: Bytes) -> Result<(), StoreError> {
        if !digest.matches(&bytes) {
            return Err(mismatch(digest, "its bytes hash to another digest"));
        }
        self.put(&self.at(Key::Blob(digest)), bytes, PutMode::Overwrite).await
    }
}

impl Store {
    /// Whether the blob is there with this size in bytes, durably: a write that failed at its last
    /// sync is visible all the same, and not to be announced.
    pub async fn keeps_blob(&self, digest: &Digest, size: u64) -> Result<bool, StoreError> {
        let is_there = self.has_blob(digest, size).await?;
        if is_there {
            self.make_durable(&self.at(Key::Blob(digest))).await?;
        }
        Ok(is_there)
    }

    /// What is visible on S3 is durable.
    async fn make_durable(&self, path: &Path) -> Result<(), StoreError> {
        let Backend::Directory(directory) = &self.backend else { return Ok(()) };
        let (directory, key) = (directory.clone(), path.to_string());
        let synced = spawn_blocking(move || directory.make_durable(&key)).await;
        synced.expect("syncing does not panic").map_err(|error| StoreError::Unavailable {
            key: path.to_string(),
            cause: Arc::new(error),
        })
    }
}

impl BlobWriter {
    /// Bytes taken so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Takes the next bytes; waits while too many parts are under way. After an error the blob
    /// cannot be committed.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), StoreError> {
        self.written += bytes.len() as u64;
        if self.expected_size.is_some_and(|size| self.written > size) {
            return Err(mismatch(&self.digest, "it is longer than announced"));
        }
        self.hasher.update(&bytes);
        while self.buffer.len() + bytes.len() >= PART_BYTES {
            let part = self.fill(&mut bytes);
            self.send(part).await?;
        }
        self.buffer.extend_from_slice(&bytes);
        Ok(())
    }

    /// Verifies size and digest, and only then makes the blob visible. Returns its size in bytes.
    /// After an error nothing of this writer is visible, except after [`StoreError::Unknown`].
    pub async fn commit(mut self) -> Result<u64, StoreError> {
        if let Err(error) = self.verify() {
            self.abort().await;
            return Err(error);
        }
        let (path, rest) = (self.store.at(Key::Blob(&self.digest)), self.buffer.split().freeze());
        let Some(upload) = self.upload.take() else {
            self.store.put(&path, rest, PutMode::Overwrite).await.map_err(StoreError::in_doubt)?;
            return Ok(self.written);
        };
        complete(&self.store, &path, upload, rest, self.written).await
    }

    /// Gives the blob up and waits until nothing of it is left.
    pub async fn abort(mut self) {
        if let Some(upload) = self.upload.take() {
            upload.abort().await;
        }
    }

    /// One full part: what is buffered and the beginning of `bytes`. A part that needs no
    /// buffering is not copied.
    fn fill(&mut self, bytes: &mut Bytes) -> Bytes {
        let head = bytes.split_to(PART_BYTES - self.buffer.len());
        if self.buffer.is_empty() {
            return head;
        }
        self.buffer.extend_from_slice(&head);
        std::mem::take(&mut self.buffer).freeze()
    }

    async fn send(&mut self, part: Bytes) -> Result<(), StoreError> {
        let upload = match &mut self.upload {
            Some(upload) => upload,
            None => {
                let path = self.store.at(Key::Blob(&self.digest));
                self.upload.insert(Upload::begin(&self.store, path).await?)
            }
        };
        upload.room().await?;
        upload.put(self.store.parts.count(part).await).await
    }

    fn verify(&self) -> Result<(), StoreError> {
        if self.expected_size.is_some_and(|size| size != self.written) {
            return Err(mismatch(&self.digest, "it is shorter than announced"));
        }
        if self.hasher.clone().finish() != self.digest {
            return Err(mismatch(&self.digest, "its bytes hash to another digest"));
        }
        Ok(())
    }
}

/// Sends the rest of an upload of `size` bytes and makes it visible.
pub(crate) async fn complete(
    store: &Store,
    path: &Path,
    mut upload: Upload,
    rest: Bytes,
    size: u64,
) -> Result<u64, StoreError> {
    let sent = async {
        if !rest.is_empty() {
            upload.put(rest).await?;
        }
        upload.parts_stored().await
    };
    if let Err(error) = sent.await {
        upload.failed(&error).await;
        return Err(error);
    }
    let completed = upload.complete().await;
    // An answer may be lost after the object was written, and a success may be none.
    match (store.head(path).await?, completed) {
        (Some(meta), Ok(())) if meta.size == size => Ok(size),
        (Some(meta), Err(_)) if meta.size == size => {
            store.make_durable(path).await.map(|()| size).map_err(StoreError::in_doubt)
        }
        (_, Err(error)) => Err(error),
        (found, Ok(())) => Err(not_whole(path, found.map(|meta| meta.size), size)),
    }
}

fn mismatch(digest: &Digest, reason: &str) -> StoreError {
    StoreError::Mismatch { digest: digest.clone(), reason: reason.to_owned() }
}

fn not_whole(path: &Path, found: Option<u64>, written: u64) -> StoreError {
    let text = format!("completed with {found:?} of {written} bytes");
    let cause = Arc::new(std::io::Error::other(text));
    StoreError::Unavailable { key: path.to_string(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{StoreConfig, StoreUrl, directory::broken};

    #[tokio::test]
    async fn a_blob_whose_last_sync_failed_is_visible_and_counts_only_once_it_is_durable() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let store = Store::open(&StoreConfig::from_env(StoreUrl::Directory(root.clone()))).unwrap();
        let bytes = Bytes::from(vec![7; PART_BYTES + 1]);
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        let mut writer = store.begin_blob(&digest, Some(size));
        writer.write(bytes).await.unwrap();
        broken::break_below(&root);
        let committed = writer.commit().await;
        assert!(matches!(committed, Err(StoreError::Unknown { .. })), "{committed:?}");
        assert!(store.has_blob(&digest, size).await.unwrap(), "it is visible");
        assert!(store.keeps_blob(&digest, size).await.is_err());
        broken::mend_all_below(&root);
        assert!(store.keeps_blob(&digest, size).await.unwrap());
    }
}
