//! Reading blobs.

use crate::{
    Backend, Store,
    error::StoreError,
    identity::Identity,
    key::Key,
    read::{self, Chunks},
};
use bytes::Bytes;
use hydrant_proto::Digest;
use object_store::{GetOptions, GetRange, GetResult, path::Path};
use std::{ops::Range, time::Duration};
use url::Url;

/// A blob of at most this many bytes is verified before its first byte is passed on.
const VERIFIED_FIRST: u64 = 256 * 1024;

/// Stored bytes on their way.
pub struct BlobRead {
    /// Size of the whole blob in bytes.
    pub size: u64,
    /// The bytes that follow. Empty when the range asked for begins at or behind the end.
    pub range: Range<u64>,
    /// A whole blob ends cleanly only when it hashed to its digest; its last bytes are held back
    /// until then. A part of a blob is as storage has it, but never shorter than `range`; the first
    /// such read in a process makes the whole be verified in the background. After an error
    /// nothing follows.
    pub stream: Chunks,
}

impl Store {
    /// Size of a blob in bytes, or `None` when it is not there. An empty object under another
    /// digest than that of no bytes is damage and counts as not there, so that it is written again.
    pub async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let meta = self.head(&self.at(Key::Blob(digest))).await?;
        Ok(meta.map(|meta| meta.size).filter(|size| is_possible(digest, *size)))
    }

    /// Whether the blob is there with this size in bytes. One of another size is damage: it counts
    /// as not there, so that it is written again.
    pub async fn has_blob(&self, digest: &Digest, size: u64) -> Result<bool, StoreError> {
        let found = self.blob_size(digest).await?;
        if let Some(found) = found.filter(|found| *found != size) {
            tracing::error!(%digest, size_bytes = found, expected_bytes = size, "blob of wrong size");
        }
        Ok(found == Some(size))
    }

    /// Opens a blob, or bytes `range` of it; an end behind the blob's is moved to it, and
    /// `start..u64::MAX` means to the end. `None` when the blob is not there; a small one that is
    /// damaged is quarantined and then not there.
    pub async fn read_blob(
        &self,
        digest: &Digest,
        range: Option<Range<u64>>,
    ) -> Result<Option<BlobRead>, StoreError> {
        let path = self.at(Key::Blob(digest));
        if let Some(range) = range {
            return self.read_part(digest, path, range).await;
        }
        let Some(opened) = self.get(&path, GetOptions::default()).await? else {
            return Ok(None);
        };
        match opened.meta.size {
            size if !is_possible(digest, size) => Ok(None),
            size if size <= VERIFIED_FIRST => self.read_small(digest).await,
            _ => Ok(Some(self.read_large(digest, path, opened))),
        }
    }

    /// A URL by which a client may read the blob from storage itself until `ttl` is over; `None`
    /// when the store cannot sign. Valid for GET only, and whether the blob is there is not asked.
    pub async fn presign(&self, digest: &Digest, ttl: Duration) -> Result<Option<Url>, StoreError> {
        match &self.backend {
            Backend::S3(s3) => s3.presign(&self.at(Key::Blob(digest)), ttl).await.map(Some),
            Backend::Directory(_) | Backend::Memory => Ok(None),
        }
    }

    fn read_large(&self, digest: &Digest, path: Path, opened: GetResult) -> BlobRead {
        let (size, read) = (opened.meta.size, Identity::settled(&opened));
        let chunks = read::resumed(self.clone(), path, opened, 0..size);
        let (store, of) = (self.clone(), digest.clone());
        let judge = move |is_sound| match is_sound {
            true => store.sound.learn(&of, read),
            false => store.scrub_in_background(&of),
        };
        let stream = read::verified(chunks, digest.clone(), judge);
        BlobRead { size, range: 0..size, stream }
    }

    async fn read_small(&self, digest: &Digest) -> Result<Option<BlobRead>, StoreError> {
        let bytes = self.read_verified(digest, VERIFIED_FIRST).await?;
        Ok(bytes.map(|bytes| {
            let size = bytes.len() as u64;
            BlobRead { size, range: 0..size, stream: one(bytes) }
        }))
    }

    async fn read_part(
        &self,
        digest: &Digest,
        path: Path,
        range: Range<u64>,
    ) -> Result<Option<BlobRead>, StoreError> {
        if range.is_empty() {
            return self.read_nothing(digest, Ok(None)).await;
        }
        let asked = match range.end {
            u64::MAX => GetRange::Offset(range.start),
            _ => GetRange::Bounded(range),
        };
        let options = GetOptions { range: Some(asked.clone()), ..GetOptions::default() };
        match self.get(&path, options).await {
            Ok(Some(opened)) if !is_possible(digest, opened.meta.size) => Ok(None),
            Ok(Some(opened)) => {
                self.scrub_once(digest, &opened);
                let (size, range) = (opened.meta.size, opened.range.clone());
                let chunks = read::resumed(self.clone(), path, opened, range.clone());
                Ok(Some(BlobRead { size, range, stream: Box::pin(chunks) }))
            }
            Ok(None) => Ok(None),
            Err(error) => self.read_behind_end(digest, &asked, error).await,
        }
    }

    /// Stores answer a range behind the end with different errors: the size tells.
    async fn read_behind_end(
        &self,
        digest: &Digest,
        asked: &GetRange,
        error: StoreError,
    ) -> Result<Option<BlobRead>, StoreError> {
        let start = match asked {
            GetRange::Offset(start) => *start,
            GetRange::Bounded(range) => range.start,
            GetRange::Suffix(_) => return Err(error),
        };
        match self.blob_size(digest).await? {
            Some(size) if start < size => Err(error),
            size => self.read_nothing(digest, Ok(size)).await,
        }
    }

    async fn read_nothing(
        &self,
        digest: &Digest,
        known: Result<Option<u64>, StoreError>,
    ) -> Result<Option<BlobRead>, StoreError> {
        let size = match known? {
            Some(size) => Some(size),
            None => self.blob_size(digest).await?,
        };
        Ok(size.map(|size| BlobRead { size, range: size..size, stream: one(Bytes::new()) }))
    }
}

fn one(bytes: Bytes) -> Chunks {
    Box::pin(futures::stream::iter((!bytes.is_empty()).then_some(Ok(bytes))))
}

/// Whether an object of this size can be what its digest says.
pub(crate) fn is_possible(digest: &Digest, size: u64) -> bool {
    let possible = size > 0 || digest.matches(b"");
    if !possible {
        tracing::error!(%digest, "empty object at a content key");
    }
    possible
}
