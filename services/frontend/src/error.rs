//! Failures, and the one table that turns them into what a client reads: status, code, message,
//! class. What the log says is the failure's own text and is separate; it never leaves the process.

use crate::request::Rejected;
use http::StatusCode;
use hydrant_flight::FlightError;
use hydrant_proto::FailureClass;
use hydrant_rules::Name;
use hydrant_store::StoreError;
use hydrant_upstream::UpstreamError;
use std::time::Duration;

/// How long a client is told to stay away when nobody else named a time: storage, an overload or a
/// broken upstream are rarely over sooner.
const COME_BACK: Duration = Duration::from_secs(5);
/// Longest `Retry-After` passed on, whatever an upstream says.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60 * 60);

/// What a client is told whose pull goes round in a circle.
const CIRCLE: &str = "the upstream of this rule leads back to this hydrant, or in a circle beyond \
    it: name the registry itself as its endpoint";

/// What could not be had; names the OCI error code of its absence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Manifest,
    Blob,
    Repository,
}

/// Who asks. A mirror's client (containerd, dockerd) falls back to the registry itself on 503, and
/// gives up on 429.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    Direct,
    Mirror,
}

/// Why a request is not answered with content. Cloneable, because all who waited for one upstream
/// request hear of it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    #[error("request refused: {0}")]
    Rejected(#[from] Rejected),
    #[error("no rule leads there")]
    NoRule,
    /// This hydrant asked itself, or others ask each other.
    #[error(
        "a request came back to the hydrant that sent it: the upstream of rule {rule} leads to \
        this hydrant, here or at another one; name the registry itself as its endpoint"
    )]
    Circle { rule: Name },
    /// Certainly absent, here and upstream.
    #[error("{0:?} is neither local nor upstream")]
    Missing(What),
    #[error("ask upstream: {error}")]
    Upstream { what: What, error: UpstreamError },
    #[error("fetch blob: {0}")]
    Flight(#[from] FlightError),
    #[error("storage: {0}")]
    Storage(#[from] StoreError),
    #[error("storage does not answer in time")]
    SlowStorage,
    #[error("no word of the upstream on the tag within {0:?}; the check goes on")]
    SlowCheck(Duration),
    /// What is local was confirmed too long ago to be served without another word.
    #[error("too long not confirmed: {0}")]
    TooOld(Box<Failure>),
    #[error("too many requests wait for upstreams")]
    Overloaded,
    #[error("too many lists of all repositories are being made")]
    Crowded,
    #[error("no byte of {size} was asked for")]
    Range { size: u64 },
    /// The task that worked for several requests ended without an answer.
    #[error("the work was given up")]
    Abandoned,
}

/// A failure as the client reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub status: StatusCode,
    /// OCI distribution spec, "Error Codes"; `UNAVAILABLE` and `UNKNOWN` as Docker registries use
    /// them for what the spec has no code for.
    pub code: &'static str,
    pub message: String,
    /// The failure class, or `invalid` for a request that no registry could answer.
    pub class: &'static str,
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// Of the client's own making when `None`.
    pub fn class(&self) -> Option<FailureClass> {
        match self {
            Self::Rejected(Rejected::Write) => Some(FailureClass::Unsupported),
            Self::Rejected(Rejected::Tag | Rejected::Endpoint)
            | Self::NoRule
            | Self::Missing(_) => Some(FailureClass::Unknown),
            Self::Rejected(_) | Self::Range { .. } => None,
            Self::Upstream { error, .. } => Some(error.class()),
            Self::Flight(error) => Some(error.class()),
            Self::Circle { .. } => Some(FailureClass::UpstreamLoop),
            Self::Overloaded => Some(FailureClass::UpstreamLimit),
            Self::SlowCheck(_) => Some(FailureClass::UpstreamDown),
            Self::TooOld(because) => because.class(),
            Self::Storage(_) | Self::SlowStorage | Self::Crowded | Self::Abandoned => {
                Some(FailureClass::Storage)
            }
        }
    }

    /// Whether this says with certainty that the thing does not exist upstream.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Upstream { .. } | Self::Flight(_) | Self::Missing(_))
            && self.class() == Some(FailureClass::Unknown)
    }

    pub fn said(&self, audience: Audience) -> Said {
        match self {
            Self::Rejected(rejected) => rejected_said(*rejected),
            Self::NoRule => unknown(What::Repository),
            Self::Missing(what) => unknown(*what),
            Self::Circle { .. } => {
                of_class(FailureClass::UpstreamLoop, What::Repository, None, audience)
            }
            // The client's own requests are not what is limited, so it is no 429.
            Self::Upstream { what, error: error @ UpstreamError::TooManyUnknown { .. } } => {
                of_class(error.class(), *what, error.retry_after(), Audience::Mirror)
            }
            Self::Upstream { what, error } => {
                of_class(error.class(), *what, error.retry_after(), audience)
            }
            Self::Flight(error) => {
                let audience = if is_unasked(error) { Audience::Mirror } else { audience };
                of_class(error.class(), What::Blob, error.retry_after(), audience)
            }
            Self::Storage(_) | Self::SlowStorage | Self::Abandoned => {
                of_class(FailureClass::Storage, What::Blob, None, audience)
            }
            Self::SlowCheck(_) => {
                of_class(FailureClass::UpstreamDown, What::Manifest, None, audience)
            }
            Self::TooOld(because) => {
                let said = because.said(audience);
                Said {
                    status: StatusCode::SERVICE_UNAVAILABLE,
                    code: "UNAVAILABLE",
                    message: format!("what is local is too old to be served, and {}", said.message),
                    retry_after: said.retry_after.or(Some(COME_BACK)),
                    ..said
                }
            }
            Self::Overloaded => Said {
                message: "this registry is busy; try again shortly".into(),
                ..of_class(FailureClass::UpstreamLimit, What::Blob, Some(COME_BACK / 5), audience)
            },
            Self::Crowded => Said {
                message: "this registry is busy with other lists; try again shortly".into(),
                ..of_class(FailureClass::Storage, What::Repository, Some(COME_BACK), audience)
            },
            Self::Range { size } => {
                let message = format!("none of the {size} bytes was asked for");
                said(StatusCode::RANGE_NOT_SATISFIABLE, "SIZE_INVALID", message, "invalid", None)
            }
        }
    }

    /// Once, where it is answered. Absence and bad requests are everyday.
    pub fn log(&self) {
        match self.class() {
            Some(
                FailureClass::Storage
                | FailureClass::Integrity
                | FailureClass::UpstreamAuth
                | FailureClass::UpstreamLoop,
            ) => tracing::warn!(error = %self, "pull failed"),
            Some(FailureClass::Unknown | FailureClass::Denied | FailureClass::Unsupported)
            | None => {
                tracing::debug!(error = %self, "pull refused");
            }
            Some(
                FailureClass::UpstreamDown
                | FailureClass::UpstreamLimit
                | FailureClass::BreakerOpen,
            ) => tracing::info!(error = %self, "pull failed"),
        }
    }
}

/// Whether nobody asked the upstream, since too many names did not exist there.
fn is_unasked(error: &FlightError) -> bool {
    matches!(error, FlightError::Upstream(error)
        if matches!(**error, UpstreamError::TooManyUnknown { .. }))
}

fn rejected_said(rejected: Rejected) -> Said {
    use StatusCode as S;
    let (status, code) = match rejected {
        Rejected::Encoding | Rejected::Name => (S::BAD_REQUEST, "NAME_INVALID"),
        Rejected::Digest => (S::BAD_REQUEST, "DIGEST_INVALID"),
        Rejected::Tag => (S::NOT_FOUND, "MANIFEST_UNKNOWN"),
        Rejected::PageSize => (S::BAD_REQUEST, "PAGINATION_NUMBER_INVALID"),
        Rejected::Query | Rejected::Body | Rejected::Host => (S::BAD_REQUEST, "UNSUPPORTED"),
        Rejected::Endpoint => (S::NOT_FOUND, "UNSUPPORTED"),
        Rejected::Write => (S::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
    };
    let class = Failure::Rejected(rejected).class().map_or("invalid", FailureClass::as_str);
    said(status, code, rejected.to_string(), class, None)
}

fn unknown(what: What) -> Said {
    let (code, message) = match what {
        What::Manifest => ("MANIFEST_UNKNOWN", "manifest unknown"),
        What::Blob => ("BLOB_UNKNOWN", "blob unknown to registry"),
        What::Repository => ("NAME_UNKNOWN", "repository name not known to registry"),
    };
    said(StatusCode::NOT_FOUND, code, message, FailureClass::Unknown.as_str(), None)
}

/// "Cannot tell" is never 404: only [`FailureClass::Unknown`] is.
fn of_class(
    class: FailureClass,
    what: What,
    retry_after: Option<Duration>,
    audience: Audience,
) -> Said {
    use StatusCode as S;
    let wait = Some(retry_after.unwrap_or(COME_BACK));
    let (status, code, message, wait) = match class {
        FailureClass::Unknown => return unknown(what),
        FailureClass::Denied => (S::FORBIDDEN, "DENIED", "the upstream denies access", None),
        FailureClass::UpstreamAuth => {
            (S::BAD_GATEWAY, "UNAVAILABLE", "cannot authenticate to the upstream", None)
        }
        FailureClass::UpstreamLimit if audience == Audience::Direct => {
            (S::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "the upstream limits requests", wait)
        }
        FailureClass::UpstreamLimit => {
            (S::SERVICE_UNAVAILABLE, "TOOMANYREQUESTS", "the upstream limits requests", wait)
        }
        FailureClass::UpstreamDown => {
            (S::BAD_GATEWAY, "UNAVAILABLE", "the upstream cannot be reached", wait)
        }
        FailureClass::UpstreamLoop => (S::LOOP_DETECTED, "UNAVAILABLE", CIRCLE, None),
        FailureClass::BreakerOpen => (
            S::SERVICE_UNAVAILABLE,
            "UNAVAILABLE",
            "the upstream failed repeatedly and is not asked for a while",
            wait,
        ),
        FailureClass::Storage => {
            (S::SERVICE_UNAVAILABLE, "UNAVAILABLE", "storage is not available", wait)
        }
        FailureClass::Integrity => {
            (S::BAD_GATEWAY, "UNKNOWN", "the upstream delivered wrong content", None)
        }
        FailureClass::Unsupported => {
            (S::BAD_GATEWAY, "UNSUPPORTED", "this kind of content is not supported", None)
        }
    };
    said(status, code, message, class.as_str(), wait)
}

fn said(
    status: StatusCode,
    code: &'static str,
    message: impl Into<String>,
    class: &'static str,
    retry_after: Option<Duration>,
) -> Said {
    let retry_after =
        retry_after.map(|wait| wait.clamp(Duration::from_secs(1), LONGEST_RETRY_AFTER));
    Said { status, code, message: message.into(), class, retry_after }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited(secs: u64) -> Failure {
        let error = UpstreamError::Limited {
            upstream: "hub".into(),
            retry_after: Duration::from_secs(secs),
            detail: "quota of user secret-name".into(),
        };
        Failure::Upstream { what: What::Manifest, error }
    }

    #[test]
    fn a_limit_is_429_to_clients_and_503_to_mirrors() {
        let direct = limited(7).said(Audience::Direct);
        assert_eq!((direct.status.as_u16(), direct.code), (429, "TOOMANYREQUESTS"));
        assert_eq!(direct.retry_after, Some(Duration::from_secs(7)));
        assert_eq!(limited(7).said(Audience::Mirror).status.as_u16(), 503);
        assert_eq!(limited(1 << 40).said(Audience::Direct).retry_after, Some(LONGEST_RETRY_AFTER));
    }

    #[test]
    fn a_budget_of_unknown_names_is_503_to_all() {
        let pause = Duration::from_secs(3);
        let error = UpstreamError::TooManyUnknown { upstream: "hub".into(), retry_after: pause };
        let flight = Failure::Flight(FlightError::Upstream(error.clone().into()));
        for failure in [Failure::Upstream { what: What::Manifest, error }, flight] {
            let said = failure.said(Audience::Direct);
            assert_eq!((said.status.as_u16(), said.class), (503, "upstream-limit"));
            assert_eq!(said.retry_after, Some(pause));
        }
    }

    #[test]
    fn only_certain_absence_is_404() {
        for class in FailureClass::ALL {
            let said = of_class(class, What::Manifest, None, Audience::Direct);
            assert_eq!(said.status == StatusCode::NOT_FOUND, class == FailureClass::Unknown);
            assert_eq!(said.class, class.as_str());
        }
    }

    #[test]
    fn a_failure_has_one_class() {
        for failure in [
            Failure::Overloaded,
            Failure::SlowStorage,
            Failure::Abandoned,
            Failure::NoRule,
            Failure::Missing(What::Blob),
            Failure::Circle { rule: "lab".parse().unwrap() },
            Failure::Rejected(Rejected::Write),
            limited(1),
        ] {
            let said = failure.said(Audience::Mirror);
            assert_eq!(Some(said.class), failure.class().map(FailureClass::as_str), "{failure}");
        }
    }

    #[test]
    fn what_the_log_says_is_not_what_the_client_reads() {
        let failure = limited(1);
        assert!(failure.to_string().contains("secret-name"));
        assert!(!failure.said(Audience::Direct).message.contains("secret-name"));
    }
}
