//! Who may read from the fake upstream: everyone, Basic, or Bearer with a token service.

use super::{answer::Draft, repository::query, route::Route};
use crate::Content;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use hyper::{header, http::request::Parts};
use serde_json::json;
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

#[derive(Default)]
pub(super) enum Access {
    #[default]
    Open,
    /// The `Authorization` header that is right.
    Basic(String),
    Bearer(Bearer),
}

/// How Bearer tokens are asked for and issued.
#[derive(Clone, Debug)]
pub struct Bearer {
    /// The `Authorization` header the token service wants; absent for anonymous tokens.
    user: Option<String>,
    realm: Option<String>,
    lifetime: Duration,
    tells_lifetime: bool,
    issued: HashMap<String, Token>,
    count: u64,
}

#[derive(Clone, Debug)]
struct Token {
    /// The `scope` asked for, such as `repository:lab/app:pull`.
    scope: String,
    ends: Instant,
}

impl Default for Bearer {
    fn default() -> Self {
        Self::new()
    }
}

impl Bearer {
    /// Anonymous tokens of five minutes from this upstream's own `/token`.
    pub fn new() -> Self {
        Self {
            user: None,
            realm: None,
            lifetime: Duration::from_secs(300),
            tells_lifetime: true,
            issued: HashMap::new(),
            count: 0,
        }
    }

    /// The token service wants these Basic credentials.
    pub fn user(mut self, user: &str, password: &str) -> Self {
        self.user = Some(basic(user, password));
        self
    }

    /// Names this token service in the challenge instead of its own, as a hostile upstream would.
    pub fn realm(mut self, url: &str) -> Self {
        self.realm = Some(url.to_owned());
        self
    }

    /// How long a token is good for; whole seconds are told as `expires_in`.
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// Leaves `expires_in` out of the token service's answers.
    pub fn silent_about_lifetime(mut self) -> Self {
        self.tells_lifetime = false;
        self
    }

    fn admits(&self, repository: Option<&str>, token: &str) -> bool {
        let Some(token) = self.issued.get(token).filter(|token| token.ends > Instant::now()) else {
            return false;
        };
        let wanted = |repository: &str| format!("repository:{repository}:pull");
        repository.is_none_or(|repository| token.scope.split(' ').any(|s| s == wanted(repository)))
    }

    fn issue(&mut self, parts: &Parts) -> Draft {
        if self.user.is_some() && self.user.as_deref() != authorization(parts) {
            return Draft::error(401, "UNAUTHORIZED");
        }
        self.count += 1;
        let token = format!("token-{}", self.count);
        let scope = query(parts).remove("scope").unwrap_or_default();
        let ends = Instant::now() + self.lifetime;
        self.issued.insert(token.clone(), Token { scope, ends });
        let mut answer = json!({ "token": token, "access_token": token });
        if self.tells_lifetime {
            answer["expires_in"] = json!(self.lifetime.as_secs());
        }
        let mut draft = Draft::ok(parts, Content::from(answer.to_string().into_bytes()));
        draft.set_header("content-type", "application/json");
        draft
    }

    fn challenge(&self, repository: Option<&str>, host: &str) -> String {
        let own = format!("http://{host}/token");
        let realm = self.realm.as_deref().unwrap_or(&own);
        let scope = repository.map(|name| format!(",scope=\"repository:{name}:pull\""));
        format!("Bearer realm=\"{realm}\",service=\"testkit\"{}", scope.unwrap_or_default())
    }
}

impl Access {
    pub fn basic(user: &str, password: &str) -> Self {
        Self::Basic(basic(user, password))
    }

    pub fn admits(&self, route: &Route<'_>, parts: &Parts) -> bool {
        let given = authorization(parts).unwrap_or_default();
        match self {
            _ if matches!(route, Route::Cdn { .. }) => true,
            Self::Open => true,
            Self::Basic(right) => given == right,
            Self::Bearer(bearer) => given
                .strip_prefix("Bearer ")
                .is_some_and(|token| bearer.admits(route.repository(), token)),
        }
    }

    pub fn challenge(&self, route: &Route<'_>, parts: &Parts) -> Draft {
        let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let challenge = match self {
            Self::Open | Self::Basic(_) => "Basic realm=\"testkit\"".to_owned(),
            Self::Bearer(bearer) => bearer.challenge(route.repository(), host.unwrap_or_default()),
        };
        let mut draft = Draft::error(401, "UNAUTHORIZED");
        draft.set_header("www-authenticate", &challenge);
        draft
    }

    /// Answers the token endpoint.
    pub fn issue(&mut self, parts: &Parts) -> Draft {
        match self {
            Self::Bearer(bearer) => bearer.issue(parts),
            Self::Open | Self::Basic(_) => Draft::error(404, "NOT_FOUND"),
        }
    }

    pub fn revoke_tokens(&mut self) {
        if let Self::Bearer(bearer) = self {
            bearer.issued.clear();
        }
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

fn authorization(parts: &Parts) -> Option<&str> {
    parts.headers.get(header::AUTHORIZATION)?.to_str().ok()
}
