//! Tokens: asked for at a checked realm, kept per (realm, service, scope) until shortly before they
//! expire, and asked for once however many calls need one.

use crate::{
    answer::{Blame, Failure},
    body,
    error::UpstreamError,
    once::Cell,
    retry_after,
    secret::Login,
    wire::{Hop, Patience, Wire},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, Method, header::AUTHORIZATION};
use hydrant_egress::Response;
use hydrant_telemetry::metrics::RequestKind;
use jiff::Timestamp;
use moka::future::Cache;
use secrecy::ExposeSecret;
use serde::Deserialize;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use url::Url;

/// What a token is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenKey {
    pub realm: Url,
    pub service: Option<String>,
    pub scope: String,
}

/// A token as it is sent. The header value is marked sensitive, so no `Debug` shows it.
#[derive(Clone, Debug)]
pub struct Token {
    pub header: HeaderValue,
    got: Instant,
    good_until: Instant,
}

/// The tokens of one upstream and credential.
#[derive(Debug)]
pub struct Tokens(Cache<TokenKey, Arc<Cell<Token>>>);

/// Most tokens kept.
const MAX_TOKENS: u64 = 10_000;
/// Longest a token is kept without being used.
const IDLE: Duration = Duration::from_secs(3600);
/// Longest answer of a token service, in bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// Life of a token whose service does not tell (distribution spec, "Token authentication").
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// Longest life believed.
const MAX_LIFE: f64 = 24.0 * 3600.0;

impl Tokens {
    pub fn new() -> Self {
        Self(Cache::builder().max_capacity(MAX_TOKENS).time_to_idle(IDLE).build())
    }

    /// The token of `key`: the one kept, or the one `fetch` brings.
    pub async fn get(
        &self,
        key: &TokenKey,
        fetch: impl Future<Output = Result<Token, Failure>>,
    ) -> Result<Token, Failure> {
        let cell = self.0.get_with_by_ref(key, async { Arc::default() }).await;
        cell.get(|token| Instant::now() < token.good_until, fetch).await
    }

    /// Forgets the token of `key`, unless it is newer than the request that was refused: then
    /// somebody else has renewed it meanwhile.
    pub async fn forget(&self, key: &TokenKey, refused: Instant) {
        if let Some(cell) = self.0.get(key).await {
            cell.forget_if(|token| token.got <= refused).await;
        }
    }
}

/// Asks the token service; with `login`, as that user. Redirects are a failure.
pub async fn fetch(
    wire: &Wire,
    key: &TokenKey,
    login: Option<&Login>,
    patience: Patience,
) -> Result<Token, Failure> {
    let mut headers = HeaderMap::new();
    if let Some(login) = login {
        headers.insert(AUTHORIZATION, basic(login));
    }
    let (kind, method, url) = (RequestKind::Token, Method::GET, address(key));
    let hop = Hop { kind, what: "a token", method, url, headers, resends: 0 };
    let response = wire.send(hop, patience).await?;
    if response.status() != 200 {
        return Err(refusal(wire, &response, login.is_some()));
    }
    let answer = body::collect(response, MAX_ANSWER, patience.left()).await;
    let answer = answer.map_err(|error| wire.down("a token", error.to_string(), Blame::Failed))?;
    let unusable = |detail: &str| wire.auth(format!("its token service {detail}"), Blame::Answered);
    let answer: Answer =
        serde_json::from_slice(&answer).map_err(|_| unusable("answered no token document"))?;
    answer.token().ok_or_else(|| unusable("answered no usable token"))
}

/// `Basic` with the login (RFC 7617).
pub fn basic(login: &Login) -> HeaderValue {
    let (username, password) = (login.username.expose_secret(), login.password.expose_secret());
    let encoded = format!("Basic {}", STANDARD.encode(format!("{username}:{password}")));
    let mut value = HeaderValue::from_str(&encoded).expect("base64 is a valid header value");
    value.set_sensitive(true);
    value
}

fn address(key: &TokenKey) -> Url {
    let mut url = key.realm.clone();
    url.set_fragment(None);
    let mut query = url.query_pairs_mut();
    if let Some(service) = &key.service {
        query.append_pair("service", service);
    }
    query.append_pair("scope", &key.scope);
    drop(query);
    url
}

fn refusal(wire: &Wire, response: &Response, with_login: bool) -> Failure {
    let status = response.status().as_u16();
    let detail = format!("its token service answered {status}");
    let pause = retry_after::retry_after(response.headers(), Timestamp::now());
    let upstream = wire.upstream.clone();
    match status {
        429 => {
            let retry_after = pause.unwrap_or(retry_after::DEFAULT_PAUSE);
            let error = UpstreamError::Limited { upstream, retry_after, detail };
            Failure { error, blame: Blame::Limited(pause) }
        }
        408 | 425 | 500..=599 => wire.down("a token", detail, Blame::Failed),
        403 => denied(upstream, detail),
        401 if !with_login => denied(upstream, detail),
        _ => wire.auth(detail, Blame::Answered),
    }
}

fn denied(upstream: String, detail: String) -> Failure {
    let error = UpstreamError::Denied { upstream, what: "a token".to_owned(), detail };
    Failure { error, blame: Blame::Answered }
}

/// What a token service answers (distribution spec, "Token authentication"; RFC 6749, 5.1).
#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    #[serde(default)]
    expires_in: serde_json::Value,
}

impl Answer {
    fn token(self) -> Option<Token> {
        let life = life(&self.expires_in);
        let token = self.token.or(self.access_token).filter(|token| !token.is_empty())?;
        let mut header = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
        header.set_sensitive(true);
        let got = Instant::now();
        Some(Token { header, got, good_until: got + life })
    }
}

/// How long a token is used: nine tenths of its life, so that it does not expire on the way.
fn life(expires_in: &serde_json::Value) -> Duration {
    let told = expires_in.as_f64().or_else(|| expires_in.as_str()?.parse().ok());
    let life = match told.filter(|seconds| !seconds.is_nan()) {
        Some(seconds) => Duration::from_secs_f64(seconds.clamp(0.0, MAX_LIFE)),
        None => DEFAULT_LIFE,
    };
    life.mul_f64(0.9)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lives_are_believed_within_bounds() {
        for (told, seconds) in [
            (json!(300), 270),
            (json!("300"), 270),
            (json!(null), 54),
            (json!("soon"), 54),
            (json!(-5), 0),
            (json!(1e300), 77_760),
            (json!(0), 0),
            (json!("NaN"), 54),
            (json!("-inf"), 0),
        ] {
            assert_eq!(life(&told).as_secs(), seconds, "{told}");
        }
    }

    #[test]
    fn tokens_are_never_shown() {
        let answer: Answer = serde_json::from_value(json!({"access_token": "s3cret"})).unwrap();
        let token = answer.token().unwrap();
        assert_eq!(token.header, "Bearer s3cret");
        assert!(!format!("{token:?}").contains("s3cret"));
        for bad in [json!({}), json!({"token": ""}), json!({"token": "a\r\nb: c"})] {
            let answer: Answer = serde_json::from_value(bad).unwrap();
            assert!(answer.token().is_none());
        }
    }

    #[test]
    fn the_scope_joins_what_the_realm_already_asks() {
        let key = TokenKey {
            realm: "https://r/t?account=x#y".parse().unwrap(),
            service: Some("lab".into()),
            scope: "repository:a/b:pull".into(),
        };
        let expected = "https://r/t?account=x&service=lab&scope=repository%3Aa%2Fb%3Apull";
        assert_eq!(address(&key).as_str(), expected);
    }
}
