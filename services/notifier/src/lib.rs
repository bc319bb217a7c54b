//! Signed webhooks: one delivery per endpoint, retried, logged, dead-lettered.

pub mod cloudevent;
mod filter;
mod schedule;
mod secret;
pub mod signature;

pub use schedule::Schedule;
