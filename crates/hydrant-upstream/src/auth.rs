//! What a request to the endpoint is authorised with.
//!
//! How the upstream wants it is learned once, from `GET /v2/` (distribution spec, "Determining
//! support"), so that requests for content carry their token from the first one on and are not
//! made twice. A 401 corrects what was learned; each request is authorised anew at most once.
//!
//! Where no credential is to be shown, a HEAD finds that out just as well, and saves the first
//! client a round trip.

use crate::{
    answer::{Blame, Failure, Refusal},
    challenge::Challenge,
    error::UpstreamError,
    hosts,
    once::Cell,
    secret::{Login, SecretSource},
    token::{self, TokenKey, Tokens},
    wire::{Hop, Patience, Wire},
};
use http::{HeaderMap, HeaderValue, Method};
use hydrant_rules::{Credential, Upstream};
use hydrant_telemetry::metrics::RequestKind;
use std::sync::Arc;
use tokio::time::Instant;
use url::Url;

/// The authorisation of one upstream with one credential reference.
#[derive(Debug)]
pub struct Auth {
    upstream: Arc<Upstream>,
    /// `https://host[/prefix]/v2/`.
    ping: Url,
    credential: Option<Credential>,
    secrets: SecretSource,
    scheme: Cell<Scheme>,
    tokens: Tokens,
}

/// How the upstream wants to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scheme {
    Open,
    Basic,
    Bearer { realm: Url, service: Option<String> },
}

/// What one request carries. Its `Debug` shows no secret: the header value is sensitive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub header: HeaderValue,
}

/// Longest scope accepted from a challenge, in bytes.
const MAX_SCOPE: usize = 1024;

impl Auth {
    pub fn new(
        upstream: Arc<Upstream>,
        ping: Url,
        credential: Option<Credential>,
        secrets: SecretSource,
    ) -> Self {
        let (scheme, tokens) = (Cell::default(), Tokens::new());
        Self { upstream, ping, credential, secrets, scheme, tokens }
    }

    pub fn has_credential(&self) -> bool {
        self.credential.is_some()
    }

    /// Whether nothing is known of the upstream yet, and a request that costs nothing to be made twice
    /// may find out.
    pub fn may_try(&self) -> bool {
        self.credential.is_none() && self.scheme.is_empty()
    }

    /// A request that carried nothing was answered.
    pub async fn is_open(&self) {
        self.scheme.put(Scheme::Open).await;
    }

    /// What a request for `scope` carries, by what is known of the upstream.
    pub async fn grant(
        &self,
        wire: &Wire,
        scope: &str,
        patience: Patience,
    ) -> Result<Option<Grant>, Failure> {
        let scheme = self.scheme.get(|_| true, self.learn(wire, patience)).await?;
        match scheme {
            Scheme::Open => Ok(None),
            Scheme::Basic if self.credential.is_none() => Ok(None),
            Scheme::Basic => self.basic(wire).await.map(Some),
            Scheme::Bearer { realm, service } => {
                let key = TokenKey { realm, service, scope: scope.to_owned() };
                let granted = self.bearer(wire, key, patience).await;
                if granted.as_ref().is_err_and(|failure| failure.blame != Blame::Nobody) {
                    // Perhaps the upstream has another token service by now; ask it next time.
                    self.scheme.forget_if(|_| true).await;
                }
                granted.map(Some)
            }
        }
    }

    /// What the request carries when it is made again, after a 401 with `headers` to `used`, which
    /// was sent at `sent`.
    pub async fn renew(
        &self,
        wire: &Wire,
        headers: &HeaderMap,
        used: Option<&Grant>,
        sent: Instant,
        scope: &str,
        patience: Patience,
    ) -> Result<Grant, Failure> {
        let Some(challenge) = Challenge::of(headers) else {
            return Err(self.refused(wire, "it answered 401 without a challenge we know"));
        };
        let scheme = self.scheme_of(wire, &challenge)?;
        self.scheme.put(scheme.clone()).await;
        match (scheme, challenge) {
            (Scheme::Bearer { realm, service }, Challenge::Bearer { scope: wanted, .. }) => {
                let wanted = wanted.filter(|text| !text.is_empty() && text.len() <= MAX_SCOPE);
                let scope = wanted.unwrap_or_else(|| scope.to_owned());
                let key = TokenKey { realm, service, scope };
                self.tokens.forget(&key, sent).await;
                self.bearer(wire, key, patience).await
            }
            _ => self.basic_again(wire, used).await,
        }
    }

    /// Whether a 401 to a request we did authorise means that the credential itself is refused,
    /// and not only that it does not reach so far.
    pub fn is_credential_refused(&self, headers: &HeaderMap) -> bool {
        let too_narrow = matches!(
            Challenge::of(headers),
            Some(Challenge::Bearer { insufficient_scope: true, .. })
        );
        self.has_credential() && !too_narrow
    }

    async fn learn(&self, wire: &Wire, patience: Patience) -> Result<Scheme, Failure> {
        let (kind, what) = (RequestKind::Ping, "its /v2/");
        let (method, url, headers) = (Method::GET, self.ping.clone(), HeaderMap::new());
        let response =
            wire.send(Hop { kind, what, method, url, headers, resends: 0 }, patience).await?;
        match response.status().as_u16() {
            401 => Challenge::of(response.headers())
                .map_or(Ok(Scheme::Open), |challenge| self.scheme_of(wire, &challenge)),
            408 | 425 | 429 | 500..=599 => {
                let upstream = &wire.upstream;
                let refusal = Refusal {
                    upstream,
                    what,
                    by_endpoint: true,
                    head: false,
                    any_404: false,
                    with_credential: false,
                };
                Err(refusal.judge(response).await)
            }
            _ => Ok(Scheme::Open),
        }
    }

    fn scheme_of(&self, wire: &Wire, challenge: &Challenge) -> Result<Scheme, Failure> {
        match challenge {
            Challenge::Basic => Ok(Scheme::Basic),
            Challenge::Bearer { realm, service, .. } => {
                let realm = hosts::realm(&self.upstream, realm)
                    .map_err(|refusal| wire.auth(refusal, Blame::Answered))?;
                wire.egress
                    .check(&realm)
                    .map_err(|refusal| wire.auth(refusal.to_string(), Blame::Answered))?;
                Ok(Scheme::Bearer { realm, service: service.clone() })
            }
        }
    }

    async fn bearer(
        &self,
        wire: &Wire,
        key: TokenKey,
        patience: Patience,
    ) -> Result<Grant, Failure> {
        let fetch = async {
            let login = self.login(wire).await?;
            token::fetch(wire, &key, login.as_ref(), patience).await
        };
        let token = self.tokens.get(&key, fetch).await?;
        Ok(Grant { header: token.header })
    }

    async fn basic(&self, wire: &Wire) -> Result<Grant, Failure> {
        match self.login(wire).await? {
            Some(login) => Ok(Grant { header: token::basic(&login) }),
            None => Err(self.refused(wire, "it wants a user name and a password")),
        }
    }

    /// Makes sense only if the secret has changed since: the same one would be refused again.
    async fn basic_again(&self, wire: &Wire, used: Option<&Grant>) -> Result<Grant, Failure> {
        let again = self.basic(wire).await?;
        if Some(&again) == used {
            return Err(self.refused(wire, "it answered 401"));
        }
        Ok(again)
    }

    async fn login(&self, wire: &Wire) -> Result<Option<Login>, Failure> {
        let Some(credential) = &self.credential else { return Ok(None) };
        let login = self.secrets.login(credential).await;
        login.map(Some).map_err(|error| wire.auth(error.to_string(), Blame::Nobody))
    }

    fn refused(&self, wire: &Wire, detail: &str) -> Failure {
        if self.has_credential() {
            return wire.auth(detail, Blame::Answered);
        }
        let (upstream, what) = (wire.upstream.clone(), "it without a login".to_owned());
        let error = UpstreamError::Denied { upstream, what, detail: detail.to_owned() };
        Failure { error, blame: Blame::Answered }
    }
}
