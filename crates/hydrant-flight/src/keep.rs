//! From the spool into storage, at storage's own pace, while readers read and the upstream sends.

use crate::{
    calm::Calm,
    error::FlightError,
    flight::{Flight, Grant},
    record::Telling,
    turn::Turns,
};
use hydrant_proto::Digest;
use hydrant_store::{PART_BYTES, Sealed, SpooledWrite, Store};
use std::collections::BTreeSet;

/// Brings flights into storage.
#[derive(Debug)]
pub(crate) struct Keeper {
    store: Store,
    pub calm: Calm,
}

impl Keeper {
    pub fn new(store: Store) -> Self {
        Self { store, calm: Calm::default() }
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Follows the flight into storage, and links the blob to every repository that was granted it.
    /// Others are told how far a large one is, so that they can go on with it.
    pub async fn keep(&self, flight: &Flight, turns: &Turns) -> Result<(), FlightError> {
        self.calm.wait().await;
        let mut write = self.store.begin_spooled(flight.digest(), &flight.spool()?.file);
        let mut telling = Telling::new(flight, turns);
        let ready = async {
            let sealed = self.copy(flight, &mut write, &mut telling).await?;
            Ok((sealed, self.link_with(flight, &mut write).await?))
        };
        let (sealed, linked) = match ready.await {
            Ok(ready) => ready,
            Err(error) => {
                give_up(write, &error).await;
                return Err(error);
            }
        };
        let written = write.commit(sealed).await?;
        if written > PART_BYTES as u64 {
            self.end_other_writes(flight).await;
        }
        self.link_all_but(flight, linked).await
    }

    /// Has the repositories granted so far linked together with the write.
    async fn link_with(
        &self,
        flight: &Flight,
        write: &mut SpooledWrite,
    ) -> Result<BTreeSet<Grant>, FlightError> {
        let granted = flight.grants_so_far();
        for grant in &granted {
            if self.may_link(grant).await? {
                write.link_in(&grant.repository);
            }
        }
        Ok(granted)
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

    /// Part by part, as far as there are whole ones, until the digest is confirmed. The store takes
    /// memory when a part is all there, not while the upstream sends it.
    async fn copy<'a>(
        &self,
        flight: &'a Flight,
        write: &mut SpooledWrite,
        telling: &mut Telling<'_>,
    ) -> Result<&'a Sealed, FlightError> {
        while let Some(at) = write.next_part() {
            let part = loop {
                telling.tell(write).await;
                tokio::select! {
                    part = flight.next_part(at, PART_BYTES as u64) => break part?,
                    advanced = write.advanced() => advanced?,
                }
            };
            if part.is_none_or(|part| part.end - part.start < PART_BYTES as u64) {
                break;
            }
            write.send().await?;
        }
        flight.sealed().await
    }

    /// Links every granted repository, those granted meanwhile too; then no more can be granted.
    pub async fn link(&self, flight: &Flight) -> Result<(), FlightError> {
        self.link_all_but(flight, BTreeSet::new()).await
    }

    async fn link_all_but(
        &self,
        flight: &Flight,
        mut linked: BTreeSet<Grant>,
    ) -> Result<(), FlightError> {
        while let Some(grant) = flight.next_grant(&mut linked) {
            self.link_for(&grant, flight.digest()).await?;
        }
        Ok(())
    }

    /// Links the blob if it may be.
    pub async fn link_for(&self, grant: &Grant, digest: &Digest) -> Result<(), FlightError> {
        if self.may_link(grant).await? {
            self.store.link_blob(&grant.repository, digest).await?;
        }
        Ok(())
    }

    /// Not when the repository has come to be another origin's since: what the former one delivered
    /// is not the new one's. One that nobody has filled yet is this origin's first.
    async fn may_link(&self, Grant { repository, origin }: &Grant) -> Result<bool, FlightError> {
        let standing = match self.store.origin(repository).await? {
            Some(standing) => standing,
            None => self.store.claim_origin(repository, origin).await?,
        };
        Ok(standing == **origin)
    }
}

/// What was stored so far is left where it may be of use.
async fn give_up(write: SpooledWrite, error: &FlightError) {
    match error {
        FlightError::Integrity(_) => write.abort().await,
        FlightError::Store(error) => write.failed(error).await,
        FlightError::Upstream(_)
        | FlightError::NoSpool(_)
        | FlightError::Foreign
        | FlightError::Elsewhere { .. }
        | FlightError::Stopping => write.give_up().await,
    }
}
