//! What followers have of a blob beyond what is here: taken from them before the upstream is asked
//! for it, by who has taken over, and by who came to lead while another process had read more.

use crate::{
    error::FlightError,
    flight::Flight,
    load::Load,
    peers::{Answer, Offer, Peers},
};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Longest wait for bytes that are at hand where they are asked for.
const PROMPT: Duration = Duration::from_secs(1);
/// Most offers that are tried in a row: who does not honour one costs its readers a second.
pub(crate) const TRIES: usize = 3;
/// How much more than the flight another process must have, for the upstream to be left for it.
pub(crate) const WORTH: u64 = 4 * 1024 * 1024;

/// Takes what was offered: the most first, and where that does not come, the next.
pub(crate) async fn accept(
    peers: &Peers,
    load: &mut Load,
    halt: &CancellationToken,
) -> Result<(), FlightError> {
    for _ in 0..TRIES {
        let flight = load.flight().clone();
        let Some(offer) = flight.take_offer(load.at()) else { return Ok(()) };
        let accepted = peers.accept(&offer, flight.digest(), load.at(), PROMPT);
        if let Some(Answer::Here(along)) = halt.run_until_cancelled(accepted).await {
            load.open(along.size)?;
            let taken = load.take(along.body, halt).await?;
            tracing::debug!(peer = %offer.address, offset = load.at(), ?taken, "took what it has");
        }
    }
    Ok(())
}

/// Which of `offers` is the most, beyond what is `here`.
pub(crate) fn best(offers: &[Offer], here: u64) -> Option<usize> {
    let worth = offers.iter().enumerate().filter(|(_, offer)| offer.upto > here);
    worth.max_by_key(|(_, offer)| offer.upto).map(|(at, _)| at)
}

/// Ends when another process has so much more that the upstream need not be asked for it.
pub(crate) async fn worth_taking(flight: &Flight) {
    while !flight.has_offer(flight.progress().spooled + WORTH) {
        flight.offered_more().await;
    }
}
