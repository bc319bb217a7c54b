//! Stores that misbehave, for tests: memory behind a wrapper that breaks conditional writes.

use crate::{Backend, Store};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future::BoxFuture, stream::BoxStream};
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result, UploadPart, memory::InMemory, path::Path,
};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// What goes wrong with a conditional write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    IgnoresCreate,
    IgnoresUpdate,
    /// Looks at the condition, lets others in, then writes.
    NotAtomic,
    /// Writes, and answers with an error.
    LosesAnswers,
    /// Answers with an error, and does not write.
    Fails,
    /// Does not know conditional writes.
    NotImplemented,
    /// Takes no part of an upload.
    LosesParts,
    /// Deletes as many objects as the count says, which it counts down.
    StopsDeleting,
    /// Gives out damaged content as many times as the count says, which it counts down.
    DamagesReads,
    /// The records of all tags are removed while a link is written.
    ForgetsTags,
}

#[derive(Debug)]
pub(crate) struct Faulty {
    inner: InMemory,
    fault: Fault,
    pub fired: Arc<AtomicUsize>,
}

impl Store {
    /// A store in memory with a fault, and the count of its firings.
    pub(crate) fn faulty(fault: Fault) -> (Self, Arc<AtomicUsize>) {
        let fired = Arc::new(AtomicUsize::new(0));
        let objects = Faulty { inner: InMemory::new(), fault, fired: Arc::clone(&fired) };
        (Self::new(Arc::new(objects), Path::default(), Backend::Memory), fired)
    }
}

/// Whether there was something left to count down.
fn counted_down(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

fn broken() -> object_store::Error {
    object_store::Error::Generic { store: "faulty", source: "broken on purpose".into() }
}

impl Faulty {
    async fn put(
        &self,
        path: &Path,
        payload: PutPayload,
        mut options: PutOptions,
    ) -> Result<PutResult> {
        let is_create = options.mode == PutMode::Create;
        if options.mode == PutMode::Overwrite {
            return self.inner.put_opts(path, payload, options).await;
        }
        if matches!(self.fault, Fault::StopsDeleting | Fault::DamagesReads) {
            return self.inner.put_opts(path, payload, options).await;
        }
        self.fired.fetch_add(1, Ordering::Relaxed);
        match self.fault {
            Fault::ForgetsTags if path.filename() == Some("link") => self.forget_tags().await?,
            Fault::StopsDeleting | Fault::DamagesReads | Fault::ForgetsTags => {}
            Fault::IgnoresCreate if is_create => options.mode = PutMode::Overwrite,
            Fault::IgnoresUpdate if !is_create => options.mode = PutMode::Overwrite,
            Fault::IgnoresCreate | Fault::IgnoresUpdate | Fault::LosesParts => {}
            Fault::NotAtomic => {
                let there = self.inner.get_opts(path, GetOptions::default()).await;
                let there = there.ok().and_then(|found| found.meta.e_tag);
                let expected = match &options.mode {
                    PutMode::Update(version) => version.e_tag.clone(),
                    _ => None,
                };
                tokio::task::yield_now().await;
                options.mode = if there == expected { PutMode::Overwrite } else { PutMode::Create };
            }
            Fault::LosesAnswers => {
                self.inner.put_opts(path, payload, options).await?;
                return Err(broken());
            }
            Fault::Fails => return Err(broken()),
            Fault::NotImplemented => {
                let (operation, implementer) = ("conditional put".into(), "faulty".into());
                return Err(object_store::Error::NotImplemented { operation, implementer });
            }
        }
        self.inner.put_opts(path, payload, options).await
    }
}

impl Faulty {
    async fn forget_tags(&self) -> Result<()> {
        let all: Vec<_> = self.inner.list(None).try_collect().await?;
        for meta in all.into_iter().filter(|meta| meta.location.as_ref().contains("/_tags/")) {
            self.inner.delete(&meta.location).await?;
        }
        Ok(())
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({:?})", self.fault)
    }
}

/// An upload whose parts are taken and then not stored.
#[derive(Debug)]
struct Losing {
    inner: Box<dyn MultipartUpload>,
    fired: Arc<AtomicUsize>,
}

impl MultipartUpload for Losing {
    fn put_part(&mut self, part: PutPayload) -> UploadPart {
        let fired = self.fired.clone();
        Box::pin(async move {
            tokio::task::yield_now().await;
            fired.fetch_add(1, Ordering::Relaxed);
            drop(part);
            Err(broken())
        })
    }

    fn complete<'a, 'b>(&'a mut self) -> BoxFuture<'b, Result<PutResult>>
    where
        'a: 'b,
        Self: 'b,
    {
        self.inner.complete()
    }

    fn abort<'a, 'b>(&'a mut self) -> BoxFuture<'b, Result<()>>
    where
        'a: 'b,
        Self: 'b,
    {
        self.inner.abort()
    }
}

/// Written as the macro of the trait expands, which is not a dependency of this crate.
impl ObjectStore for Faulty {
    fn put_opts<'a, 'b, 'c>(
        &'a self,
        path: &'b Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> BoxFuture<'c, Result<PutResult>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        Box::pin(self.put(path, payload, options))
    }

    fn put_multipart_opts<'a, 'b, 'c>(
        &'a self,
        path: &'b Path,
        options: PutMultipartOptions,
    ) -> BoxFuture<'c, Result<Box<dyn MultipartUpload>>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        let opened = self.inner.put_multipart_opts(path, options);
        let (loses, fired) = (self.fault == Fault::LosesParts, self.fired.clone());
        Box::pin(async move {
            let inner = opened.await?;
            Ok(if loses { Box::new(Losing { inner, fired }) as _ } else { inner })
        })
    }

    fn get_opts<'a, 'b, 'c>(
        &'a self,
        path: &'b Path,
        options: GetOptions,
    ) -> BoxFuture<'c, Result<GetResult>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        let damages = self.fault == Fault::DamagesReads
            && path.as_ref().ends_with("/data")
            && !options.head
            && counted_down(&self.fired);
        let found = self.inner.get_opts(path, options);
        Box::pin(async move {
            let mut found = found.await?;
            if damages && let GetResultPayload::Stream(chunks) = found.payload {
                let flip = |chunk: Bytes| chunk.iter().map(|byte| !byte).collect::<Bytes>();
                found.payload = GetResultPayload::Stream(chunks.map_ok(flip).boxed());
            }
            Ok(found)
        })
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let (stops, left) = (self.fault == Fault::StopsDeleting, Arc::clone(&self.fired));
        let allowed = paths.map(move |path| match stops {
            true if !counted_down(&left) => Err(broken()),
            true => path,
            false => path,
        });
        self.inner.delete_stream(allowed.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_delimiter<'a, 'b, 'c>(
        &'a self,
        prefix: Option<&'b Path>,
    ) -> BoxFuture<'c, Result<ListResult>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        self.inner.list_with_delimiter(prefix)
    }

    fn copy_opts<'a, 'b, 'd, 'c>(
        &'a self,
        from: &'b Path,
        to: &'d Path,
        options: CopyOptions,
    ) -> BoxFuture<'c, Result<()>>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
        Self: 'c,
    {
        self.inner.copy_opts(from, to, options)
    }
}
