//! Several processes' worth of clients, one bus, one scripted upstream.

// A test reports what went wrong by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]

mod breaker;
mod lab;
mod limits;
