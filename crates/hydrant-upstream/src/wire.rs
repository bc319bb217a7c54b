//! One request over the wire: through egress, with a deadline for the headers, measured.

use crate::{
    answer::{Blame, Failure},
    error::UpstreamError,
};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header::CONTENT_ENCODING};
use hydrant_egress::{Egress, EgressError, Request, Response};
use hydrant_proto::FailureClass;
use hydrant_telemetry::{
    metrics,
    metrics::RequestKind,
    spans::{Outgoing, Server, Target},
};
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tracing::Instrument;
use url::Url;

/// The way to one upstream and to the hosts it leads to.
#[derive(Debug)]
pub struct Wire {
    pub upstream: String,
    /// The endpoint's, as it is configured.
    pub server: Server,
    pub egress: Egress,
}

/// One request, to one host.
pub struct Hop<'a> {
    pub kind: RequestKind,
    /// What is asked for, for people.
    pub what: &'a str,
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    /// How often the same was sent before.
    pub resends: u32,
}

/// How long to wait for answers.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the headers of each answer.
    pub each: Duration,
    /// For all of them together.
    pub until: Option<Instant>,
}

impl Patience {
    /// No longer than until then, too.
    pub fn until(self, limit: Option<Instant>) -> Self {
        let until = self.until.into_iter().chain(limit).min();
        Self { until, ..self }
    }

    /// The time left for the next answer.
    pub fn left(&self) -> Duration {
        match self.until {
            Some(until) => self.each.min(until.saturating_duration_since(Instant::now())),
            None => self.each,
        }
    }
}

impl Wire {
    /// Sends one request and waits for the headers of its answer, whatever the status.
    pub async fn send(&self, hop: Hop<'_>, patience: Patience) -> Result<Response, Failure> {
        let (kind, what) = (hop.kind, hop.what);
        let began = Instant::now();
        let outgoing = self.outgoing(&hop);
        let sent = self.exchange(hop, patience).instrument(outgoing.span()).await;
        outgoing.ended(match &sent {
            Ok(response) => Ok(response.status().as_u16()),
            Err(failure) => Err(failure.error.class().as_str()),
        });
        let outcome = match &sent {
            Ok(response) => rough_class(kind, response.status()),
            Err(failure) => Err(failure.error.class()),
        };
        metrics().upstreams.answered(&self.upstream, kind, outcome, began.elapsed());
        let response = sent?;
        self.refuse_encoded(response, what)
    }

    fn outgoing(&self, hop: &Hop<'_>) -> Outgoing<'_> {
        let target = Target {
            scheme: hop.url.scheme(),
            address: hop.url.host_str().unwrap_or_default(),
            port: hop.url.port_or_known_default().unwrap_or_default(),
            path: hop.url.path(),
            resends: hop.resends,
        };
        Outgoing::begin(&self.server, &hop.method, &target)
    }

    async fn exchange(&self, hop: Hop<'_>, patience: Patience) -> Result<Response, Failure> {
        let Hop { what, method, url, headers, .. } = hop;
        self.egress.check(&url).map_err(|source| self.refused(source))?;
        let host = url.host_str().unwrap_or_default().to_owned();
        let left = patience.left();
        if left.is_zero() {
            let detail = "the time for it was used up before it was asked".to_owned();
            return Err(self.down(what, detail, Blame::Nobody));
        }
        let request = Request { method, url, headers, body: Bytes::new() };
        match timeout(left, self.egress.send(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.not_sent(what, &host, error)),
            Err(_) => {
                let detail = format!("`{host}` did not answer within {}ms", left.as_millis());
                Err(self.down(what, detail, Blame::Failed))
            }
        }
    }

    fn not_sent(&self, what: &str, host: &str, error: EgressError) -> Failure {
        match error {
            EgressError::Unresolved { .. } | EgressError::Unanswered(_) => {
                self.down(what, format!("cannot ask `{host}`: {error}"), Blame::Failed)
            }
            refusal => self.refused(refusal),
        }
    }

    /// Compressed answers are refused: their bytes are not the ones the digest names.
    fn refuse_encoded(&self, response: Response, what: &str) -> Result<Response, Failure> {
        let encoding = response.headers().get(CONTENT_ENCODING);
        if encoding.is_none_or(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Ok(response);
        }
        let (upstream, what) = (self.upstream.clone(), what.to_owned());
        let detail = "the answer has a content encoding".to_owned();
        let error = UpstreamError::Integrity { upstream, what, detail };
        Err(Failure { error, blame: Blame::Answered })
    }

    pub fn refused(&self, source: EgressError) -> Failure {
        let error = UpstreamError::Egress { upstream: self.upstream.clone(), source };
        Failure { error, blame: Blame::Nobody }
    }

    pub fn down(&self, what: &str, detail: String, blame: Blame) -> Failure {
        let (upstream, what) = (self.upstream.clone(), what.to_owned());
        Failure { error: UpstreamError::Down { upstream, what, detail }, blame }
    }

    pub fn auth(&self, detail: impl Into<String>, blame: Blame) -> Failure {
        let (upstream, detail) = (self.upstream.clone(), detail.into());
        Failure { error: UpstreamError::Auth { upstream, detail }, blame }
    }
}

/// The class a status alone suggests, for the metrics. A challenge is no failure.
fn rough_class(kind: RequestKind, status: StatusCode) -> Result<(), FailureClass> {
    match status.as_u16() {
        0..=399 => Ok(()),
        401 if kind == RequestKind::Ping => Ok(()),
        401 => Err(FailureClass::UpstreamAuth),
        403 => Err(FailureClass::Denied),
        404 | 410 => Err(FailureClass::Unknown),
        429 => Err(FailureClass::UpstreamLimit),
        508 => Err(FailureClass::UpstreamLoop),
        _ => Err(FailureClass::UpstreamDown),
    }
}
