//! The object store underneath, and what its kinds do differently: conditional writes, multipart
//! uploads, signing. Every operation is timed and its error named here.

use crate::{error::StoreError, key::Key};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use hydrant_telemetry::metrics::{StoreOperation, StoreOutcome, metrics};
use object_store::{
    GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    PutPayload, multipart::MultipartStore, path::Path, signer::Signer,
};
use std::{fmt, future::Future, ops::Range, path::PathBuf, sync::Arc, time::Instant};

/// One store.
#[derive(Clone)]
pub(crate) struct Backend {
    pub objects: Arc<dyn ObjectStore>,
    /// Where uploads have ids that outlive this process.
    pub multipart: Option<Arc<dyn MultipartStore>>,
    pub signer: Option<Arc<dyn Signer>>,
    /// The root of a directory store, which has no conditional writes of its own.
    pub directory: Option<PathBuf>,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.objects.fmt(f)
    }
}

impl Backend {
    pub async fn size(&self, key: Key<'_>) -> Result<Option<u64>, StoreError> {
        let path = key.path();
        let head = async { found(self.objects.head(&path).await) };
        let meta = timed(StoreOperation::Head, "head", &path, head).await?;
        Ok(meta.map(|meta| meta.size))
    }

    pub async fn exists(&self, key: Key<'_>) -> Result<bool, StoreError> {
        Ok(self.size(key).await?.is_some())
    }

    /// A whole object, of which more than `limit` bytes are an error.
    pub async fn read(&self, key: Key<'_>, limit: u64) -> Result<Option<Bytes>, StoreError> {
        Ok(self.read_path(&key.path(), limit).await?.map(|(bytes, _)| bytes))
    }

    pub async fn read_path(
        &self,
        path: &Path,
        limit: u64,
    ) -> Result<Option<(Bytes, ObjectMeta)>, StoreError> {
        let get = async {
            let Some(result) = found(self.objects.get(path).await)? else { return Ok(None) };
            let meta = result.meta.clone();
            if meta.size > limit {
                let source = format!("{} bytes are more than {limit}", meta.size).into();
                return Err(object_store::Error::Generic { store: "hydrant", source });
            }
            Ok(Some((result.bytes().await?, meta)))
        };
        timed(StoreOperation::Get, "read", path, get).await
    }

    /// An object, or a range of it, to be streamed.
    pub async fn open(
        &self,
        key: Key<'_>,
        range: Option<Range<u64>>,
    ) -> Result<Option<GetResult>, StoreError> {
        let path = key.path();
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        let get = async { found(self.objects.get_opts(&path, options).await) };
        timed(StoreOperation::Get, "open", &path, get).await
    }

    /// Writes an object, whatever is there.
    pub async fn write(&self, key: Key<'_>, payload: PutPayload) -> Result<(), StoreError> {
        let path = key.path();
        let put = self.objects.put(&path, payload);
        timed(StoreOperation::Put, "write", &path, put).await.map(drop)
    }

    pub async fn put_opts(
        &self,
        path: &Path,
        bytes: Bytes,
        mode: PutMode,
    ) -> Result<object_store::PutResult, StoreError> {
        let put = self.objects.put_opts(path, bytes.into(), PutOptions::from(mode));
        timed(StoreOperation::Put, "write", path, put).await
    }

    /// Removes an object; that it is gone already is fine.
    pub async fn delete(&self, path: &Path) -> Result<(), StoreError> {
        let delete = async { found(self.objects.delete(path).await) };
        timed(StoreOperation::Delete, "delete", path, delete).await.map(drop)
    }

    /// Every object below `prefix`, in no order.
    pub fn list(&self, prefix: &str) -> BoxStream<'static, Result<ObjectMeta, StoreError>> {
        let prefix = Path::from(prefix);
        let listed = self.objects.list(Some(&prefix));
        listed.map_err(move |source| StoreError::new("list", &prefix, source)).boxed()
    }

    /// The names of the folders directly in `prefix`, sorted.
    pub async fn folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let path = Path::from(prefix);
        let list = async { found(self.objects.list_with_delimiter(Some(&path)).await) };
        let listed = timed(StoreOperation::List, "list", &path, list).await?;
        let folders = listed.map(|listed| listed.common_prefixes).unwrap_or_default();
        let mut names: Vec<_> =
            folders.iter().filter_map(|folder| folder.filename().map(str::to_owned)).collect();
        names.sort();
        Ok(names)
    }
}

/// `None` for what is not there.
fn found<T>(result: object_store::Result<T>) -> object_store::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) async fn timed<T>(
    kind: StoreOperation,
    operation: &'static str,
    key: &impl ToString,
    work: impl Future<Output = object_store::Result<T>>,
) -> Result<T, StoreError> {
    let start = Instant::now();
    let result = work.await.map_err(|source| StoreError::new(operation, key, source));
    let outcome = match &result {
        Ok(_) => StoreOutcome::Ok,
        Err(StoreError::Conflict { .. }) => StoreOutcome::Conflict,
        Err(_) => StoreOutcome::Error,
    };
    metrics().store.done(kind, outcome, start.elapsed());
    result
}
