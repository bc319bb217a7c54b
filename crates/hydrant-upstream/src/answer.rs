//! What an answer that is not a success means: for the caller, and for the breaker.
//!
//! "Cannot tell" is never `Unknown`: a 404 counts only when a registry gave it. Of an error body
//! nothing but the error code is kept, since upstreams echo what they were sent.

use crate::{body, error::UpstreamError, retry_after};
use http::{HeaderMap, StatusCode, header::CONTENT_TYPE};
use hydrant_egress::Response;
use jiff::Timestamp;
use oci_client::errors::{OciEnvelope, OciErrorCode};
use std::time::Duration;

/// A call that failed, and what that says about the upstream's health.
#[derive(Clone, Debug)]
pub struct Failure {
    pub error: UpstreamError,
    pub blame: Blame,
}

/// What a failure says about the upstream's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// Nothing: it was not asked, or not by this call.
    Nobody,
    /// It answered; the answer was just not the one hoped for.
    Answered,
    /// It did not answer, or with 5xx.
    Failed,
    /// It asked us to stay away, for so long if it said.
    Limited(Option<Duration>),
}

/// The answer to judge.
pub struct Refusal<'a> {
    pub upstream: &'a str,
    pub what: &'a str,
    /// Whether the configured endpoint itself answered, and not a host it redirected to.
    pub by_endpoint: bool,
    pub head: bool,
    /// Whether any 404 of the endpoint counts, a web page too: how registries without the API
    /// answer that is asked for.
    pub any_404: bool,
    /// Whether a credential, or a token got with one, was sent.
    pub with_credential: bool,
}

/// Longest error body read, in bytes.
const MAX_ENVELOPE: usize = 64 * 1024;
/// Longest wait for an error body.
const ENVELOPE_TIMEOUT: Duration = Duration::from_secs(5);

impl Refusal<'_> {
    /// Reads the error body, as far as there is one, and judges.
    pub async fn judge(&self, response: Response) -> Failure {
        let status = response.status();
        let headers = response.headers().clone();
        let body = body::collect(response, MAX_ENVELOPE, ENVELOPE_TIMEOUT).await;
        let body = body.ok().filter(|_| !self.head);
        let certain = self.is_certain(&headers, body.as_deref());
        let code = body.as_deref().and_then(code);
        self.table(status, &headers, code, certain)
    }

    fn table(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        code: Option<OciErrorCode>,
        certain: bool,
    ) -> Failure {
        let pause = retry_after::retry_after(headers, Timestamp::now());
        let limited = code == Some(OciErrorCode::Toomanyrequests);
        let detail = self.detail(status, code);
        match status.as_u16() {
            429 => self.limited(pause, detail),
            400..=499 if limited => self.limited(pause, detail),
            401 if self.by_endpoint && self.with_credential => self.fail(Fate::Auth, detail),
            401 | 403 if self.by_endpoint => self.fail(Fate::Denied, detail),
            404 | 410 if certain => self.fail(Fate::Unknown, detail),
            416 => self.fail(Fate::Range, detail),
            // RFC 5842, 7.2. It answers, and asking again would answer the same.
            508 => self.fail(Fate::Loop, detail),
            503 if pause.is_some() => {
                Failure { blame: Blame::Limited(pause), ..self.fail(Fate::Down, detail) }
            }
            408 | 425 | 500..=599 => {
                Failure { blame: Blame::Failed, ..self.fail(Fate::Down, detail) }
            }
            _ => self.fail(Fate::Down, detail),
        }
    }

    /// Whether a "not found" comes from a registry. The spec lets it leave the body away, so an
    /// empty answer of the endpoint counts; a web page does not.
    fn is_certain(&self, headers: &HeaderMap, body: Option<&[u8]>) -> bool {
        if self.any_404 && self.by_endpoint {
            return true;
        }
        let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let json = kind.is_some_and(|kind| kind.contains("json"));
        let registry = headers.contains_key("docker-distribution-api-version");
        match body {
            Some([]) => self.by_endpoint,
            Some(body) => code(body).is_some(),
            None if self.head => json || registry || (self.by_endpoint && kind.is_none()),
            None => false,
        }
    }

    fn detail(&self, status: StatusCode, code: Option<OciErrorCode>) -> String {
        let who = if self.by_endpoint { "it" } else { "the host it redirects to" };
        match code.as_ref().and_then(name) {
            Some(code) => format!("{who} answered {} {code}", status.as_u16()),
            None => format!("{who} answered {}", status.as_u16()),
        }
    }

    fn limited(&self, pause: Option<Duration>, detail: String) -> Failure {
        let retry_after = pause.unwrap_or(retry_after::DEFAULT_PAUSE);
        let upstream = self.upstream.to_owned();
        let error = UpstreamError::Limited { upstream, retry_after, detail };
        Failure { error, blame: Blame::Limited(pause) }
    }

    fn fail(&self, fate: Fate, detail: String) -> Failure {
        let (upstream, what) = (self.upstream.to_owned(), self.what.to_owned());
        let error = match fate {
            Fate::Denied => UpstreamError::Denied { upstream, what, detail },
            Fate::Auth => UpstreamError::Auth { upstream, detail },
            Fate::Unknown => UpstreamError::Unknown { upstream, what, detail },
            Fate::Range => UpstreamError::RangeNotHonoured { upstream, what, detail },
            Fate::Loop => UpstreamError::Loop { upstream, what },
            Fate::Down => UpstreamError::Down { upstream, what, detail },
        };
        Failure { error, blame: Blame::Answered }
    }
}

/// The errors an answer can become.
enum Fate {
    Denied,
    Auth,
    Unknown,
    Range,
    Loop,
    Down,
}

/// The first error code of an OCI error body.
fn code(body: &[u8]) -> Option<OciErrorCode> {
    let envelope: OciEnvelope = serde_json::from_slice(body).ok()?;
    Some(envelope.errors.into_iter().next()?.code)
}

/// A code as it is written, when it looks like one.
fn name(code: &OciErrorCode) -> Option<String> {
    let serde_json::Value::String(name) = serde_json::to_value(code).ok()? else { return None };
    let plain = name.len() <= 40 && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    plain.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use hydrant_proto::FailureClass as Class;

    fn refusal(head: bool, by_endpoint: bool, with_credential: bool) -> Refusal<'static> {
        let (upstream, what, any_404) = ("lab", "manifest a:1", false);
        Refusal { upstream, what, by_endpoint, head, any_404, with_credential }
    }

    fn judge(
        refusal: &Refusal<'_>,
        status: u16,
        kind: &'static str,
        body: Option<&str>,
    ) -> Failure {
        let mut headers = HeaderMap::new();
        if !kind.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        }
        let body = body.map(str::as_bytes);
        let certain = refusal.is_certain(&headers, body);
        let status = StatusCode::from_u16(status).unwrap();
        refusal.table(status, &headers, body.and_then(code), certain)
    }

    #[test]
    fn a_404_counts_only_from_a_registry() {
        let unknown = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no"}]}"#;
        for (head, by_endpoint, kind, body, class) in [
            (false, true, "application/json", Some(unknown), Class::Unknown),
            (false, true, "", Some(""), Class::Unknown),
            (false, true, "text/html", Some("<html>not found"), Class::UpstreamDown),
            (false, true, "text/plain", Some("404 page not found"), Class::UpstreamDown),
            (false, true, "application/json", Some("{}"), Class::UpstreamDown),
            (false, true, "application/json", None, Class::UpstreamDown),
            (false, false, "application/json", Some(unknown), Class::Unknown),
            (false, false, "", Some(""), Class::UpstreamDown),
            (true, true, "application/json", None, Class::Unknown),
            (true, true, "", None, Class::Unknown),
            (true, true, "text/html", None, Class::UpstreamDown),
            (true, false, "", None, Class::UpstreamDown),
        ] {
            let failure = judge(&refusal(head, by_endpoint, false), 404, kind, body);
            assert_eq!(failure.error.class(), class, "{head} {by_endpoint} {kind} {body:?}");
            assert_eq!(failure.blame, Blame::Answered);
        }
        let any = Refusal { any_404: true, ..refusal(false, true, false) };
        let failure = judge(&any, 404, "text/plain", Some("404 page not found"));
        assert_eq!(failure.error.class(), Class::Unknown);
    }

    #[test]
    fn statuses_have_their_classes() {
        for (status, by_endpoint, with_credential, class, blame) in [
            (401, true, true, Class::UpstreamAuth, Blame::Answered),
            (401, true, false, Class::Denied, Blame::Answered),
            (403, true, true, Class::Denied, Blame::Answered),
            (401, false, true, Class::UpstreamDown, Blame::Answered),
            (403, false, false, Class::UpstreamDown, Blame::Answered),
            (429, true, false, Class::UpstreamLimit, Blame::Limited(None)),
            (429, false, false, Class::UpstreamLimit, Blame::Limited(None)),
            (500, true, false, Class::UpstreamDown, Blame::Failed),
            (503, true, false, Class::UpstreamDown, Blame::Failed),
            (508, true, false, Class::UpstreamLoop, Blame::Answered),
            (508, false, false, Class::UpstreamLoop, Blame::Answered),
            (400, true, false, Class::UpstreamDown, Blame::Answered),
            (418, true, false, Class::UpstreamDown, Blame::Answered),
            (304, true, false, Class::UpstreamDown, Blame::Answered),
        ] {
            let failure =
                judge(&refusal(false, by_endpoint, with_credential), status, "", Some(""));
            assert_eq!((failure.error.class(), failure.blame), (class, blame), "{status}");
        }
    }

    #[test]
    fn only_the_code_of_an_error_body_is_kept() {
        let echo = r#"{"errors":[{"code":"DENIED","message":"token s3cret is bad"}]}"#;
        let failure = judge(&refusal(false, true, true), 403, "application/json", Some(echo));
        assert!(failure.error.to_string().ends_with("it answered 403 DENIED"), "{}", failure.error);
        let odd = r#"{"errors":[{"code":"s3cret","message":""}]}"#;
        let failure = judge(&refusal(false, true, true), 403, "application/json", Some(odd));
        assert!(!failure.error.to_string().contains("s3cret"));
    }
}
