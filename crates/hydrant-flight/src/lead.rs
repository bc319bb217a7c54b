//! Leading a flight: from the upstream into the spool and on into storage, for everybody.

use crate::{
    error::FlightError,
    fetch::{self, Fetched},
    flight::Flight,
    flights::{Flights, Source},
    load::Load,
    turn::{Tenure, Turn},
};
use hydrant_telemetry::metrics::{FlightPart, metrics};
use std::{pin::pin, time::Duration};
use tokio_util::sync::CancellationToken;

/// Tries to write a verified blob to storage before it is left to the next flight.
const STORE_TRIES: u32 = 3;

/// How far a leader came.
enum Led {
    /// Stored, and linked.
    Landed,
    /// Another process leads.
    Halted,
}

impl Flights {
    /// Fetches what is missing and stores the blob; returns the next turn if another process has
    /// come to lead meanwhile.
    pub(crate) async fn lead(
        &self,
        flight: &Flight,
        load: &mut Load,
        source: &Source,
        mut tenure: Tenure,
    ) -> Result<Option<Turn>, FlightError> {
        metrics().flights.part(part(load, &tenure));
        let halt = CancellationToken::new();
        let (led, next) = {
            let mut work = pin!(self.work(flight, load, source, &halt));
            tokio::select! {
                led = &mut work => (led?, None),
                next = tenure.deposed() => {
                    halt.cancel();
                    (work.await?, Some(next))
                }
            }
        };
        match led {
            Led::Halted => {
                tracing::info!("another process leads the flight now");
                next.ok_or(FlightError::Stopping).map(Some)
            }
            Led::Landed => {
                tenure.stored(flight.progress().spooled).await;
                Ok(None)
            }
        }
    }

    async fn work(
        &self,
        flight: &Flight,
        load: &mut Load,
        source: &Source,
        halt: &CancellationToken,
    ) -> Result<Led, FlightError> {
        if load.is_full() {
            load.confirm()?;
            return self.kept(flight, halt).await;
        }
        let Some(body) = halt.run_until_cancelled(fetch::open(load, source)).await else {
            return Ok(Led::Halted);
        };
        let body = body?;
        let fetching = async {
            let fetched = fetch::fetch(load, source, body, halt).await;
            if let Err(error) = &fetched {
                // The upload follows the flight, and ends by hearing of the failure.
                self.fail(flight, error.clone());
            }
            fetched
        };
        let (fetched, kept) = tokio::join!(fetching, self.kept(flight, halt));
        match fetched? {
            Fetched::Halted => Ok(Led::Halted),
            Fetched::Whole => kept,
        }
    }

    /// Follows the flight into storage; where that fails, tries again with what is in the spool.
    async fn kept(&self, flight: &Flight, halt: &CancellationToken) -> Result<Led, FlightError> {
        let keeping = async {
            let mut kept = self.0.keeper.keep(flight).await;
            for attempt in 1..STORE_TRIES {
                let Err(error) = &kept else { break };
                if !flight.progress().whole {
                    break;
                }
                tracing::warn!(digest = %flight.digest(), %error, attempt,
                    "blob not stored, trying again");
                tokio::time::sleep(Duration::from_secs(u64::from(attempt))).await;
                kept = self.kept_again(flight).await;
            }
            kept
        };
        match halt.run_until_cancelled(keeping).await {
            Some(kept) => kept.map(|()| Led::Landed),
            None => Ok(Led::Halted),
        }
    }

    async fn kept_again(&self, flight: &Flight) -> Result<(), FlightError> {
        // Another process may have stored it, and ended our write as superfluous.
        match self.0.keeper.store().blob_size(flight.digest()).await {
            Ok(Some(size)) if Some(size) == flight.progress().size => {
                self.0.keeper.link(flight).await
            }
            _ => self.0.keeper.keep(flight).await,
        }
    }
}

fn part(load: &Load, tenure: &Tenure) -> FlightPart {
    match (tenure.is_held(), load.is_open()) {
        (true, false) => FlightPart::Lead,
        (true, true) => FlightPart::TakeOver,
        (false, _) => FlightPart::Alone,
    }
}
