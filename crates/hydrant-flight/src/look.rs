//! A flight that is over: its blob is taken from storage, where its leader put it.

use crate::{
    error::FlightError,
    flight::Flight,
    flights::{Flights, Look, Source},
    load::{Body, Load, Taken},
    peers::{Along, Answer, Offer},
    turn::{Leader, Turn},
};
use futures::{StreamExt, TryStreamExt};
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Longest wait for storage to say whether a blob was stored, while readers wait for its bytes.
const GLANCE: Duration = Duration::from_secs(1);
/// Longest wait for bytes that are at hand at another process: without them the upstream is asked.
const PATIENCE: Duration = Duration::from_secs(5);

impl Flights {
    /// Takes the blob that another process is said to have stored; the next turn, if it is not
    /// there after all.
    pub(crate) async fn look(
        &self,
        flight: &Flight,
        load: &mut Load,
        source: &Source,
        look: &Look,
        leader: &Leader,
    ) -> Result<Option<Turn>, FlightError> {
        let is_here = match look {
            Look::PastStorage(_) => self.take_kept(load, leader).await?,
            Look::StorageFirst | Look::Upstream(_) => self.take_stored(load, source).await?,
        };
        if is_here {
            self.0.keeper.link(flight).await?;
            return Ok(None);
        }
        let upstream = source.client.upstream().name.as_str();
        Ok(Some(self.0.turns.after(leader, flight, upstream).await))
    }

    /// Whether the blob was stored while others led, and is taken from there by who was about to
    /// lead. What storage cannot tell, or not deliver, comes from the upstream.
    pub(crate) async fn is_over(
        &self,
        load: &mut Load,
        source: &Source,
        look: &Look,
    ) -> Result<bool, FlightError> {
        if matches!(look, Look::PastStorage(_)) {
            return Ok(false);
        }
        match timeout(GLANCE, self.stored(source)).await {
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return Ok(false),
        }
        match self.take_stored(load, source).await {
            Ok(true) => self.0.keeper.link(load.flight()).await.map(|()| true),
            Ok(false) => Ok(false),
            Err(error) => {
                tracing::warn!(%error, "stored blob not read, asking the upstream");
                Ok(false)
            }
        }
    }

    async fn take_stored(&self, load: &mut Load, source: &Source) -> Result<bool, FlightError> {
        let size = self.stored(source).await;
        let Some(size) = size.filter(|size| load.size().is_none_or(|known| known == *size)) else {
            return Ok(false);
        };
        match load.is_open() {
            true => self.finish(load, source, size).await?,
            false => load.flight().0.progress.send_modify(|progress| progress.size = Some(size)),
        }
        Ok(true)
    }

    /// Takes what the process that stored the blob still has of it.
    async fn take_kept(&self, load: &mut Load, leader: &Leader) -> Result<bool, FlightError> {
        let record = &leader.record;
        let (Ok(address), Some(upto)) = (record.peer.parse(), record.stored) else {
            return Ok(false);
        };
        let offer = Offer { address, key: record.key.clone(), upto };
        let digest = load.flight().digest().clone();
        let along = self.0.peers.accept(&offer, &digest, load.at(), PATIENCE).await;
        let Answer::Here(Along { size, body }) = along else { return Ok(false) };
        load.open(size)?;
        load.take(body, &CancellationToken::new()).await?;
        if load.is_full() {
            load.confirm()?;
        }
        Ok(load.is_full())
    }

    /// Readers who were told that the blob is coming get the rest of it from storage.
    async fn finish(&self, load: &mut Load, source: &Source, size: u64) -> Result<(), FlightError> {
        if !load.is_full() {
            let rest = load.at()..size;
            let found = self.0.keeper.store().read_blob(&source.digest, Some(rest)).await?;
            let found = found.ok_or_else(|| gone("it was there a moment ago"))?;
            let stream = found.stream.map_err(FlightError::from).boxed();
            let body = Body { offset: load.at(), stream };
            match load.take(body, &CancellationToken::new()).await? {
                Taken::Broken(error) => return Err(error),
                Taken::Ended | Taken::Halted if !load.is_full() => return Err(gone("it is short")),
                Taken::Ended | Taken::Halted => {}
            }
        }
        load.confirm().map(drop)
    }
}

fn gone(what: &str) -> FlightError {
    FlightError::Integrity(format!("stored blob: {what}"))
}
