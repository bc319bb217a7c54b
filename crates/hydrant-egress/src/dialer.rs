//! The client every outbound request goes through, and what it refuses.

use crate::{
    body::{Body, Request, Response},
    connect::Connect,
    error::EgressError,
    resolver::{Checked, Resolve, System, may_dial},
};
use bytes::Bytes;
use http::{
    HeaderValue, Uri,
    header::{ACCEPT, USER_AGENT},
};
use http_body_util::Full;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use std::{net::IpAddr, sync::Arc, time::Duration};
use url::{Host, Url};

/// Bytes of the largest read buffer of a connection, which hyper may make twice as large to use it
/// again: what a body that is not taken yet holds of memory. The header lines of a response have to
/// fit, too.
pub const READ_BUFFER: usize = 64 * 1024;
/// Most header lines of a response; a response with more is dropped.
const MAX_HEADERS: usize = 128;
/// How long an idle connection is kept. Shorter than the 60 s after which common balancers close
/// theirs, so that a request seldom meets a connection closed under it.
const IDLE: Duration = Duration::from_secs(50);
/// Who we are, to those we ask.
const AGENT: HeaderValue = HeaderValue::from_static(concat!("hydrant/", env!("CARGO_PKG_VERSION")));

/// What one destination (an upstream, a webhook) is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Allows plain http and private addresses (loopback, private, link-local, shared) for every
    /// hop of this destination. Without it a redirect from a public host to a private address is
    /// refused like any other.
    pub allow_private: bool,
    /// Longest wait for one connection, TLS included.
    pub connect_timeout: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self { allow_private: false, connect_timeout: Duration::from_secs(10) }
    }
}

/// A dialer for one destination. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Egress {
    client: Client<Connect, Full<Bytes>>,
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
        let connect = Connect::new(&policy, checked)?;
        // HTTP/1.1 only, as TLS is told, too. Over HTTP/2 all bodies of a host share one connection
        // and its window, so one reader that stalls would stall the others, and parallel ranges
        // would gain nothing.
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .http1_max_buf_size(READ_BUFFER)
            .http1_max_headers(MAX_HEADERS)
            .build(connect);
        Ok(Self { client, policy })
    }

    /// Sends `request`, whose URL is checked first, and waits for the headers of the answer for as
    /// long as the caller does. Call it anew for each hop of a redirect.
    pub async fn send(&self, request: Request) -> Result<Response, EgressError> {
        self.check(&request.url)?;
        let sent = self.client.request(written(request)?).await;
        Ok(sent.map_err(|error| EgressError::of(&error))?.map(Body))
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

/// The request as it goes out.
fn written(request: Request) -> Result<http::Request<Full<Bytes>>, EgressError> {
    let Request { method, url, headers, body } = request;
    let uri: Uri =
        url.as_str().parse().map_err(|_| EgressError::Unanswered("its URL is no URI".into()))?;
    let mut written = http::Request::new(Full::new(body));
    *written.method_mut() = method;
    *written.uri_mut() = uri;
    *written.headers_mut() = headers;
    written.headers_mut().entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    written.headers_mut().entry(USER_AGENT).or_insert(AGENT);
    Ok(written)
}

/// The address a host spells out; `Url` has already read decimal, hexadecimal and octal forms.
fn literal(host: &Host<&str>) -> Option<IpAddr> {
    match host {
        Host::Domain(_) => None,
        Host::Ipv4(address) => Some(IpAddr::V4(*address)),
        Host::Ipv6(address) => Some(IpAddr::V6(*address)),
    }
}
