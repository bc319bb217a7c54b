//! Object storage: keys, verified writes, reads, records with compare-and-set.
//!
//! Storage is the truth. Content is visible under its key only after size and digest agree, and is
//! laid out as CNCF distribution lays it out; hydrant's own records lie beside it (`key.rs`).
//! The seam is [`object_store::ObjectStore`]: S3, a local directory, or memory for tests. Every
//! decision between writers is a compare-and-set (`cas.rs`), never a read.
//!
//! Not here: what is fetched, when, and in which order it becomes visible. The rooms above store
//! blobs, then children, then the manifest, then the tag.

mod adopt;
mod batch;
mod blob;
mod cas;
mod closure;
mod completion;
mod dead_letter;
mod directory;
mod error;
#[cfg(test)]
mod faulty;
mod identity;
mod key;
mod lasting;
mod layout;
mod left_upload;
mod leftovers;
mod link;
mod list;
mod manifest;
mod miss;
mod object;
mod open;
mod origin;
mod parts;
mod pread;
mod probe;
mod pwrite;
mod quarantine;
mod read;
mod referrer;
mod s3;
mod sound;
mod sound_file;
mod spooled;
mod staged;
mod tag;
mod unwritten;
mod upload;
mod warm;
mod writer;

pub use adopt::SpooledWrite;
pub use blob::BlobRead;
pub use cas::Version;
pub use closure::Durability;
pub use completion::CompletionRecord;
pub use dead_letter::{
    DeadLetter, DeadLetterId, DeadLetterMark, DeadLetterPage, GivenUp, InvalidDeadLetterId,
    InvalidDeadLetterMark,
};
pub use error::{Cause, Retry, StoreError};
pub use lasting::LeftSpool;
pub use left_upload::{LeftUpload, Standing};
pub use leftovers::Leftover;
pub use list::Page;
pub use miss::{MissRecord, Wanted};
pub use open::{InvalidStoreUrl, S3Settings, StoreConfig, StoreUrl};
pub use origin::Takeover;
pub use quarantine::Scrubbed;
pub use referrer::Referrer;
pub use sound_file::SoundFile;
pub use spooled::{Refill, Sealed, Spooled, SpooledReader};
pub use tag::{
    Follows, Frozen, MAX_TAG_LINES, Move, Owner, Sighting, Stays, Steering, TagAct, TagLine,
    TagRecord, Terms, Unfrozen, Writer,
};
pub use upload::PART_BYTES;
pub use writer::BlobWriter;

use directory::Directory;
use hydrant_proto::Digest;
use object_store::{ObjectStore, path::Path};
use parts::Parts;
use s3::S3;
use sound::Sound;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use tokio_util::task::TaskTracker;

/// The store. Clones share connections, upload slots and clean-up.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    /// What every key begins with; empty for a directory.
    prefix: Path,
    backend: Backend,
    /// Parts of blobs being sent, over all blobs of this process.
    parts: Parts,
    /// Aborts of dropped uploads and re-reads of suspect content.
    background: TaskTracker,
    /// Content that is being read again, or is to be, because a reader found it damaged or saw
    /// only a part of it; and whether the damage was counted.
    suspects: Arc<Mutex<BTreeMap<Digest, bool>>>,
    sound: Arc<Sound>,
}

/// What differs between the places objects can be.
#[derive(Clone)]
enum Backend {
    Memory,
    Directory(Arc<Directory>),
    S3(Arc<S3>),
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({}, prefix {:?})", self.objects, self.prefix.as_ref())
    }
}

impl Store {
    /// Whether reading takes requests to another machine.
    pub fn is_remote(&self) -> bool {
        matches!(self.backend, Backend::S3(_))
    }

    fn new(objects: Arc<dyn ObjectStore>, prefix: Path, backend: Backend) -> Self {
        let parts = Parts::new(&backend);
        let (suspects, sound) = (Arc::default(), Arc::new(Sound::new()));
        Self { objects, prefix, backend, parts, background: TaskTracker::new(), suspects, sound }
    }

    /// Waits until the clean-up behind dropped writers is done. Last thing of a shutdown, after
    /// the last writer is gone; put a deadline around it.
    pub async fn settled(&self) {
        self.sound.stop();
        self.background.close();
        self.background.wait().await;
    }
}
