//! One upstream read per blob.
//!
//! Whoever needs a blob first begins its flight: upstream -> hash -> spool file, and from the spool
//! into storage. Everybody else follows the flight and reads along. A flight is decoupled from its
//! readers: it goes on when the client that began it leaves, and a slow one slows nobody.
//!
//! In a cluster one process leads a flight and the others follow it, each with a spool of its own:
//! when the leader is gone, one of them goes on from the byte it has. `turn.rs` says whose turn it
//! is, `lead.rs`, `follow.rs` and `look.rs` what is to be done in it.
//!
//! Who wants only a part gets it from the flight, or ahead of it: `part.rs` and `far.rs`.

mod aside;
mod calm;
mod crowd;
mod error;
mod far;
mod fetch;
mod flight;
mod flights;
mod follow;
mod insurance;
mod intake;
mod keep;
mod kept;
mod lead;
mod leftovers;
mod load;
mod look;
mod manifest;
#[cfg(test)]
mod model;
mod offers;
mod part;
mod passthrough;
mod peers;
mod question;
mod ranges;
mod reach;
mod recent;
mod record;
mod refill;
mod serve;
mod spool;
mod turn;

pub use error::FlightError;
pub use flight::{Flight, Grant, Opened, Progress, Stage};
pub use flights::{Flights, Source};
pub use manifest::{ManifestSource, Sourced};
pub use passthrough::Passthrough;
pub use turn::Cluster;
