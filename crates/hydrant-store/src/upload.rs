//! One multipart upload that is completed, or else aborted, whatever becomes of its owner.

use crate::{
    Backend, Store,
    error::{Retry, StoreError, classify},
    left_upload::{LeftUpload, Standing, tags},
    object::timed,
    s3::S3,
};
use bytes::Bytes;
use futures::{FutureExt, TryFutureExt, future::BoxFuture};
use hydrant_telemetry::metrics::StoreOperation;
use object_store::{
    MultipartId, MultipartUpload, ObjectStoreExt,
    multipart::{MultipartStore, PartId},
    path::Path,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::oneshot, task::JoinSet};
use tokio_util::task::TaskTracker;

/// Size of a part in bytes, except the last. S3 takes 5 MiB to 5 GiB and 10,000 parts.
pub const PART_BYTES: usize = 8 * 1024 * 1024;
/// Parts of one upload under way at once.
const PARTS_OF_ONE: usize = 3;
/// Most parts of one upload (S3).
const MAX_PARTS: usize = 10_000;
/// Longest wait for parts under way before an abort: a part that lands after it would stay.
const ABORT_GRACE: Duration = Duration::from_secs(10);

pub(crate) struct Upload {
    path: Path,
    /// `None` once completed or aborted.
    multipart: Option<Multipart>,
    parts: JoinSet<(usize, object_store::Result<PartId>)>,
    begun: usize,
    stored: BTreeMap<usize, PartId>,
    /// Another process can go on with it, so it stays open when this one cannot.
    lasts: bool,
    /// It was begun by another process.
    is_resumed: bool,
    background: TaskTracker,
}

/// How parts are sent.
enum Multipart {
    /// In order, by who began.
    InOrder(Box<dyn MultipartUpload>),
    /// By number, by anybody who knows the id.
    ByNumber { parts: Arc<dyn MultipartStore>, id: MultipartId },
}

impl Upload {
    /// Goes on with an upload that a dead process left.
    pub(crate) fn resume(store: &Store, s3: &S3, path: Path, left: &LeftUpload) -> Self {
        let multipart = Multipart::ByNumber { parts: s3.multipart(), id: left.id().to_owned() };
        let mut upload = Self::new(store, path, multipart);
        upload.stored = left.parts().enumerate().collect();
        upload.begun = upload.stored.len();
        (upload.lasts, upload.is_resumed) = (true, true);
        upload
    }

    fn new(store: &Store, path: Path, multipart: Multipart) -> Self {
        Self {
            path,
            multipart: Some(multipart),
            parts: JoinSet::new(),
            begun: 0,
            stored: BTreeMap::new(),
            lasts: false,
            is_resumed: false,
            background: store.background.clone(),
        }
    }

    /// Opens an upload. It is opened by a task of its own and handed over as a guard, so that a
    /// caller that goes away in the meantime leaves nothing open.
    pub(crate) async fn begin(store: &Store, path: Path) -> Result<Self, StoreError> {
        let (hand_over, receive) = oneshot::channel();
        let store = store.clone();
        store.background.clone().spawn(async move {
            let opened = timed(StoreOperation::Upload, open(&store, &path)).await;
            let upload = opened.map_err(|error| classify(&path, error));
            let upload = upload.map(|multipart| Self::new(&store, path, multipart));
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
        self.room().await?;
        let multipart = self.multipart.as_mut().expect("open until completed or aborted");
        let number = self.begun;
        let sent = multipart.put(&self.path, number, part);
        self.begun += 1;
        self.parts.spawn(async move { (number, timed(StoreOperation::Upload, sent).await) });
        Ok(())
    }

    /// Waits while too many parts are under way; before the next takes memory.
    pub(crate) async fn room(&mut self) -> Result<(), StoreError> {
        while self.parts.len() >= PARTS_OF_ONE {
            self.next_done().await?;
        }
        Ok(())
    }

    /// Waits until one more part is stored; for ever when none is under way.
    pub(crate) async fn advanced(&mut self) -> Result<(), StoreError> {
        match self.parts.is_empty() {
            true => std::future::pending().await,
            false => self.next_done().await,
        }
    }

    /// What is stored of it, for who goes on with it; `None` when nobody can.
    pub(crate) fn standing(&self) -> Option<Standing> {
        let Some(Multipart::ByNumber { id, .. }) = &self.multipart else { return None };
        let whole = self.stored.iter().zip(0..).take_while(|((number, _), n)| *number == n);
        let stored: Vec<_> = whole.map(|((_, part), _)| part).collect();
        let (parts, tags) = (stored.len() as u64, tags(stored));
        Some(Standing { upload: id.clone(), parts, part_size: PART_BYTES as u64, tags })
    }

    /// Somebody was told how to go on with it.
    pub(crate) fn outlasts(&mut self) {
        self.lasts = true;
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
            Some(Ok((number, sent))) => {
                let part = sent.map_err(|error| classify(&self.path, error))?;
                self.stored.insert(number, part);
                Ok(())
            }
            Some(Err(lost)) => {
                Err(StoreError::Unavailable { key: self.path.to_string(), cause: Arc::new(lost) })
            }
        }
    }

    /// Makes the object visible. After a failure it may be visible all the same.
    pub(crate) async fn complete(mut self) -> Result<(), StoreError> {
        let stored = std::mem::take(&mut self.stored).into_values().collect();
        let multipart = self.multipart.as_mut().expect("open until completed or aborted");
        match timed(StoreOperation::Complete, multipart.complete(&self.path, stored)).await {
            Ok(()) => {
                self.multipart = None;
                Ok(())
            }
            Err(error) => {
                let error = classify(&self.path, error).in_doubt();
                self.failed(&error).await;
                Err(error)
            }
        }
    }

    /// Gives the upload up because storage failed. Who began it has all of it in its spool, and
    /// begins anew: what is stored would only take room, with each try more. Who went on with it
    /// leaves it to the next one who does, if that may succeed.
    pub(crate) async fn failed(self, error: &StoreError) {
        let may_succeed = match error {
            StoreError::Full { .. } => false,
            error => error.retry() != Retry::Never,
        };
        if !(self.is_resumed && may_succeed) {
            self.abort().await;
        }
    }

    /// Gives the upload up for a reason that is not its own, unless somebody is to go on with it.
    pub(crate) async fn give_up(self) {
        if !self.lasts {
            self.abort().await;
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
        if !self.lasts
            && let Some(work) = self.take_abort()
        {
            self.background.spawn(work);
        }
    }
}

impl Multipart {
    fn put(
        &mut self,
        path: &Path,
        number: usize,
        part: Bytes,
    ) -> BoxFuture<'static, object_store::Result<PartId>> {
        match self {
            // Its own order is enough for it.
            Self::InOrder(upload) => upload
                .put_part(part.into())
                .map_ok(|()| PartId { content_id: String::new() })
                .boxed(),
            Self::ByNumber { parts, id } => {
                let (parts, id, path) = (Arc::clone(parts), id.clone(), path.clone());
                async move { parts.put_part(&path, &id, number, part.into()).await }.boxed()
            }
        }
    }

    async fn complete(&mut self, path: &Path, stored: Vec<PartId>) -> object_store::Result<()> {
        match self {
            Self::InOrder(upload) => upload.complete().await.map(drop),
            Self::ByNumber { parts, id } => {
                parts.complete_multipart(path, id, stored).await.map(drop)
            }
        }
    }

    async fn abort(&mut self, path: &Path) -> object_store::Result<()> {
        match self {
            Self::InOrder(upload) => upload.abort().await,
            Self::ByNumber { parts, id } => parts.abort_multipart(path, id).await,
        }
    }
}

async fn open(store: &Store, path: &Path) -> object_store::Result<Multipart> {
    match &store.backend {
        Backend::Directory(directory) => directory.begin_upload(path).await.map(Multipart::InOrder),
        Backend::Memory => store.objects.put_multipart(path).await.map(Multipart::InOrder),
        Backend::S3(s3) => {
            let parts = s3.multipart();
            let id = parts.create_multipart(path).await?;
            Ok(Multipart::ByNumber { parts, id })
        }
    }
}

async fn abort(
    path: Path,
    mut multipart: Multipart,
    mut parts: JoinSet<(usize, object_store::Result<PartId>)>,
) {
    let landed = async { while parts.join_next().await.is_some() {} };
    if tokio::time::timeout(ABORT_GRACE, landed).await.is_err() {
        parts.shutdown().await;
    }
    match timed(StoreOperation::Abort, multipart.abort(&path)).await {
        // Also the answer when a completion in doubt had happened.
        Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
        Err(error) => {
            tracing::warn!(key = %path, %error, "cannot abort an upload; the sweep will");
        }
    }
}
