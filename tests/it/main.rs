//! The whole pipeline on real parts, and what must hold for the workspace as a whole.

// A test reports what went wrong by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]

mod access;
mod away;
mod breaker;
mod client;
mod depcheck;
mod example_config;
mod flights;
mod freshness;
mod herd;
mod kills;
mod lab;
mod large;
mod lies;
mod protection;
mod pull;
mod trace;
