//! How far the upload of a large blob is: told on the bus at the end of each part, and found there by
//! who flies the blob next when the process is gone that began. See `PartsRecord`.

use crate::{
    flight::Flight,
    flights::{Flights, Source},
    insurance::Stored,
    load::Load,
    spool::LASTING_FROM,
    turn::Turns,
};
use hydrant_proto::{Digest, PartsRecord, codec, subject::StateKey};
use hydrant_store::{LeftUpload, PART_BYTES, SpooledWrite, Standing};
use hydrant_upstream::Priority;
use std::{sync::Arc, time::Duration};

/// How long it is known after the last part: longer than a job waits for its next worker.
const KNOWN_FOR: Duration = Duration::from_secs(60 * 60);
/// Bytes of an upload that are worth going on with, beyond what is at hand otherwise.
const WORTH: u64 = PART_BYTES as u64;

impl Turns {
    /// Tells how far an upload is; false when nobody could be told.
    async fn tell(&self, digest: &Digest, record: &PartsRecord) -> bool {
        let Some(state) = self.state() else { return false };
        let (key, value) = (StateKey::Parts(digest.clone()), codec::encode(record).into());
        matches!(self.in_time(state.put_over(&key, value, KNOWN_FOR)).await, Some(Ok(())))
    }

    async fn told(&self, digest: &Digest) -> Option<PartsRecord> {
        let state = self.state()?;
        let key = StateKey::Parts(digest.clone());
        let entry = self.in_time(state.get(&key)).await?.ok()??;
        codec::decode(&entry.value)
            .inspect_err(|error| tracing::warn!(%digest, %error, "parts record not read"))
            .ok()
    }

    /// Makes sure that nobody goes on with what turned out wrong. What fails is found out again.
    pub async fn take_back(&self, digest: &Digest) {
        let Some(state) = self.state() else { return };
        let key = StateKey::Parts(digest.clone());
        if let Some(Ok(Some(entry))) = self.in_time(state.get(&key)).await {
            let _ = self.in_time(state.remove(&key, entry.revision)).await;
        }
    }
}

/// One upload, told of as it grows.
pub(crate) struct Telling<'a> {
    flight: &'a Flight,
    turns: &'a Turns,
    /// `None` for what is too small to be told of.
    size: Option<u64>,
    /// Parts that were told of.
    told: Option<u64>,
    insured: Option<Stored>,
}

impl<'a> Telling<'a> {
    pub fn new(flight: &'a Flight, turns: &'a Turns) -> Self {
        let is_large = |size: &u64| *size >= LASTING_FROM && turns.state().is_some();
        let size = flight.progress().size.filter(is_large);
        Self { flight, turns, size, told: None, insured: None }
    }

    /// Tells of the parts that have come to be stored since the last time.
    pub async fn tell(&mut self, write: &mut SpooledWrite) {
        let Some(size) = self.size else { return };
        let Some(standing) = write.standing() else { return };
        if self.told.is_some_and(|told| told >= standing.parts) {
            return;
        }
        self.told = Some(standing.parts);
        let stored = standing.bytes().unwrap_or_default();
        let hash = self.flight.spool().ok().and_then(|spool| spool.file.hash_at(stored));
        if let Some(hash) = hash {
            let Standing { upload, parts, part_size, tags } = standing;
            let record = PartsRecord { upload, size, parts, part_size, tags, hash };
            if !self.turns.tell(self.flight.digest(), &record).await {
                // Nobody can go on with it.
                self.insured = None;
                return;
            }
            write.outlasts();
        }
        self.insure(stored);
    }

    /// Only where no client waits, who would wait for storage with it.
    fn insure(&mut self, stored: u64) {
        match self.flight.urgency().now() {
            Priority::Interactive => self.insured = None,
            Priority::Background => {
                self.insured.get_or_insert_with(|| Stored::new(self.flight)).upto(stored);
            }
        }
    }
}

impl Flights {
    /// Finds the upload of the blob that a dead process left, for a flight that no client waits for:
    /// one who reads from the first byte needs all of it here.
    pub(crate) async fn left_upload(
        &self,
        load: &Load,
        source: &Source,
    ) -> Option<Arc<LeftUpload>> {
        let is_wanted = !load.is_open()
            && self.0.keeper.store().is_remote()
            && source.urgency.now() == Priority::Background;
        let size = source.size.filter(|size| is_wanted && *size >= LASTING_FROM)?;
        let record = self.0.turns.told(&source.digest).await?;
        let PartsRecord { upload, parts, part_size, tags, hash, .. } = record;
        let standing = Standing { upload, parts, part_size, tags };
        let bytes = standing.bytes().filter(|bytes| record.size == size && *bytes < size)?;
        if part_size != PART_BYTES as u64 || bytes < load.from() + WORTH {
            return None;
        }
        let left = self.0.keeper.store().left_upload(&source.digest, &standing, &hash).await;
        match left {
            Ok(Some(left)) => Some(left),
            Ok(None) => {
                tracing::info!(digest = %source.digest, "a dead process's upload is not as was told");
                None
            }
            Err(error) => {
                tracing::warn!(digest = %source.digest, %error, "a dead process's upload not read");
                None
            }
        }
    }
}
