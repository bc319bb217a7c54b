//! The whole frontend over real HTTP, with a scripted upstream, storage in memory or a directory,
//! and the bus away or real.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests, outside of their functions.

mod bad_input;
mod blobs;
mod lab;
mod manifests;
mod mirrors;
mod misses;
mod private;
mod sent_files;
mod storage;
mod tags;
