//! What can go wrong in storage, told by what the caller can do next.

use hydrant_proto::Digest;

/// A failure of storage.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else wrote the record first. Read it again and decide anew.
    #[error("{key} was changed by another writer")]
    Conflict { key: String },
    /// Storage did not do it, or did not say so. The same call may succeed later; writes of content
    /// may be repeated freely.
    #[error("{operation} {key}: {source}")]
    Unavailable { operation: &'static str, key: String, source: object_store::Error },
    /// Storage says no, and will until somebody changes its settings.
    #[error("{operation} {key}: {source}; check the credentials and permissions of the store")]
    Denied { operation: &'static str, key: String, source: object_store::Error },
    /// What was written is not what its digest or size says. Nothing of it is visible.
    #[error("content for {digest} is {found}")]
    WrongContent { digest: Digest, found: String },
    /// What lies in storage is damaged; it is no longer served.
    #[error("stored content of {digest} is damaged: {found}")]
    Corrupt { digest: Digest, found: String },
    /// A record that this version cannot read.
    #[error("record {key} cannot be read: {source}")]
    Record { key: String, source: serde_json::Error },
    /// The store cannot be used as it is configured.
    #[error("{0}")]
    Refused(String),
}

/// What to do about a [`StoreError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same call may succeed later.
    Later,
    /// Read again first.
    Reread,
    /// The same call fails again until something is changed.
    Never,
}

impl StoreError {
    pub fn retry(&self) -> Retry {
        match self {
            Self::Unavailable { .. } => Retry::Later,
            Self::Conflict { .. } => Retry::Reread,
            Self::Denied { .. }
            | Self::WrongContent { .. }
            | Self::Corrupt { .. }
            | Self::Record { .. }
            | Self::Refused(_) => Retry::Never,
        }
    }

    pub(crate) fn new(
        operation: &'static str,
        key: &impl ToString,
        source: object_store::Error,
    ) -> Self {
        use object_store::Error as E;
        let key = key.to_string();
        match source {
            E::AlreadyExists { .. } | E::Precondition { .. } => Self::Conflict { key },
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
                Self::Denied { operation, key, source }
            }
            source => Self::Unavailable { operation, key, source },
        }
    }
}
