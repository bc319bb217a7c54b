//! The notifier against a real nats-server and real sockets.

// Test helpers fail by panicking, as tests do.
#![allow(clippy::unwrap_used)]

mod bench;
mod deliveries;
mod raw;
mod trace;
