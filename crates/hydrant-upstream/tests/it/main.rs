//! The client against a registry that behaves, and one that does not, on real sockets.

#![allow(clippy::unwrap_used)] // Helpers of tests, outside of their functions.

mod blobs;
mod breaker;
mod credentials;
mod lab;
mod manifests;
mod manners;
mod realms;
mod stock_registry;
mod via;
