//! From the spool into storage, at storage's own pace, while readers read and the upstream sends.

use crate::{error::FlightError, flight::Flight};
use hydrant_store::{BlobWriter, PART_BYTES, Store};
use std::collections::BTreeSet;
use tokio::sync::Semaphore;

/// Parts read from spools at once, over all flights: with what the store holds while it sends, the
/// memory that storing takes.
const PARTS: usize = 2;

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
        writer.commit().await?;
        self.link(flight).await
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
        while let Some(repository) = flight.next_grant(&mut linked) {
            self.store.link_blob(&repository, flight.digest()).await?;
        }
        Ok(())
    }
}
