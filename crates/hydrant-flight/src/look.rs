//! A flight that is over: its blob is taken from storage, where its leader put it.

use crate::{
    error::FlightError,
    flight::Flight,
    flights::{Flights, Source},
    load::{Body, Load, Taken},
    turn::{Leader, Turn},
};
use futures::{StreamExt, TryStreamExt};
use tokio_util::sync::CancellationToken;

impl Flights {
    /// Takes the blob that another process is said to have stored; the next turn, if it is not
    /// there after all.
    pub(crate) async fn look(
        &self,
        flight: &Flight,
        load: &mut Load,
        source: &Source,
        leader: &Leader,
    ) -> Result<Option<Turn>, FlightError> {
        let size = self.stored(source).await;
        let Some(size) = size.filter(|size| load.size().is_none_or(|known| known == *size)) else {
            let upstream = source.client.upstream().name.as_str();
            return Ok(Some(self.0.turns.after(leader, flight, upstream).await));
        };
        match load.is_open() {
            true => self.finish(load, source, size).await?,
            false => flight.0.progress.send_modify(|progress| progress.size = Some(size)),
        }
        self.0.keeper.link(flight).await?;
        Ok(None)
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
