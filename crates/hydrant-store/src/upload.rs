//! One multipart upload that is completed, or else aborted, whatever becomes of its owner.

use crate::{
    Backend, Store,
    error::{StoreError, classify},
    object::timed,
};
use bytes::Bytes;
use hydrant_telemetry::metrics::StoreOperation;
use object_store::{MultipartUpload, ObjectStoreExt, path::Path};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, oneshot},
    task::JoinSet,
};
use tokio_util::task::TaskTracker;

/// Size of a part in bytes, except the last. S3 takes 5 MiB to 5 GiB and 10,000 parts.
pub const PART_BYTES: usize = 8 * 1024 * 1024;
/// Parts of one upload under way at once.
const PARTS_OF_ONE: usize = 3;
/// Parts of all uploads of a process under way at once: bounds what uploads hold in memory.
pub(crate) const PARTS_IN_FLIGHT: usize = 6;
/// Most parts of one upload (S3).
const MAX_PARTS: usize = 10_000;
/// Longest wait for parts under way before an abort: a part that lands after it would stay.
const ABORT_GRACE: Duration = Duration::from_secs(10);

pub(crate) struct Upload {
    path: Path,
    /// `None` once completed or aborted.
    multipart: Option<Box<dyn MultipartUpload>>,
    parts: JoinSet<object_store::Result<()>>,
    begun: usize,
    slots: Arc<Semaphore>,
    background: TaskTracker,
}

impl Upload {
    /// Opens an upload. It is opened by a task of its own and handed over as a guard, so that a
    /// caller that goes away in the meantime leaves nothing open.
    pub(crate) async fn begin(store: &Store, path: Path) -> Result<Self, StoreError> {
        let (hand_over, receive) = oneshot::channel();
        let store = store.clone();
        store.background.clone().spawn(async move {
            let opened = timed(StoreOperation::Upload, open(&store, &path)).await;
            let upload = opened.map_err(|error| classify(&path, error)).map(|multipart| Self {
                path,
                multipart: Some(multipart),
                parts: JoinSet::new(),
                begun: 0,
                slots: Arc::clone(&store.parts),
                background: store.background.clone(),
            });
            drop(hand_over.send(upload));
        });
        receive.await.expect("the task always answers")
    }

    /// Sends one part; waits while too many are under way. Parts are in the order of the calls.
    pub(crate) async fn put(&mut self, part: Bytes) -> Result<(), StoreError> {
        if self.begun == MAX_PARTS {
            let reason = format!("`{}` is longer than {MAX_PARTS} parts", self.path);
            return Err(StoreError::Refused { reason });
        }
        while self.parts.len() >= PARTS_OF_ONE {
            self.next_done().await?;
        }
        let slot = Arc::clone(&self.slots).acquire_owned().await.expect("never closed");
        let multipart = self.multipart.as_mut().expect("open until completed or aborted");
        let sent = multipart.put_part(part.into());
        self.begun += 1;
        self.parts.spawn(async move {
            let sent = timed(StoreOperation::Upload, sent).await;
            drop(slot);
            sent
        });
        Ok(())
    }

    /// Waits until every part is stored. Nothing is visible yet.
    pub(crate) async fn parts_stored(&mut self) -> Result<(), StoreError> {
        while !self.parts.is_empty() {
            self.next_done().await?;
        }
        Ok(())
    }

    async fn next_done(&mut self) -> Result<(), StoreError> {
        match self.parts.join_next().await {
            None => Ok(()),
            Some(Ok(sent)) => sent.map_err(|error| classify(&self.path, error)),
            Some(Err(lost)) => {
                Err(StoreError::Unavailable { key: self.path.to_string(), cause: Arc::new(lost) })
            }
        }
    }

    /// Makes the object visible. After a failure it may be visible all the same.
    pub(crate) async fn complete(mut self) -> Result<(), StoreError> {
        let multipart = self.multipart.as_mut().expect("open until completed or aborted");
        match timed(StoreOperation::Complete, multipart.complete()).await {
            Ok(_) => {
                self.multipart = None;
                Ok(())
            }
            Err(error) => {
                let error = classify(&self.path, error).in_doubt();
                self.abort().await;
                Err(error)
            }
        }
    }

    /// Gives the upload up and waits until the store has dropped it.
    pub(crate) async fn abort(mut self) {
        if let Some(work) = self.take_abort() {
            // In a task of its own: it also ends when the caller goes away.
            drop(self.background.spawn(work).await);
        }
    }

    fn take_abort(&mut self) -> Option<impl Future<Output = ()> + Send + use<>> {
        let multipart = self.multipart.take()?;
        let parts = std::mem::take(&mut self.parts);
        Some(abort(self.path.clone(), multipart, parts))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(work) = self.take_abort() {
            self.background.spawn(work);
        }
    }
}

async fn open(store: &Store, path: &Path) -> object_store::Result<Box<dyn MultipartUpload>> {
    match &store.backend {
        Backend::Directory(directory) => directory.begin_upload(path).await,
        Backend::S3(_) | Backend::Memory => store.objects.put_multipart(path).await,
    }
}

async fn abort(
    path: Path,
    mut multipart: Box<dyn MultipartUpload>,
    mut parts: JoinSet<object_store::Result<()>>,
) {
    let landed = async { while parts.join_next().await.is_some() {} };
    if tokio::time::timeout(ABORT_GRACE, landed).await.is_err() {
        parts.shutdown().await;
    }
    match timed(StoreOperation::Abort, multipart.abort()).await {
        // Also the answer when a completion in doubt had happened.
        Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
        Err(error) => {
            tracing::warn!(key = %path, %error, "cannot abort an upload; the sweep will");
        }
    }
}
