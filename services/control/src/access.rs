//! Who may call the API: holders of the token, or, where there is none, this machine alone.

use crate::failure::Failure;
use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use hydrant_boot::AdminToken;
use std::net::IpAddr;
use subtle::ConstantTimeEq as _;

const API: &str = "/api/";

/// Who called, as far as that can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    AdminToken,
    ThisMachine,
}

impl Caller {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AdminToken => "admin-token",
            Self::ThisMachine => "this-machine",
        }
    }
}

/// The rule by which callers are let in.
#[derive(Clone, Debug)]
pub(crate) enum Access {
    Token(AdminToken),
    /// No token, but only this machine can reach the port.
    ThisMachine,
    /// No token and an address others can reach: the API is off.
    Nobody,
}

impl Access {
    pub fn new(token: Option<AdminToken>, loopback: bool) -> Self {
        match token {
            Some(token) => Self::Token(token),
            None if loopback => Self::ThisMachine,
            None => Self::Nobody,
        }
    }

    fn check(&self, headers: &HeaderMap) -> Result<Caller, Failure> {
        match self {
            Self::Token(token) => match holds(headers, token) {
                true => Ok(Caller::AdminToken),
                false => Err(Failure::Unauthorized),
            },
            Self::ThisMachine => from_no_web_page(headers).map(|()| Caller::ThisMachine),
            Self::Nobody => Err(Failure::Forbidden {
                message: "the API is off: this admin address is not loopback and no token is set",
                remedy: "set HYDRANT_ADMIN_TOKEN (or HYDRANT_ADMIN_TOKEN_FILE), or listen on \
                         loopback with --admin 127.0.0.1:9464",
            }),
        }
    }
}

/// Lets a request to the API through, or answers for it.
pub(crate) async fn guard(
    State(access): State<Access>,
    mut request: Request,
    next: Next,
) -> Response {
    if request.uri().path().starts_with(API) {
        match access.check(request.headers()) {
            Ok(caller) => drop(request.extensions_mut().insert(caller)),
            Err(failure) => return failure.into_response(),
        }
    }
    next.run(request).await
}

fn holds(headers: &HeaderMap, token: &AdminToken) -> bool {
    let given = text(headers, header::AUTHORIZATION).and_then(|value| {
        let (scheme, given) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| given.trim())
    });
    given.is_some_and(|given| given.as_bytes().ct_eq(token.expose().as_bytes()).into())
}

/// A web page open on this machine can send requests to loopback too. It cannot hide where it
/// comes from: its `Origin`, and the name it knows us by in `Host`, are not loopback.
fn from_no_web_page(headers: &HeaderMap) -> Result<(), Failure> {
    let host = text(headers, header::HOST).is_none_or(is_loopback);
    let origin = text(headers, header::ORIGIN)
        .is_none_or(|origin| origin.split_once("://").is_some_and(|(_, host)| is_loopback(host)));
    if host && origin {
        return Ok(());
    }
    Err(Failure::Forbidden {
        message: "without a token the API is for this machine, under the name localhost",
        remedy: "set HYDRANT_ADMIN_TOKEN to call it from elsewhere or from web pages",
    })
}

/// Whether an authority, `host` or `host:port`, is this machine.
fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).map(|value| value.to_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let parsed = pairs.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap()));
        parsed.collect()
    }

    #[test]
    fn a_token_is_compared_whole() {
        let access = Access::new(Some(AdminToken::parse("s3cr3t-value").unwrap()), false);
        assert!(access.check(&headers(&[("authorization", "Bearer s3cr3t-value")])).is_ok());
        assert!(access.check(&headers(&[("authorization", "bearer s3cr3t-value")])).is_ok());
        for wrong in ["Bearer s3cr3t-valu", "Bearer ", "Basic s3cr3t-value", "s3cr3t-value"] {
            let refused = access.check(&headers(&[("authorization", wrong)]));
            assert!(matches!(refused, Err(Failure::Unauthorized)), "{wrong}");
        }
        assert!(access.check(&headers(&[])).is_err());
    }

    #[test]
    fn without_a_token_only_this_machine_is_served_and_no_web_page() {
        let access = Access::new(None, true);
        for fine in ["localhost:9464", "127.0.0.1:9464", "[::1]:9464", "localhost"] {
            assert!(access.check(&headers(&[("host", fine)])).is_ok(), "{fine}");
        }
        assert!(access.check(&headers(&[("host", "rebound.example:9464")])).is_err());
        let page = [("host", "localhost:9464"), ("origin", "https://evil.example")];
        assert!(access.check(&headers(&page)).is_err());
        assert!(access.check(&headers(&[("origin", "http://localhost:9464")])).is_ok());
        assert!(Access::new(None, false).check(&headers(&[("host", "localhost")])).is_err());
    }
}
