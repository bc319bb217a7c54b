//! The whole pipeline on real parts, and what must hold for the workspace as a whole.

// A test reports what went wrong by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]

mod access;
mod alone;
mod audit;
mod away;
mod backlog;
mod breaker;
mod bus;
mod client;
mod depcheck;
mod example_config;
mod flights;
mod freshness;
mod frozen;
mod full;
mod gone;
mod herd;
mod hostile;
mod kills;
mod lab;
mod large;
mod lies;
mod loops;
mod promises;
mod protection;
mod pull;
mod secrets;
mod storage;
mod trace;
