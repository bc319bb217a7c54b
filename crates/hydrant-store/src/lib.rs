//! Object storage: keys, verified writes, reads, records with compare-and-set.
//!
//! Storage is the truth. Content becomes visible in an order: blobs and their links, manifests with
//! their links, the tag. Nothing is visible under a digest it does not hash to.

mod backend;
mod blob;
mod error;
mod key;
mod list;
mod log;
mod manifest;
mod open;
mod prefix;
mod probe;
mod record;
mod staging;
mod tag;
mod upload;

pub use blob::BlobRead;
pub use error::{Retry, StoreError};
pub use list::Page;
pub use log::{CompletionRecord, DeadLetter, MissRecord, Undelivered, Wanted};
pub use manifest::Referrer;
pub use open::{StoreConfig, StoreUrl};
pub use record::Version;
pub use tag::{Owner, TagRecord};
pub use upload::{BlobWriter, PART_BYTES, UPLOAD_DEAD_AFTER};

use std::sync::Arc;
use tokio::sync::Semaphore;

/// A store. Cheap to clone; clones share the limit on parts in memory.
#[derive(Clone, Debug)]
pub struct Store {
    backend: backend::Backend,
    part_budget: Arc<Semaphore>,
}
