//! Leading a flight: from the upstream into the spool and on into storage, for everybody.

use crate::{
    error::FlightError,
    far::Way,
    fetch::{self, Fetched},
    flight::Flight,
    flights::{Flights, Source},
    load::Load,
    offers,
    turn::{News, Tenure, Turn},
};
use hydrant_telemetry::metrics::{FlightPart, metrics};
use std::{pin::pin, time::Duration};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// How long a verified blob is kept in the spool, and served from there, while storage does not take
/// it; then it is left to the next flight.
const STORE_FOR: Duration = Duration::from_secs(10 * 60);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// How long one that takes over waits for the others to say what they have: each of them looks for
/// its new leader at least that often.
const ASSEMBLY: Duration = Duration::from_millis(1_250);

/// What a leader starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// Nobody had the blob.
    Fresh,
    /// Another process led before, or may have.
    After,
}

/// Why a leader is to stop.
enum Change {
    /// Another process leads, or has finished.
    Deposed(Turn),
    /// The blob is in storage.
    Stored,
}

/// How far a leader came.
enum Led {
    /// Stored, and linked.
    Landed,
    /// Another process leads.
    Halted,
}

impl Flights {
    /// Fetches what is missing and stores the blob; returns the next turn if another process has
    /// come to lead, or to an end, meanwhile.
    pub(crate) async fn lead(
        &self,
        flight: &Flight,
        load: &mut Load,
        source: &Source,
        mut tenure: Tenure,
        start: Start,
    ) -> Result<Option<Turn>, FlightError> {
        metrics().flights.part(part(start, &tenure));
        let halt = CancellationToken::new();
        let (led, change) = {
            let assembled = start == Start::After && tenure.is_held();
            let work = async {
                if assembled {
                    self.assemble(load, &halt).await?;
                }
                self.work(flight, load, source, &halt).await
            };
            let mut work = pin!(work);
            tokio::select! {
                led = &mut work => (led?, None),
                change = self.change(flight, &mut tenure, source) => {
                    halt.cancel();
                    (work.await?, Some(change))
                }
            }
        };
        match (led, change) {
            (Led::Halted, Some(Change::Stored)) => Ok(Some(Turn::Lead(tenure))),
            (Led::Halted, Some(Change::Deposed(turn))) => {
                tracing::info!("another process leads the flight now");
                Ok(Some(turn))
            }
            (Led::Halted, None) => Err(FlightError::Stopping),
            (Led::Landed, _) => {
                tenure.stored(flight.progress().spooled).await;
                Ok(None)
            }
        }
    }

    /// Ends when there is nothing left to lead.
    async fn change(&self, flight: &Flight, tenure: &mut Tenure, source: &Source) -> Change {
        loop {
            match tenure.news().await {
                News::Deposed(turn) => return Change::Deposed(turn),
                // Nobody was kept from storing it in the time without a lease. Before the upstream
                // has delivered, nobody has said that it may be read here.
                News::Seated if flight.is_spooled() && self.stored(source).await.is_some() => {
                    return Change::Stored;
                }
                News::Seated => {}
            }
        }
    }

    /// Takes what the others have, so that it is not fetched twice.
    async fn assemble(&self, load: &mut Load, halt: &CancellationToken) -> Result<(), FlightError> {
        if load.is_full() {
            return Ok(());
        }
        halt.run_until_cancelled(sleep(ASSEMBLY)).await;
        offers::accept(&self.0.peers, load, halt).await
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
        load.recall(source.size);
        if let Some(left) = self.left_upload(load, source).await {
            tracing::info!(offset = left.bytes(), "going on with the upload of a dead process");
            load.go_on_with(left);
        }
        let lanes = &self.0.lanes;
        let Some(body) = halt.run_until_cancelled(fetch::open(load, source, lanes)).await else {
            return Ok(Led::Halted);
        };
        let body = body?;
        flight.0.far.come_by(Way::Upstream(source.clone()));
        let fetching = async {
            let fetched = fetch::fetch(load, source, lanes, &self.0.peers, body, halt).await;
            if let Err(error) = &fetched {
                if let FlightError::Integrity(_) = error {
                    // Whoever tries again would go on with the same.
                    self.0.turns.take_back(flight.digest()).await;
                }
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
            let mut kept = self.0.keeper.keep(flight, &self.0.turns).await;
            if flight.is_of_an_upload() {
                // Only that upload has the beginning: it is for the next flight to see what it is.
                return kept;
            }
            // Storage may have failed while the bytes still arrived: then it has time from the end.
            if kept.is_err() && flight.sealed().await.is_err() {
                return kept;
            }
            let (mut pause, until) = (Duration::from_secs(1), Instant::now() + STORE_FOR);
            while let Err(error) = &kept {
                if Instant::now() + pause > until {
                    break;
                }
                tracing::warn!(digest = %flight.digest(), %error, "blob not stored, trying again");
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
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
        let store = self.0.keeper.store();
        let is_kept = match flight.progress().size {
            Some(size) => store.keeps_blob(flight.digest(), size).await.unwrap_or(false),
            None => false,
        };
        match is_kept {
            true => self.0.keeper.link(flight).await,
            false => self.0.keeper.keep(flight, &self.0.turns).await,
        }
    }
}

fn part(start: Start, tenure: &Tenure) -> FlightPart {
    match (tenure.is_held(), start) {
        (true, Start::Fresh) => FlightPart::Lead,
        (true, Start::After) => FlightPart::TakeOver,
        (false, _) => FlightPart::Alone,
    }
}
