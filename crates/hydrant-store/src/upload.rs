//! Writing a blob: hashed on the way, visible under its digest only when size and digest agree.
//!
//! Small blobs are one PUT. Larger ones are multipart uploads, whose ids are recorded where the
//! store keeps parts of its own, so that those of a process that died are found and aborted.

use crate::{
    Store,
    backend::{Backend, timed},
    error::StoreError,
    key::{Key, UPLOADS},
};
use bytes::Bytes;
use futures::{TryStreamExt, future::BoxFuture};
use hydrant_proto::{Digest, Hasher};
use hydrant_telemetry::metrics::StoreOperation;
use jiff::Timestamp;
use object_store::{
    MultipartUpload, ObjectStoreExt, PutPayload,
    multipart::{MultipartStore, PartId},
    path::Path,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use ulid::Ulid;

/// Bytes of a part. A blob up to this size is one PUT.
pub const PART_BYTES: usize = 8 * 1024 * 1024;
/// Parts in memory at once, over all uploads of the process.
pub(crate) const PARTS: usize = 6;
/// How often a long upload shows that it is alive.
const REFRESH: Duration = Duration::from_secs(120);
/// After so long without a sign of life an upload is taken for dead. Much more than [`REFRESH`].
pub const UPLOAD_DEAD_AFTER: Duration = Duration::from_secs(15 * 60);

/// An upload under way. Dropping it aborts it.
pub struct BlobWriter {
    backend: Backend,
    budget: Arc<Semaphore>,
    digest: Digest,
    expected: Option<u64>,
    /// `None` after commit.
    hasher: Option<Hasher>,
    written: u64,
    part: Vec<Bytes>,
    part_bytes: usize,
    permit: Option<OwnedSemaphorePermit>,
    parts: Option<Parts>,
}

/// A record of a multipart upload under way.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct UploadRecord {
    digest: Digest,
    upload: String,
    seen_at: Timestamp,
}

impl Store {
    /// Begins to write the blob `digest`, of `expected` bytes if that is known.
    pub async fn begin_blob(
        &self,
        digest: &Digest,
        expected: Option<u64>,
    ) -> Result<BlobWriter, StoreError> {
        Ok(BlobWriter {
            backend: self.backend.clone(),
            budget: self.part_budget.clone(),
            digest: digest.clone(),
            expected,
            hasher: Some(Hasher::new(digest.algorithm())),
            written: 0,
            part: Vec::new(),
            part_bytes: 0,
            permit: None,
            parts: None,
        })
    }

    /// Aborts multipart uploads that have shown no sign of life for `dead_after`, and removes
    /// staging files as old. Returns how many there were.
    pub async fn sweep_uploads(&self, dead_after: Duration) -> Result<usize, StoreError> {
        let staged = self.sweep_staging(dead_after).await;
        let Some(multipart) = &self.backend.multipart else { return Ok(staged) };
        let mut swept = staged;
        let mut listed = self.backend.list(UPLOADS);
        while let Some(meta) = listed.try_next().await? {
            let path = meta.location;
            let Some(record) = self.backend.read_listed::<UploadRecord>(&path).await? else {
                continue;
            };
            let silent = Timestamp::now().duration_since(record.seen_at).unsigned_abs();
            if silent >= dead_after {
                let key = Key::Content(&record.digest).path();
                abort(multipart.as_ref(), &key, &record.upload).await?;
                self.backend.delete(&path).await?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    /// Removes files that a dead process left while writing into a directory store.
    async fn sweep_staging(&self, dead_after: Duration) -> usize {
        let Some(root) = self.backend.directory.clone() else { return 0 };
        let sweep = move || crate::staging::sweep(&root, dead_after);
        tokio::task::spawn_blocking(sweep).await.expect("sweeping does not panic")
    }
}

/// Aborts an upload; one that is gone already is fine.
async fn abort(
    multipart: &dyn MultipartStore,
    path: &Path,
    upload: &String,
) -> Result<(), StoreError> {
    let abort = async {
        match multipart.abort_multipart(path, upload).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            other => other,
        }
    };
    timed(StoreOperation::Abort, "abort upload", path, abort).await
}

impl BlobWriter {
    /// Takes the next bytes. Waits while too many parts, of all uploads together, are in memory:
    /// to hold that room for a short time only, offer whole parts at once.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), StoreError> {
        let hasher = self.hasher.as_mut().expect("nothing is written after commit");
        hasher.update(&bytes);
        self.written += bytes.len() as u64;
        if self.expected.is_some_and(|expected| self.written > expected) {
            return Err(self.wrong(format!("longer than {} bytes", self.expected.unwrap_or(0))));
        }
        while !bytes.is_empty() {
            if self.permit.is_none() {
                let permit = self.budget.clone().acquire_owned().await;
                self.permit = Some(permit.expect("the budget is never closed"));
            }
            let fits = bytes.len().min(PART_BYTES - self.part_bytes);
            self.part.push(bytes.split_to(fits));
            self.part_bytes += fits;
            // A full part is sent only when more follows: a blob of one part is one PUT.
            if self.part_bytes == PART_BYTES && (self.parts.is_some() || !self.is_all()) {
                self.send_part().await?;
            }
        }
        Ok(())
    }

    fn is_all(&self) -> bool {
        self.expected == Some(self.written)
    }

    async fn send_part(&mut self) -> Result<(), StoreError> {
        if self.parts.is_none() {
            self.parts = Some(Parts::begin(&self.backend, &self.digest).await?);
        }
        let payload: PutPayload = std::mem::take(&mut self.part).into_iter().collect();
        self.part_bytes = 0;
        let permit = self.permit.take();
        self.parts.as_mut().expect("begun above").send(payload, permit).await
    }

    /// Verifies digest and size, and only then makes the blob visible. Returns its size in bytes.
    pub async fn commit(mut self) -> Result<u64, StoreError> {
        let verified = self.verify();
        let committed = match verified {
            Ok(()) => self.publish().await,
            Err(error) => Err(error),
        };
        if committed.is_err() {
            self.end().await;
        }
        committed.map(|()| self.written)
    }

    fn verify(&mut self) -> Result<(), StoreError> {
        let digest = self.hasher.take().expect("commit takes the writer").finish();
        if digest != self.digest {
            return Err(self.wrong(format!("{} bytes of {digest}", self.written)));
        }
        match self.expected {
            Some(expected) if expected != self.written => {
                Err(self.wrong(format!("{} bytes long and not {expected}", self.written)))
            }
            _ => Ok(()),
        }
    }

    async fn publish(&mut self) -> Result<(), StoreError> {
        if self.parts.is_none() {
            let payload: PutPayload = std::mem::take(&mut self.part).into_iter().collect();
            return self.backend.write(Key::Content(&self.digest), payload).await;
        }
        if self.part_bytes > 0 {
            self.send_part().await?;
        }
        let parts = self.parts.as_mut().expect("there are parts");
        parts.complete().await?;
        self.parts = None;
        // A store may say yes and have nothing.
        let size = self.backend.size(Key::Content(&self.digest)).await?;
        if size == Some(self.written) {
            return Ok(());
        }
        Err(self.wrong(format!("{size:?} bytes in storage after {} were written", self.written)))
    }

    fn wrong(&self, found: String) -> StoreError {
        StoreError::WrongContent { digest: self.digest.clone(), found }
    }

    /// Gives the upload up and waits until nothing of it is left.
    pub async fn abort(mut self) {
        self.end().await;
    }

    async fn end(&mut self) {
        self.part.clear();
        self.permit = None;
        if let Some(parts) = self.parts.take()
            && let Err(error) = parts.abort().await
        {
            tracing::warn!(digest = %self.digest, %error, "upload not aborted, left to the sweep");
        }
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        let Some(parts) = self.parts.take() else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // An error leaves the upload to the sweep.
            runtime.spawn(async move { parts.abort().await.ok() });
        }
    }
}

/// The parts of one upload, several on their way at once.
struct Parts {
    kind: Kind,
    sent: usize,
    flying: JoinSet<Result<(usize, Option<PartId>), StoreError>>,
    landed: BTreeMap<usize, PartId>,
}

enum Kind {
    /// With an id that is recorded.
    Recorded(Recorded),
    /// A staging file of a directory.
    Staged(Box<dyn MultipartUpload>, Path),
}

struct Recorded {
    backend: Backend,
    multipart: Arc<dyn MultipartStore>,
    path: Path,
    record_id: String,
    record: UploadRecord,
}

impl Parts {
    async fn begin(backend: &Backend, digest: &Digest) -> Result<Self, StoreError> {
        let path = Key::Content(digest).path();
        let kind = match &backend.multipart {
            Some(multipart) => {
                Kind::Recorded(Recorded::begin(backend, multipart.clone(), path, digest).await?)
            }
            None => {
                let begin = backend.objects.put_multipart(&path);
                let upload = timed(StoreOperation::Upload, "begin upload", &path, begin).await?;
                Kind::Staged(upload, path)
            }
        };
        Ok(Self { kind, sent: 0, flying: JoinSet::new(), landed: BTreeMap::new() })
    }

    async fn send(
        &mut self,
        payload: PutPayload,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<(), StoreError> {
        while let Some(landed) = self.flying.try_join_next() {
            self.land(landed)?;
        }
        let index = self.sent;
        self.sent += 1;
        let put = self.kind.put(index, payload);
        self.flying.spawn(async move {
            let landed = put.await;
            drop(permit);
            landed.map(|id| (index, id))
        });
        if let Kind::Recorded(recorded) = &mut self.kind {
            recorded.refresh().await?;
        }
        Ok(())
    }

    fn land(
        &mut self,
        landed: Result<Result<(usize, Option<PartId>), StoreError>, tokio::task::JoinError>,
    ) -> Result<(), StoreError> {
        let (index, id) = landed.expect("sending a part neither panics nor is cancelled")?;
        if let Some(id) = id {
            self.landed.insert(index, id);
        }
        Ok(())
    }

    async fn complete(&mut self) -> Result<(), StoreError> {
        while let Some(landed) = self.flying.join_next().await {
            self.land(landed)?;
        }
        let parts = std::mem::take(&mut self.landed).into_values().collect();
        match &mut self.kind {
            Kind::Recorded(recorded) => recorded.complete(parts).await,
            Kind::Staged(upload, path) => {
                timed(StoreOperation::Complete, "complete upload", path, upload.complete())
                    .await
                    .map(drop)
            }
        }
    }

    async fn abort(mut self) -> Result<(), StoreError> {
        // A part that lands after the abort would stay; so all have landed or ended before it.
        self.flying.shutdown().await;
        match self.kind {
            Kind::Recorded(recorded) => recorded.abort().await,
            Kind::Staged(mut upload, path) => {
                timed(StoreOperation::Abort, "abort upload", &path, upload.abort()).await
            }
        }
    }
}

impl Kind {
    fn put(
        &mut self,
        index: usize,
        payload: PutPayload,
    ) -> BoxFuture<'static, Result<Option<PartId>, StoreError>> {
        match self {
            Self::Recorded(recorded) => {
                let (multipart, path) = (recorded.multipart.clone(), recorded.path.clone());
                let upload = recorded.record.upload.clone();
                Box::pin(async move {
                    let put = multipart.put_part(&path, &upload, index, payload);
                    timed(StoreOperation::Upload, "upload part", &path, put).await.map(Some)
                })
            }
            Self::Staged(upload, path) => {
                let (put, path) = (upload.put_part(payload), path.clone());
                Box::pin(async move {
                    timed(StoreOperation::Upload, "upload part", &path, put).await.map(|()| None)
                })
            }
        }
    }
}

impl Recorded {
    async fn begin(
        backend: &Backend,
        multipart: Arc<dyn MultipartStore>,
        path: Path,
        digest: &Digest,
    ) -> Result<Self, StoreError> {
        let create = multipart.create_multipart(&path);
        let upload = timed(StoreOperation::Upload, "begin upload", &path, create).await?;
        let record = UploadRecord { digest: digest.clone(), upload, seen_at: Timestamp::now() };
        let recorded = Self {
            backend: backend.clone(),
            multipart,
            path,
            record_id: Ulid::new().to_string(),
            record,
        };
        if let Err(error) = recorded.write().await {
            abort(recorded.multipart.as_ref(), &recorded.path, &recorded.record.upload).await?;
            return Err(error);
        }
        Ok(recorded)
    }

    async fn write(&self) -> Result<(), StoreError> {
        self.backend.write_record(Key::Upload(&self.record_id), &self.record).await
    }

    async fn refresh(&mut self) -> Result<(), StoreError> {
        let now = Timestamp::now();
        if now.duration_since(self.record.seen_at).unsigned_abs() < REFRESH {
            return Ok(());
        }
        self.record.seen_at = now;
        self.write().await
    }

    async fn complete(&self, parts: Vec<PartId>) -> Result<(), StoreError> {
        let complete = self.multipart.complete_multipart(&self.path, &self.record.upload, parts);
        timed(StoreOperation::Complete, "complete upload", &self.path, complete).await?;
        self.forget().await
    }

    async fn abort(&self) -> Result<(), StoreError> {
        abort(self.multipart.as_ref(), &self.path, &self.record.upload).await?;
        self.forget().await
    }

    async fn forget(&self) -> Result<(), StoreError> {
        self.backend.delete(&Key::Upload(&self.record_id).path()).await
    }
}
