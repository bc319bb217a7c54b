//! The words the services say to each other: names, digests, jobs, events, subjects and their
//! codec. Nothing here does IO.
//!
//! Everything that arrives from outside is parsed once into a type of this crate and passed on as
//! that type, so no callee checks it again.

pub mod class;
pub mod cloudevent;
pub mod codec;
pub mod digest;
pub mod event;
pub mod fleet;
pub mod image;
pub mod job;
pub mod manifest;
pub mod state;
pub mod subject;
pub mod via;

pub use class::FailureClass;
pub use codec::{CodecError, Message};
pub use digest::{Algorithm, Digest, Hasher, InvalidDigest};
pub use event::{Event, EventData, EventKind};
pub use fleet::{Cause, QuotaReport, UpstreamReport, Verdict};
pub use image::{Image, InvalidName, Platform, Reference, RepositoryName, Tag};
pub use job::{HydrationRequested, JobId, Lane, ReferenceKind};
pub use manifest::{Descriptor, InvalidManifest, Manifest, MediaType};
pub use state::{
    BlobProgress, DeliveryAttempt, DeliveryOutcome, FlightRecord, JobPhase, JobState,
    ManifestRecord, PartsRecord, SharedValue,
};
pub use via::{HydrantId, Identity, Via};
