//! One upstream read per blob.
//!
//! Whoever needs a blob first begins its flight: upstream -> hash -> spool file, and from the spool
//! into storage. Everybody else follows the flight and reads along. A flight is decoupled from its
//! readers: it goes on when the client that began it leaves, and a slow one slows nobody.

mod error;
mod fetch;
mod flight;
mod flights;
mod keep;
mod passthrough;
mod spool;

pub use error::FlightError;
pub use flight::{Flight, Grant, Opened, Progress, Stage};
pub use flights::{Flights, Source};
pub use passthrough::{Passthrough, pass_through};
