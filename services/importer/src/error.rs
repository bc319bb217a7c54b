//! What can go wrong with a job, and the one table that says what becomes of it then.

use hydrant_bus::BusError;
use hydrant_flight::FlightError;
use hydrant_proto::{FailureClass, InvalidManifest};
use hydrant_store::{Retry, StoreError};
use hydrant_upstream::UpstreamError;
use std::time::Duration;

/// Attempts after which a job whose cause may pass is given up. With the schedule of
/// [`crate::verdict`] that is about half an hour.
const ATTEMPTS: u32 = 12;
/// Attempts for causes that hardly ever pass by themselves.
const FEW_ATTEMPTS: u32 = 3;

/// Longest wait for a limit of the upstream, whatever that says: it may be lifted sooner, and until it is,
/// looking again asks the upstream nothing.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// Why an attempt at a job did not make the image durable.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The tag is the customer's own: nothing is to be done.
    #[error("obsolete: {0}")]
    Obsolete(&'static str),
    /// The rule is not the one the job was made for: it has changed since, or was changed a moment
    /// ago and this process has yet to hear of it.
    #[error("obsolete: {0}")]
    Fenced(&'static str),
    /// What a former origin brought is being removed by another job, or the repository has come to be
    /// another origin's while this one was under way, though its rule is as it was.
    #[error("the repository is being led elsewhere by another job")]
    Led,
    #[error("ask the upstream: {0}")]
    Upstream(#[from] UpstreamError),
    #[error("fetch a blob: {0}")]
    Flight(#[from] FlightError),
    #[error("storage: {0}")]
    Store(#[from] StoreError),
    /// The upstream's documents are not what they have to be.
    #[error("manifest {digest}: {problem}")]
    Manifest { digest: String, problem: InvalidManifest },
    /// A limit of the closure is exceeded, or its parts do not fit each other.
    #[error("{0}")]
    Closure(String),
    /// The rule or the request names platforms that the index does not have.
    #[error("the index has no {0}")]
    NoPlatform(String),
    /// Somebody else moved the tag meanwhile; observe again.
    #[error("the tag was changed by another writer")]
    Raced,
    /// Bytes hardly move; the worker is needed elsewhere while the flight goes on.
    #[error("no progress for {0:?}")]
    Stalled(Duration),
    /// The same, and it is not the upstream that is waited for.
    #[error("storage: no progress for {0:?}")]
    StorageStalled(Duration),
    /// An attempt came to no verdict.
    #[error("the process that worked on it ended, or was cut off, before it said how it went")]
    Lost,
    /// Everything is durable, but the bus did not confirm the event.
    #[error("announce: {0}")]
    Announce(#[from] BusError),
}

/// What to do about a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Drop the job.
    Obsolete,
    /// Try again after this time; no attempt was burned.
    Wait(Duration),
    /// Try again by the schedule, up to so many attempts in all.
    Retry { attempts: u32 },
    /// It will not get better by itself.
    DeadLetter,
}

impl ImportError {
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Obsolete(_) | Self::Fenced(_) => FailureClass::Unknown,
            Self::Upstream(error) => error.class(),
            Self::Flight(error) => error.class(),
            Self::Store(error) => error.class(),
            Self::Raced | Self::Led | Self::Announce(_) | Self::StorageStalled(_) | Self::Lost => {
                FailureClass::Storage
            }
            Self::Manifest { problem: InvalidManifest::Schema1, .. } => FailureClass::Unsupported,
            Self::Manifest { .. } | Self::Closure(_) => FailureClass::Integrity,
            Self::NoPlatform(_) => FailureClass::Unknown,
            Self::Stalled(_) => FailureClass::UpstreamDown,
        }
    }

    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Obsolete(_) | Self::Fenced(_) => Remedy::Obsolete,
            Self::Raced => Remedy::Wait(Duration::from_millis(200)),
            Self::Led | Self::Announce(_) => Remedy::Wait(Duration::from_secs(5)),
            Self::Stalled(_) | Self::StorageStalled(_) => Remedy::Wait(Duration::from_secs(30)),
            Self::Manifest { .. } | Self::Closure(_) => Remedy::Retry { attempts: FEW_ATTEMPTS },
            Self::Lost => Remedy::Retry { attempts: ATTEMPTS },
            Self::NoPlatform(_) => Remedy::DeadLetter,
            Self::Upstream(error) => by_class(error.class(), error.retry_after()),
            Self::Flight(FlightError::Stopping) => Remedy::Wait(Duration::ZERO),
            Self::Flight(FlightError::NoSpool(_)) => Remedy::Wait(Duration::from_secs(15)),
            Self::Flight(error) => by_class(error.class(), error.retry_after()),
            // Storage is needed for everything; a job is not given up because it is away.
            Self::Store(error) if error.retry() != Retry::Never => {
                Remedy::Wait(Duration::from_secs(5))
            }
            Self::Store(_) => Remedy::Retry { attempts: FEW_ATTEMPTS },
        }
    }
}

fn by_class(class: FailureClass, retry_after: Option<Duration>) -> Remedy {
    match class {
        FailureClass::Unknown
        | FailureClass::Denied
        | FailureClass::Unsupported
        | FailureClass::UpstreamLoop => Remedy::DeadLetter,
        FailureClass::Integrity => Remedy::Retry { attempts: FEW_ATTEMPTS },
        FailureClass::UpstreamLimit | FailureClass::BreakerOpen => {
            Remedy::Wait(retry_after.unwrap_or(Duration::from_secs(10)).min(LONGEST_WAIT))
        }
        // A credential may be in the middle of its rotation.
        FailureClass::UpstreamDown | FailureClass::UpstreamAuth => {
            Remedy::Retry { attempts: ATTEMPTS }
        }
        FailureClass::Storage => Remedy::Wait(Duration::from_secs(5)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_waited_for_but_not_slept_through() {
        let limited = |seconds| {
            let (upstream, detail) = ("hub".to_owned(), "429".to_owned());
            let retry_after = Duration::from_secs(seconds);
            ImportError::from(UpstreamError::Limited { upstream, retry_after, detail }).remedy()
        };
        assert_eq!(limited(7), Remedy::Wait(Duration::from_secs(7)));
        assert_eq!(limited(6 * 3600), Remedy::Wait(LONGEST_WAIT));
    }
}
