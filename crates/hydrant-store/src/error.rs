//! What can go wrong with storage, by what the caller can do next.

use hydrant_proto::{Digest, FailureClass};
use object_store::path::Path;
use std::{error::Error, io, sync::Arc};

/// What the storage library said. Shared, so that one failure can be told to many waiters.
pub type Cause = Arc<dyn Error + Send + Sync>;

#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else wrote first, nothing of ours is visible: read again and decide again.
    #[error("`{key}` was changed by somebody else in the meantime")]
    Conflict { key: String },
    /// The write may have happened, or may happen yet: read again and decide again.
    #[error("whether `{key}` was written is unknown: {cause}")]
    Unknown { key: String, cause: Cause },
    /// The store asks for less load: come back later.
    #[error("storage is throttling at `{key}`: {cause}")]
    Throttled { key: String, cause: Cause },
    /// The store cannot be reached, is too slow or fails: come back later.
    #[error("storage is unavailable at `{key}`: {cause}")]
    Unavailable { key: String, cause: Cause },
    /// No room, or over quota: serve without storing, come back later.
    #[error("storage is full at `{key}`: {cause}")]
    Full { key: String, cause: Cause },
    /// The bytes given to be stored are not those of the digest; nothing was stored.
    #[error("content offered as {digest} is refused: {reason}")]
    Mismatch { digest: Digest, reason: String },
    /// What lies in storage is not what its key says: cut the answer; the next read finds it gone.
    #[error("stored content {digest} is damaged: {reason}")]
    Corrupt { digest: Digest, reason: String },
    /// Content that has to be there before this call is not: store it first.
    #[error("content {digest} is not in storage")]
    Missing { digest: Digest },
    /// Storage or its configuration does not allow it; trying again changes nothing.
    #[error("storage refuses: {reason}")]
    Refused { reason: String },
}

/// When the same call may succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Not by itself.
    Never,
    /// After reading again what is there now.
    Observe,
    /// After some time.
    Later,
}

impl StoreError {
    pub fn retry(&self) -> Retry {
        match self {
            Self::Conflict { .. } | Self::Unknown { .. } | Self::Missing { .. } => Retry::Observe,
            Self::Throttled { .. } | Self::Unavailable { .. } | Self::Full { .. } => Retry::Later,
            Self::Corrupt { .. } => Retry::Later,
            Self::Mismatch { .. } | Self::Refused { .. } => Retry::Never,
        }
    }

    pub fn class(&self) -> FailureClass {
        match self {
            Self::Mismatch { .. } | Self::Corrupt { .. } => FailureClass::Integrity,
            Self::Conflict { .. }
            | Self::Unknown { .. }
            | Self::Throttled { .. }
            | Self::Unavailable { .. }
            | Self::Full { .. }
            | Self::Missing { .. }
            | Self::Refused { .. } => FailureClass::Storage,
        }
    }

    /// A failed write is in doubt unless the store said clearly that it did not take it.
    pub(crate) fn in_doubt(self) -> Self {
        match self {
            Self::Unavailable { key, cause } => Self::Unknown { key, cause },
            other => other,
        }
    }
}

/// Whether the object is certainly not there. A missing bucket is no such certainty.
pub(crate) fn is_absence(error: &object_store::Error) -> bool {
    match error {
        object_store::Error::NotFound { .. } => !error.to_string().contains("NoSuchBucket"),
        _ => false,
    }
}

/// Whether a conditional write was refused because its condition did not hold.
pub(crate) fn is_conflict(error: &object_store::Error) -> bool {
    use object_store::Error as E;
    matches!(error, E::AlreadyExists { .. } | E::Precondition { .. } | E::NotModified { .. })
}

/// Names what a failure of the storage library means for the caller.
pub(crate) fn classify(path: &Path, error: object_store::Error) -> StoreError {
    use object_store::Error as E;
    let (key, text) = (path.to_string(), error.to_string());
    match error {
        _ if is_conflict(&error) => StoreError::Conflict { key },
        E::PermissionDenied { .. }
        | E::Unauthenticated { .. }
        | E::NotSupported { .. }
        | E::NotImplemented { .. }
        | E::InvalidPath { .. }
        | E::UnknownConfigurationKey { .. } => StoreError::Refused { reason: text },
        E::NotFound { .. } if text.contains("NoSuchBucket") => {
            StoreError::Refused { reason: format!("the bucket does not exist ({text})") }
        }
        error => by_text(key, &text, Arc::new(error)),
    }
}

/// The status of an S3 answer is only in the text of `object_store`'s errors.
fn by_text(key: String, text: &str, cause: Cause) -> StoreError {
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    match io_kind(&*cause) {
        Some(
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge,
        ) => StoreError::Full { key, cause },
        Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
            StoreError::Refused { reason: text.to_owned() }
        }
        _ if says(&["status code: 507", "QuotaExceeded", "StorageFull"]) => {
            StoreError::Full { key, cause }
        }
        _ if says(&["status code: 503", "status code: 429", "SlowDown"]) => {
            StoreError::Throttled { key, cause }
        }
        // Of S3's 400s these pass by themselves.
        _ if says(&["RequestTimeout", "ExpiredToken", "BadDigest"]) => {
            StoreError::Unavailable { key, cause }
        }
        _ if says(&["status code: 400", "status code: 405", "status code: 501"]) => {
            StoreError::Refused { reason: text.to_owned() }
        }
        _ => StoreError::Unavailable { key, cause },
    }
}

fn io_kind(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    let (mut kind, mut next) = (None, Some(error));
    while let Some(error) = next {
        kind = error.downcast_ref::<io::Error>().map(io::Error::kind).or(kind);
        next = error.source();
    }
    kind
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> StoreError {
        let error = object_store::Error::Generic { store: "S3", source: text.into() };
        classify(&Path::from("k"), error)
    }

    #[test]
    fn answers_are_classed_by_what_to_do_next() {
        let answer = |code| generic(&format!("Server returned non-2xx status code: {code}: x"));
        assert!(matches!(answer("503 Service Unavailable"), StoreError::Throttled { .. }));
        assert!(matches!(answer("500 Internal"), StoreError::Unavailable { .. }));
        assert!(matches!(answer("507 Insufficient"), StoreError::Full { .. }));
        assert!(matches!(answer("501 Not Implemented"), StoreError::Refused { .. }));
    }

    #[test]
    fn a_full_disk_is_found_below_the_library_error() {
        let source = Box::new(io::Error::from(io::ErrorKind::StorageFull));
        let error = object_store::Error::Generic { store: "LocalFileSystem", source };
        assert!(matches!(classify(&Path::from("k"), error), StoreError::Full { .. }));
    }

    #[test]
    fn a_missing_bucket_is_not_a_missing_object() {
        let missing = |text: &str| object_store::Error::NotFound {
            path: "k".to_owned(),
            source: text.to_owned().into(),
        };
        assert!(is_absence(&missing("NoSuchKey")));
        assert!(!is_absence(&missing("<Code>NoSuchBucket</Code>")));
    }
}
