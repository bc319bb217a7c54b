//! The question asked at start: does this store do what everything else relies on?

use crate::{Store, backend::Backend, error::StoreError, key::Key};
use object_store::{PutMode, UpdateVersion};
use ulid::Ulid;

impl Store {
    /// Writes, reads, swaps and removes a small object. Refuses a store that is not writable, or
    /// one whose conditional writes do not hold, since two importers would then overwrite each
    /// other's tags.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let id = Ulid::new().to_string();
        let key = Key::Probe(&id);
        let probed = match &self.backend.directory {
            Some(_) => self.backend.write(key, b"probe"[..].into()).await,
            None => conditional(&self.backend, key).await,
        };
        let removed = self.backend.delete(&key.path()).await;
        probed.and(removed)
    }
}

async fn conditional(backend: &Backend, key: Key<'_>) -> Result<(), StoreError> {
    let path = key.path();
    let put = |text: &'static str, mode| backend.put_opts(&path, text.into(), mode);
    let first = put("first", PutMode::Create).await?;
    refused(put("second", PutMode::Create).await, "If-None-Match: *")?;
    let (_, meta) = backend.read_path(&path, 64).await?.ok_or_else(|| {
        StoreError::Refused("the store does not return what was just written to it".to_owned())
    })?;
    let seen = UpdateVersion { e_tag: meta.e_tag, version: first.version };
    put("third", PutMode::Update(seen.clone())).await?;
    refused(put("fourth", PutMode::Update(seen)).await, "If-Match")
}

/// A write whose condition does not hold must have been refused.
fn refused<T>(outcome: Result<T, StoreError>, header: &str) -> Result<(), StoreError> {
    match outcome {
        Err(StoreError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(StoreError::Refused(format!(
            "the store ignores `{header}`, so tags could go back to older content; use a store with \
             conditional writes (AWS S3, MinIO, SeaweedFS, Ceph RGW, R2, or GCS in interoperability \
             mode), or a directory"
        ))),
    }
}
