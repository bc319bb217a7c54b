//! The client every outbound request goes through, and what it refuses.

use crate::resolver::{Checked, System, may_dial};
use reqwest::{Client, Method, RequestBuilder, dns::Resolve, redirect};
use std::{net::IpAddr, sync::Arc, time::Duration};
use url::{Host, Url};

/// Most header lines of a response; a response with more is dropped. Their bytes are bounded by
/// hyper's read buffer (408 KiB).
const MAX_HEADERS: usize = 128;
/// How long an idle connection is kept. Shorter than the 60 s after which common balancers close
/// theirs, so that a request seldom meets a connection closed under it.
const IDLE: Duration = Duration::from_secs(50);

/// What one destination (an upstream, a webhook) is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Allows plain http and private addresses (loopback, private, link-local, shared) for every
    /// hop of this destination. Without it a redirect from a public host to a private address is
    /// refused like any other.
    pub allow_private: bool,
    /// Longest wait for one connection, TLS included.
    pub connect_timeout: Duration,
    /// Longest pause between two reads of a response; none leaves it to the caller.
    pub read_timeout: Option<Duration>,
}

impl Default for Policy {
    fn default() -> Self {
        let connect_timeout = Duration::from_secs(10);
        Self { allow_private: false, connect_timeout, read_timeout: None }
    }
}

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
    #[error("set up the HTTP client: {0}")]
    Setup(String),
}

/// A dialer for one destination. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Egress {
    client: Client,
    policy: Policy,
}

impl Egress {
    /// A dialer that resolves names with the system's resolver. Fails when TLS cannot be set up.
    pub fn new(policy: Policy) -> Result<Self, EgressError> {
        Self::with_resolver(policy, Arc::new(System))
    }

    /// A dialer that resolves names with `resolver`; what it answers is checked all the same.
    pub fn with_resolver(policy: Policy, resolver: Arc<dyn Resolve>) -> Result<Self, EgressError> {
        let checked = Checked { inner: resolver, allow_private: policy.allow_private };
        let mut builder = Client::builder()
            .dns_resolver(Arc::new(checked))
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .connect_timeout(policy.connect_timeout)
            .pool_idle_timeout(IDLE)
            // Over HTTP/2 all bodies of a host share one connection and its window, so one reader
            // that stalls would stall the others, and parallel ranges would gain nothing.
            .http1_only()
            .http1_max_headers(MAX_HEADERS)
            .user_agent(concat!("hydrant/", env!("CARGO_PKG_VERSION")));
        if let Some(pause) = policy.read_timeout {
            builder = builder.read_timeout(pause);
        }
        let client = builder.build().map_err(|error| EgressError::Setup(chain(&error)))?;
        Ok(Self { client, policy })
    }

    /// A request to `url`, which is checked first. Call it anew for each hop of a redirect.
    pub fn request(&self, method: Method, url: Url) -> Result<RequestBuilder, EgressError> {
        self.check(&url)?;
        Ok(self.client.request(method, url))
    }

    /// Whether `url` may be asked, as far as its text tells: scheme, user info, and the address
    /// when the host is a literal in any spelling, since no resolver is asked for those.
    pub fn check(&self, url: &Url) -> Result<(), EgressError> {
        let host = url.host().ok_or(EgressError::NoHost)?;
        match url.scheme() {
            "https" => {}
            "http" if self.policy.allow_private => {}
            "http" => return Err(EgressError::PlainHttp { host: host.to_string() }),
            other => return Err(EgressError::Scheme { scheme: other.to_owned() }),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(EgressError::UserInfo { host: host.to_string() });
        }
        match literal(&host) {
            Some(address) if !may_dial(address, self.policy.allow_private) => {
                Err(EgressError::Address { host: host.to_string(), address })
            }
            _ => Ok(()),
        }
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }
}

impl EgressError {
    /// The refusal or failed look-up behind a failed request, if that is what it was.
    pub fn behind<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(found);
            }
            next = error.source();
        }
        None
    }
}

/// The address a host spells out; `Url` has already read decimal, hexadecimal and octal forms.
fn literal(host: &Host<&str>) -> Option<IpAddr> {
    match host {
        Host::Domain(_) => None,
        Host::Ipv4(address) => Some(IpAddr::V4(*address)),
        Host::Ipv6(address) => Some(IpAddr::V6(*address)),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}
