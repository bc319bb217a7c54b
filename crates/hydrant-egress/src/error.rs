//! Why a request did not go out, or was not answered.

use std::{error::Error, net::IpAddr};

/// Why a request may not go out, or could not. Names hosts and addresses, never paths or queries:
/// those of presigned URLs are secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EgressError {
    #[error("{address}, the address of `{host}`, is not public; allow it with `allow_private`")]
    Address { host: String, address: IpAddr },
    #[error("plain http to `{host}` is refused; allow it with `allow_private`")]
    PlainHttp { host: String },
    #[error("a URL of scheme `{scheme}` is refused; only https is spoken")]
    Scheme { scheme: String },
    #[error("a URL with a user name or password before `{host}` is refused")]
    UserInfo { host: String },
    #[error("the URL names no host")]
    NoHost,
    #[error("`{host}` cannot be resolved: {reason}")]
    Unresolved { host: String, reason: String },
    /// Connection, TLS or protocol. What was sent may have arrived.
    #[error("{0}")]
    Unanswered(String),
    #[error("set up the HTTP client: {0}")]
    Setup(String),
}

/// A body that ended before its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub(crate) String);

impl EgressError {
    /// What a failed request came to: the refusal or failed look-up behind it, if that is what it
    /// was.
    pub(crate) fn of(error: &(dyn Error + 'static)) -> Self {
        behind(error).unwrap_or_else(|| Self::Unanswered(chain(error)))
    }
}

fn behind(error: &(dyn Error + 'static)) -> Option<EgressError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<EgressError>() {
            return Some(found.clone());
        }
        next = error.source();
    }
    None
}

/// What `error` says and what lies behind it, each once. Errors of the HTTP client name no URL.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        next = error.source();
    }
    text
}
