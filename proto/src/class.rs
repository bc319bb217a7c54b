//! The class of a failure: what a caller, a log reader and a dashboard need to tell apart.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why something could not be had. Every failed answer, dead letter and failure event names one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureClass {
    /// The upstream, or our own policy, says this caller may not have it.
    Denied,
    /// The upstream says with certainty that it does not exist.
    Unknown,
    /// Our credential for the upstream, or its token service, was refused or unusable.
    UpstreamAuth,
    /// The upstream limits our request rate (429, or an exhausted quota).
    UpstreamLimit,
    /// The upstream is unreachable, too slow, or answers 5xx.
    UpstreamDown,
    /// The upstream leads back to the hydrant that asks it, or in a circle beyond it.
    UpstreamLoop,
    /// The circuit breaker of the upstream is open; it was not asked.
    BreakerOpen,
    /// Our own object storage failed.
    Storage,
    /// Bytes did not agree with their digest, size or media type, or broke a limit.
    Integrity,
    /// The content is of a kind hydrant does not carry, such as image manifest schema 1.
    Unsupported,
}

impl FailureClass {
    /// Every class, for metrics and documents that list them.
    pub const ALL: [Self; 10] = [
        Self::Denied,
        Self::Unknown,
        Self::UpstreamAuth,
        Self::UpstreamLimit,
        Self::UpstreamDown,
        Self::UpstreamLoop,
        Self::BreakerOpen,
        Self::Storage,
        Self::Integrity,
        Self::Unsupported,
    ];

    /// The name used in headers, errors, logs and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Unknown => "unknown",
            Self::UpstreamAuth => "upstream-auth",
            Self::UpstreamLimit => "upstream-limit",
            Self::UpstreamDown => "upstream-down",
            Self::UpstreamLoop => "upstream-loop",
            Self::BreakerOpen => "breaker-open",
            Self::Storage => "storage",
            Self::Integrity => "integrity",
            Self::Unsupported => "unsupported",
        }
    }
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
