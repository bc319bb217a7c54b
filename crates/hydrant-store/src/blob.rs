//! Blobs: what is there, reading it, and the links that make it readable in a repository.

use crate::{Store, error::StoreError, key::Key};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use hydrant_proto::{Digest, RepositoryName};
use hydrant_telemetry::metrics::StoreOperation;
use object_store::{GetResult, GetResultPayload};
use std::{fs::File, ops::Range, os::unix::fs::FileExt, sync::Arc, time::Duration};
use tokio::task::spawn_blocking;
use url::Url;

/// Bytes read from a file at a time.
const BLOCK: u64 = 256 * 1024;

/// An open blob.
pub struct BlobRead {
    /// Size of the whole blob in bytes.
    pub size: u64,
    /// The bytes asked for. Ends with an error when storage breaks off.
    pub stream: BoxStream<'static, Result<Bytes, StoreError>>,
}

impl Store {
    /// Size in bytes of a blob or manifest, whoever may read it.
    pub async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        self.backend.size(Key::Content(digest)).await
    }

    /// Whether `repository` may read the blob.
    pub async fn has_link(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<bool, StoreError> {
        self.backend.exists(Key::LayerLink(repository, digest)).await
    }

    /// Lets `repository` read the blob, which must be stored.
    pub async fn link_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<(), StoreError> {
        let link = digest.to_string().into();
        self.backend.write(Key::LayerLink(repository, digest), link).await
    }

    /// Opens a blob, or the part of it that `range` names; the range must lie within the blob.
    pub async fn read_blob(
        &self,
        digest: &Digest,
        range: Option<Range<u64>>,
    ) -> Result<Option<BlobRead>, StoreError> {
        let opened = self.backend.open(Key::Content(digest), range).await?;
        Ok(opened
            .map(|result| BlobRead { size: result.meta.size, stream: bytes_of(digest, result) }))
    }

    /// A URL at which anybody can GET the blob for `ttl`; `None` where the store cannot sign.
    /// HEAD needs another signature, so HEAD is not to be redirected.
    pub async fn presign(&self, digest: &Digest, ttl: Duration) -> Result<Option<Url>, StoreError> {
        let Some(signer) = &self.backend.signer else { return Ok(None) };
        let path = Key::Content(digest).path();
        let sign = signer.signed_url(http::Method::GET, &path, ttl);
        crate::backend::timed(StoreOperation::Presign, "presign", &path, sign).await.map(Some)
    }

    /// Removes damaged content from where it is served, keeping it for inspection.
    pub async fn quarantine(&self, digest: &Digest) -> Result<(), StoreError> {
        let (from, to) = (Key::Content(digest).path(), Key::Quarantine(digest).path());
        let copy = self.backend.objects.copy_opts(&from, &to, object_store::CopyOptions::default());
        crate::backend::timed(StoreOperation::Put, "quarantine", &to, copy).await?;
        tracing::error!(%digest, "stored content is damaged and was put into quarantine");
        self.backend.delete(&from).await
    }
}

fn bytes_of(digest: &Digest, result: GetResult) -> BoxStream<'static, Result<Bytes, StoreError>> {
    let range = result.range.clone();
    let fail = {
        let key = digest.to_string();
        move |source| StoreError::Unavailable { operation: "read", key: key.clone(), source }
    };
    match result.payload {
        GetResultPayload::File(file, _) => blocks(Arc::new(file), range).map_err(fail).boxed(),
        GetResultPayload::Stream(stream) => {
            let wanted = range.end - range.start;
            whole(stream, wanted).map_err(fail).boxed()
        }
    }
}

/// A file in blocks large enough that the hand-over to a thread does not matter.
fn blocks(
    file: Arc<File>,
    range: Range<u64>,
) -> impl futures::Stream<Item = object_store::Result<Bytes>> + Send {
    stream::try_unfold((file, range), |(file, left)| async move {
        if left.is_empty() {
            return Ok(None);
        }
        let length = usize::try_from((left.end - left.start).min(BLOCK)).expect("at most a block");
        let (source, at) = (file.clone(), left.start);
        let read = move || {
            let mut block = BytesMut::zeroed(length);
            source.read_exact_at(&mut block, at).map(|()| block.freeze())
        };
        let block = spawn_blocking(read)
            .await
            .expect("reading does not panic")
            .map_err(|e| object_store::Error::Generic { store: "directory", source: e.into() })?;
        let next = at + length as u64..left.end;
        Ok(Some((block, (file, next))))
    })
}

/// Turns a stream that ends early into one that ends with an error.
fn whole(
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    wanted: u64,
) -> impl futures::Stream<Item = object_store::Result<Bytes>> + Send {
    stream::try_unfold((stream, wanted), |(mut stream, wanted)| async move {
        match stream.try_next().await? {
            Some(bytes) => {
                let left = wanted.saturating_sub(bytes.len() as u64);
                Ok(Some((bytes, (stream, left))))
            }
            None if wanted == 0 => Ok(None),
            None => {
                let source = format!("the answer ended {wanted} bytes early").into();
                Err(object_store::Error::Generic { store: "object store", source })
            }
        }
    })
}
