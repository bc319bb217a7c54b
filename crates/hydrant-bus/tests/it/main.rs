//! The bus against a real nats-server, one per test.

// Test helpers fail by panicking, as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

mod connect;
mod consume;
mod documents;
mod events;
mod faults;
mod held;
mod queue;
mod shared;
mod support;
