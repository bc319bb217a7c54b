//! Why a flight failed. Cloneable, because every follower hears of it.

use hydrant_proto::FailureClass;
use hydrant_store::StoreError;
use hydrant_upstream::UpstreamError;
use std::{sync::Arc, time::Duration};

/// A flight that did not end with the true bytes.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FlightError {
    /// The upstream could not or would not deliver.
    #[error("fetch from upstream: {0}")]
    Upstream(#[source] Arc<UpstreamError>),
    /// What the upstream delivered is not what the digest names. Nothing of it was kept.
    #[error("upstream delivered wrong content: {0}")]
    Integrity(String),
    /// No room to spool: the budget or the disk is used up. Pass the blob through, or come back.
    #[error("no spool space: {0}")]
    NoSpool(String),
    /// The bytes arrived and were verified, but storage did not take them.
    #[error("write to storage: {0}")]
    Store(#[source] Arc<StoreError>),
    /// Another process leads the flight, for repositories among which ours is not: whether it may
    /// have the blob is to be found out first.
    #[error("the blob is in flight for another repository")]
    Foreign,
    /// The process that leads the flight failed, at the upstream that we would ask as well.
    #[error("{reason}")]
    Elsewhere { class: FailureClass, retry_after: Option<Duration>, reason: String },
    /// The process is stopping.
    #[error("the process is stopping")]
    Stopping,
}

impl FlightError {
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Upstream(error) => error.class(),
            Self::Integrity(_) => FailureClass::Integrity,
            Self::NoSpool(_) | Self::Store(_) | Self::Stopping => FailureClass::Storage,
            Self::Foreign => FailureClass::Denied,
            Self::Elsewhere { class, .. } => *class,
        }
    }

    /// How long the upstream asked us to stay away, if it did.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Upstream(error) => error.retry_after(),
            Self::Elsewhere { retry_after, .. } => *retry_after,
            Self::Integrity(_)
            | Self::NoSpool(_)
            | Self::Store(_)
            | Self::Foreign
            | Self::Stopping => None,
        }
    }
}

/// Whether every repository of the upstream would have met with it, so that a process that waited
/// for another one's answer need not ask as well.
pub(crate) fn is_of_the_upstream(class: FailureClass) -> bool {
    match class {
        FailureClass::UpstreamDown | FailureClass::UpstreamLimit | FailureClass::BreakerOpen => {
            true
        }
        FailureClass::Denied
        | FailureClass::Unknown
        | FailureClass::UpstreamAuth
        | FailureClass::UpstreamLoop
        | FailureClass::Storage
        | FailureClass::Integrity
        | FailureClass::Unsupported => false,
    }
}

impl From<UpstreamError> for FlightError {
    fn from(error: UpstreamError) -> Self {
        Self::Upstream(Arc::new(error))
    }
}

impl From<StoreError> for FlightError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}
