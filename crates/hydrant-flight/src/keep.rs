//! From the spool into storage, at storage's own pace, while readers read and the upstream sends.

use crate::{
    error::FlightError,
    flight::{Flight, Grant},
};
use hydrant_proto::Digest;
use hydrant_store::{BlobWriter, PART_BYTES, Store};
use std::collections::BTreeSet;
use tokio::sync::Semaphore;

/// Parts read from spools at once, over all flights: with what the store holds while it sends, the
/// memory that storing takes.
const PARTS: usize = 1;

/// Brings flights into storage.
#[derive(Debug)]
pub(crate) struct Keeper {
    store: Store,
    parts: Semaphore,
}

impl Keeper {
    pub fn new(store: Store) -> Self {
        Self { store, parts: Semaphore::new(PARTS) }
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Follows the flight into storage, then links the blob to every repository that was granted
    /// it.
    pub async fn keep(&self, flight: &Flight) -> Result<(), FlightError> {
        let size = flight.progress().size;
        let mut writer = self.store.begin_blob(flight.digest(), size);
        if let Err(error) = self.copy(flight, &mut writer).await {
            writer.abort().await;
            return Err(error);
        }
        let written = writer.commit().await?;
        if written > PART_BYTES as u64 {
            self.end_other_writes(flight).await;
        }
        self.link(flight).await
    }

    /// Parts that a dead process left of this blob are of no use any more. What fails here is left
    /// to the sweep.
    async fn end_other_writes(&self, flight: &Flight) {
        match self.store.end_other_writes(flight.digest()).await {
            Ok(0) => {}
            Ok(ended) => tracing::info!(digest = %flight.digest(), ended, "other writes ended"),
            Err(error) => tracing::debug!(digest = %flight.digest(), %error, "uploads not listed"),
        }
    }

    /// Part by part: memory is taken when a part is all there, not while the upstream sends it.
    async fn copy(&self, flight: &Flight, writer: &mut BlobWriter) -> Result<(), FlightError> {
        let mut at = 0;
        while let Some(part) = flight.next_part(at, PART_BYTES as u64).await? {
            let permit = self.parts.acquire().await.expect("the keeper is never closed");
            at = part.end;
            writer.write(flight.spooled(part).await?).await?;
            drop(permit);
        }
        Ok(())
    }

    /// Links every granted repository, those granted meanwhile too; then no more can be granted.
    pub async fn link(&self, flight: &Flight) -> Result<(), FlightError> {
        let mut linked = BTreeSet::new();
        while let Some(grant) = flight.next_grant(&mut linked) {
            self.link_for(&grant, flight.digest()).await?;
        }
        Ok(())
    }

    /// Links the blob, unless the repository has come to be another origin's since: what the former
    /// one delivered is not the new one's.
    pub async fn link_for(&self, grant: &Grant, digest: &Digest) -> Result<(), FlightError> {
        let standing = self.store.origin(&grant.repository).await?;
        if standing.is_none_or(|origin| *origin == *grant.origin) {
            self.store.link_blob(&grant.repository, digest).await?;
        }
        Ok(())
    }
}
