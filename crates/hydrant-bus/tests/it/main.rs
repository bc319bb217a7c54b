//! The bus against a real nats-server, one per test.

mod connect;
mod consume;
mod documents;
mod events;
mod faults;
mod queue;
mod support;
