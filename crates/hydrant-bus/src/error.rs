//! What can go wrong on the bus, told by what the caller can do next.

use async_nats::jetstream::{
    self,
    context::{PublishError, PublishErrorKind},
};
use hydrant_proto::CodecError;
use std::error::Error as StdError;

type Source = Box<dyn StdError + Send + Sync>;

/// A failure of the bus. No content is lost by any of them: storage is the truth.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// NATS cannot be reached or is not ready. Nothing was sent.
    #[error("nats is not connected: {0}")]
    Disconnected(String),
    /// No answer came. It may have happened, and may still happen after a reconnect.
    #[error("{what}: nats did not answer, so the outcome is unknown")]
    Unknown { what: &'static str, source: Source },
    /// The stream is full; the message was NOT queued.
    #[error("{what}: the stream is full")]
    Full { what: &'static str },
    /// Somebody else wrote first. Read again and decide anew.
    #[error("{what}: the value was changed by somebody else")]
    Conflict { what: &'static str },
    /// The answer says no, and will until somebody changes the server or the configuration.
    #[error("{what}: {reason}")]
    Refused { what: &'static str, reason: String },
    /// What is stored is not a message of this version.
    #[error("{what}: {source}")]
    Malformed { what: &'static str, source: CodecError },
}

/// What to do about a [`BusError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same call may succeed later.
    Later,
    /// Read back first: the call may have succeeded.
    ReadBack,
    /// The same call fails again until something is changed.
    Never,
}

impl BusError {
    pub fn retry(&self) -> Retry {
        match self {
            Self::Disconnected(_) | Self::Full { .. } => Retry::Later,
            Self::Unknown { .. } | Self::Conflict { .. } => Retry::ReadBack,
            Self::Refused { .. } | Self::Malformed { .. } => Retry::Never,
        }
    }

    pub(crate) fn unknown(
        what: &'static str,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self::Unknown { what, source: source.into() }
    }

    /// A failed publish or KV write, by the server's error code where it gave one.
    pub(crate) fn from_publish(what: &'static str, error: PublishError) -> Self {
        match error.kind() {
            PublishErrorKind::WrongLastSequence => Self::Conflict { what },
            PublishErrorKind::StreamNotFound => Self::Refused { what, reason: error.to_string() },
            PublishErrorKind::MaxAckPending => Self::Disconnected(error.to_string()),
            PublishErrorKind::WrongLastMessageId | PublishErrorKind::MaxPayloadExceeded => {
                Self::Refused { what, reason: error.to_string() }
            }
            PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => Self::unknown(what, error),
            PublishErrorKind::Other => Self::from_server(what, error),
        }
    }

    /// 10077 is what a full work queue answers (`maximum messages exceeded`, `maximum bytes
    /// exceeded`); any other code is a refusal, and no code at all means no answer.
    fn from_server(what: &'static str, error: PublishError) -> Self {
        let code = server_error(&error).map(jetstream::Error::error_code);
        match code {
            Some(jetstream::ErrorCode::STREAM_STORE_FAILED) => Self::Full { what },
            // A cluster's leader has another write to the same subject under way.
            Some(jetstream::ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT) => {
                Self::Conflict { what }
            }
            Some(_) => Self::Refused { what, reason: describe(&error) },
            None => Self::unknown(what, error),
        }
    }
}

fn server_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a jetstream::Error> {
    causes(error).find_map(|error| error.downcast_ref::<jetstream::Error>())
}

/// The error with all it was caused by, on one line.
pub(crate) fn describe(error: &(dyn StdError + 'static)) -> String {
    causes(error).fold(String::new(), |text, cause| {
        let cause = cause.to_string();
        match text.is_empty() {
            true => cause,
            false if text.contains(&cause) => text,
            false => format!("{text}: {cause}"),
        }
    })
}

/// The error, its cause, the cause of that, and so on.
fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| (*error).source())
}
