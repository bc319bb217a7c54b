//! Why an upstream did not deliver: variants are what the caller can do next.

use hydrant_egress::EgressError;
use hydrant_proto::FailureClass;
use std::time::Duration;

/// A failed call. Cloneable, because all who share a flight hear of it. No variant holds a
/// credential, a token, a body, or the path or query of a redirect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// The upstream knows who we are and refuses, or wants a login where we have no credential.
    #[error("upstream {upstream} denies {what}: {detail}")]
    Denied { upstream: String, what: String, detail: String },
    /// The upstream says with certainty that it does not exist.
    #[error("upstream {upstream} does not have {what}: {detail}")]
    Unknown { upstream: String, what: String, detail: String },
    /// Our credential, or the upstream's token service, was refused or is unusable.
    #[error("cannot authenticate to upstream {upstream}: {detail}")]
    Auth { upstream: String, detail: String },
    /// The upstream answered 429, or our own queue for it is full.
    #[error("upstream {upstream} is limited for {}s: {detail}", retry_after.as_secs())]
    Limited { upstream: String, retry_after: Duration, detail: String },
    /// Not asked in the background: what is left of what the upstream allows us is kept for clients.
    #[error("upstream {upstream} is not asked in the background for {}s: what is left of what it \
        allows us is kept for clients", retry_after.as_secs())]
    Reserved { upstream: String, retry_after: Duration },
    /// Not asked: too many names were asked for lately that it does not have, and nobody knows this
    /// one. It may exist.
    #[error("upstream {upstream} is not asked for unknown names for {}s: too many do not exist",
        retry_after.as_secs())]
    TooManyUnknown { upstream: String, retry_after: Duration },
    /// Unreachable, too slow, 5xx, or an answer no registry gives. It may exist: "cannot tell".
    #[error("upstream {upstream} cannot deliver {what}: {detail}")]
    Down { upstream: String, what: String, detail: String },
    /// It is this hydrant itself, or asks it in turn, or others that ask each other (508).
    #[error(
        "upstream {upstream} leads back to this hydrant, or in a circle beyond it, when asked for \
        {what}: name the registry itself as its endpoint"
    )]
    Loop { upstream: String, what: String },
    /// Not asked: the breaker is open, or its probe is under way.
    #[error("upstream {upstream} is not asked for {}s: its breaker is open", retry_after.as_secs())]
    BreakerOpen { upstream: String, retry_after: Duration },
    /// The upstream answered another range than the one asked for; fetch the blob from its start.
    #[error("upstream {upstream} did not honour the range of {what}: {detail}")]
    RangeNotHonoured { upstream: String, what: String, detail: String },
    /// Bytes, digest, size or media type do not agree, or a limit was broken.
    #[error("upstream {upstream} delivered wrong content for {what}: {detail}")]
    Integrity { upstream: String, what: String, detail: String },
    /// Content of a kind hydrant does not carry.
    #[error("{what} of upstream {upstream} is not supported: {detail}")]
    Unsupported { upstream: String, what: String, detail: String },
    /// The address may not be dialled.
    #[error("upstream {upstream} may not be asked: {source}")]
    Egress { upstream: String, source: EgressError },
}

/// What to do with a failed call. This crate has already repeated it as often as the budget allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The answer is final.
    Never,
    /// Come back by the caller's own schedule; counts as an attempt.
    Later,
    /// Come back no earlier than this; the upstream was not harmed, so no attempt is burned.
    After(Duration),
    /// Ask at once for the whole blob, from its first byte.
    FromStart,
}

impl UpstreamError {
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Denied { .. } => FailureClass::Denied,
            Self::Unknown { .. } => FailureClass::Unknown,
            Self::Auth { .. } => FailureClass::UpstreamAuth,
            Self::Limited { .. } | Self::Reserved { .. } | Self::TooManyUnknown { .. } => {
                FailureClass::UpstreamLimit
            }
            Self::Down { .. } | Self::RangeNotHonoured { .. } | Self::Egress { .. } => {
                FailureClass::UpstreamDown
            }
            Self::Loop { .. } => FailureClass::UpstreamLoop,
            Self::BreakerOpen { .. } => FailureClass::BreakerOpen,
            Self::Integrity { .. } => FailureClass::Integrity,
            Self::Unsupported { .. } => FailureClass::Unsupported,
        }
    }

    pub fn retry(&self) -> Retry {
        match self {
            Self::Denied { .. }
            | Self::Unknown { .. }
            | Self::Unsupported { .. }
            | Self::Loop { .. } => Retry::Never,
            Self::Auth { .. }
            | Self::Down { .. }
            | Self::Integrity { .. }
            | Self::Egress { .. } => Retry::Later,
            Self::Limited { retry_after, .. }
            | Self::Reserved { retry_after, .. }
            | Self::BreakerOpen { retry_after, .. }
            | Self::TooManyUnknown { retry_after, .. } => Retry::After(*retry_after),
            Self::RangeNotHonoured { .. } => Retry::FromStart,
        }
    }

    /// How long the upstream, or its breaker, wants us to stay away.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.retry() {
            Retry::After(pause) => Some(pause),
            Retry::Never | Retry::Later | Retry::FromStart => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_limits_and_the_breaker_say_when_to_come_back() {
        let pause = Duration::from_secs(7);
        let limited = UpstreamError::Limited {
            upstream: "hub".into(),
            retry_after: pause,
            detail: "x".into(),
        };
        assert_eq!(limited.retry_after(), Some(pause));
        let open = UpstreamError::BreakerOpen { upstream: "hub".into(), retry_after: pause };
        assert_eq!(open.retry(), Retry::After(pause));
        assert_eq!(open.class(), FailureClass::BreakerOpen);
        let down =
            UpstreamError::Down { upstream: "hub".into(), what: "x".into(), detail: "y".into() };
        assert_eq!((down.retry(), down.retry_after()), (Retry::Later, None));
    }
}
