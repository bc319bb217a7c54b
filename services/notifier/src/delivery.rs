//! One attempt to tell one endpoint of one event, as typed stages: prepare, sign, send, judge.
//! What becomes of a failed attempt is decided in `endpoint`.

use crate::{
    cloudevent,
    schedule::retry_after,
    secret::{self, SecretError},
    signature::{self, Key},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use hydrant_egress::{Body, Egress, EgressError, Policy, Request, Response};
use hydrant_proto::Event;
use hydrant_rules::Webhook;
use hydrant_telemetry::{
    propagation,
    spans::{Outgoing, Server, Target},
};
use jiff::Timestamp;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

/// What one attempt may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest wait for a connection, TLS included.
    pub connect: Duration,
    /// Longest attempt in all, the reading of the response included.
    pub total: Duration,
    /// Most bytes read of a response. Nothing looks at them; they are read so that the connection
    /// can be used again.
    pub response_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            total: Duration::from_secs(30),
            response_bytes: 64 * 1024,
        }
    }
}

/// What is sent, before it is signed: the same at every attempt.
#[derive(Debug)]
pub struct Prepared {
    id: HeaderValue,
    body: Bytes,
}

/// What is sent, with headers that hold for this attempt only.
#[derive(Debug)]
pub struct Signed {
    headers: HeaderMap,
    body: Bytes,
}

/// What the endpoint said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: StatusCode,
    pub retry_after: Option<Duration>,
}

/// Why the endpoint said nothing. Texts name hosts and files, never paths, queries or secrets.
#[derive(Debug, thiserror::Error)]
pub enum Unsent {
    /// An event from the bus whose id is no header value.
    #[error("the event id cannot be a header")]
    Id,
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// Not to this address.
    #[error(transparent)]
    Egress(EgressError),
    #[error("no answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// Connection, TLS or protocol.
    #[error("{0}")]
    Transport(String),
}

/// What the attempt comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    Delivered,
    /// May be tried again, not before `retry_after`.
    Failed {
        retry_after: Option<Duration>,
    },
    /// 410: the endpoint wants no more, ever.
    Gone,
}

/// A way to one endpoint, with connections of its own.
#[derive(Debug)]
pub struct Sender {
    webhook: Webhook,
    egress: Egress,
    server: Server,
    limits: Limits,
}

impl Sender {
    /// Fails when TLS cannot be set up.
    pub fn new(webhook: Webhook, limits: Limits) -> Result<Self, EgressError> {
        let egress = Egress::new(Policy {
            allow_private: webhook.allow_private,
            connect_timeout: limits.connect,
        })?;
        let address = webhook.url.host_str().unwrap_or_default().to_owned();
        let port = webhook.url.port_or_known_default().unwrap_or_default();
        Ok(Self { webhook, egress, server: Server { address, port }, limits })
    }

    pub fn webhook(&self) -> &Webhook {
        &self.webhook
    }

    /// One attempt. `traceparent` is the trace the event came about in.
    pub async fn attempt(
        &self,
        event: &Event,
        traceparent: Option<&str>,
    ) -> Result<Answer, Unsent> {
        let prepared = prepare(event, traceparent)?;
        let key = secret::key(&self.webhook.secret).await?;
        let outgoing = self.outgoing();
        let sending = async {
            let signed = sign(prepared, &event.id, &key, Timestamp::now());
            self.send(signed).await
        };
        let sent = sending.instrument(outgoing.span()).await;
        outgoing.ended(match &sent {
            Ok(answer) => Ok(answer.status.as_u16()),
            Err(unsent) => Err(unsent.kind()),
        });
        sent
    }

    /// The path of a webhook may be its secret, so it is nowhere to be seen.
    fn outgoing(&self) -> Outgoing<'_> {
        let target = Target {
            scheme: self.webhook.url.scheme(),
            address: &self.server.address,
            port: self.server.port,
            path: "/",
            resends: 0,
        };
        Outgoing::begin(&self.server, &Method::POST, &target)
    }

    async fn send(&self, signed: Signed) -> Result<Answer, Unsent> {
        let deadline = Instant::now() + self.limits.total;
        let Signed { headers, body } = signed;
        let (method, url) = (Method::POST, self.webhook.url.clone());
        let response =
            timeout_at(deadline, self.egress.send(Request { method, url, headers, body }))
                .await
                .map_err(|_| Unsent::Timeout(self.limits.total))??;
        let answer = Answer::of(&response, Timestamp::now());
        // The status has decided; a body that is too long or too slow costs the connection only.
        let reading = read_away(response.into_body(), self.limits.response_bytes);
        let _ = timeout_at(deadline, reading).await;
        Ok(answer)
    }
}

impl Unsent {
    /// One word, for spans and metrics.
    const fn kind(&self) -> &'static str {
        match self {
            Self::Id => "event-id",
            Self::Secret(_) => "secret",
            Self::Egress(_) => "refused",
            Self::Timeout(_) => "timeout",
            Self::Transport(_) => "transport",
        }
    }
}

impl From<EgressError> for Unsent {
    fn from(error: EgressError) -> Self {
        match error {
            EgressError::Unanswered(detail) => Self::Transport(detail),
            refused => Self::Egress(refused),
        }
    }
}

pub fn prepare(event: &Event, traceparent: Option<&str>) -> Result<Prepared, Unsent> {
    let id = HeaderValue::from_str(&event.id).map_err(|_| Unsent::Id)?;
    Ok(Prepared { id, body: cloudevent::body(event, traceparent).into() })
}

/// The signature covers the time of this attempt, so that a receiver can refuse old ones.
pub fn sign(prepared: Prepared, id: &str, key: &Key, at: Timestamp) -> Signed {
    let Prepared { id: id_header, body } = prepared;
    let signature = HeaderValue::try_from(key.sign(id, at, &body)).expect("base64 is ASCII");
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(cloudevent::CONTENT_TYPE));
    headers.insert(signature::ID, id_header);
    headers.insert(signature::TIMESTAMP, at.as_second().into());
    headers.insert(signature::SIGNATURE, signature);
    headers.extend(propagation::inject_current().into_iter().filter_map(trace_header));
    Signed { headers, body }
}

fn trace_header((name, value): (String, String)) -> Option<(HeaderName, HeaderValue)> {
    Some((name.parse().ok()?, value.try_into().ok()?))
}

pub fn judge(result: &Result<Answer, Unsent>) -> Judgement {
    match result {
        Ok(answer) if answer.status.is_success() => Judgement::Delivered,
        Ok(answer) if answer.status == StatusCode::GONE => Judgement::Gone,
        Ok(answer) => Judgement::Failed { retry_after: answer.retry_after },
        Err(
            Unsent::Id
            | Unsent::Secret(_)
            | Unsent::Egress(_)
            | Unsent::Timeout(_)
            | Unsent::Transport(_),
        ) => Judgement::Failed { retry_after: None },
    }
}

impl Answer {
    fn of(response: &Response, now: Timestamp) -> Self {
        let value = response.headers().get(header::RETRY_AFTER);
        let retry_after =
            value.and_then(|value| value.to_str().ok()).and_then(|text| retry_after(text, now));
        Self { status: response.status(), retry_after }
    }

    /// Why this answer is a failure, for people.
    pub fn complaint(&self) -> String {
        if self.status.is_redirection() {
            return format!("the endpoint answered {}; redirects are not followed", self.status);
        }
        format!("the endpoint answered {}", self.status)
    }
}

async fn read_away(mut body: Body, most: usize) {
    let mut read = 0;
    while let Ok(Some(chunk)) = body.chunk().await {
        read += chunk.len();
        if read >= most {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16) -> Result<Answer, Unsent> {
        Ok(Answer { status: StatusCode::from_u16(status).unwrap(), retry_after: None })
    }

    #[test]
    fn only_2xx_is_delivered_and_only_410_is_the_end() {
        let failed = Judgement::Failed { retry_after: None };
        for status in [200, 201, 202, 204, 299] {
            assert_eq!(judge(&answered(status)), Judgement::Delivered, "{status}");
        }
        for status in [301, 302, 304, 307, 308, 400, 401, 404, 408, 429, 500, 502, 503, 504] {
            assert_eq!(judge(&answered(status)), failed, "{status}");
        }
        assert_eq!(judge(&answered(410)), Judgement::Gone);
        assert_eq!(judge(&Err(Unsent::Timeout(Duration::from_secs(30)))), failed);
    }

    #[test]
    fn headers_are_those_of_standard_webhooks_and_verify() {
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=";
        let event = Event::test("ci", Timestamp::now());
        let key = Key::parse(secret).unwrap();
        let signed = sign(prepare(&event, None).unwrap(), &event.id, &key, Timestamp::now());
        assert_eq!(signed.headers[signature::ID], event.id.as_str());
        assert!(
            signed.headers[header::CONTENT_TYPE]
                .to_str()
                .unwrap()
                .starts_with("application/cloudevents+json")
        );
        signature::verify(secret, &signed.headers, &signed.body).unwrap();
    }

    async fn to(url: &str, allow_private: bool) -> Result<Answer, Unsent> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secret");
        std::fs::write(&file, "A".repeat(40)).unwrap();
        let webhook = serde_json::json!({
            "name": "ci", "url": url, "allow_private": allow_private, "secret": { "file": file },
        });
        let sender =
            Sender::new(serde_json::from_value(webhook).unwrap(), Limits::default()).unwrap();
        sender.attempt(&Event::test("ci", Timestamp::now()), None).await
    }

    #[tokio::test]
    async fn private_addresses_are_refused_in_every_spelling_and_by_name() {
        let sink = hydrant_testkit::WebhookSink::start().await;
        let port = sink.url().rsplit(':').next().unwrap().to_owned();
        for host in
            ["127.0.0.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "localhost"]
        {
            let result = to(&format!("https://{host}:{port}"), false).await;
            let refused = matches!(result, Err(Unsent::Egress(EgressError::Address { .. })));
            assert!(refused, "{host}: {result:?}");
        }
        for (url, name) in [(sink.url(), "plain http"), ("https://u:p@ci.example/".into(), "user")]
        {
            let error = to(&url, false).await.unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        assert!(sink.received().is_empty());
        let by_name = sink.url().replace("127.0.0.1", "localhost");
        for url in [sink.url(), by_name] {
            assert_eq!(to(&url, true).await.unwrap().status, 200, "{url}");
        }
    }

    #[tokio::test]
    async fn errors_tell_the_host_but_not_the_path() {
        let url = "http://127.0.0.1:1/hook/secret-path?token=secret-query";
        let error = to(url, true).await.unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn an_event_id_that_could_break_out_of_its_header_is_refused() {
        let mut event = Event::test("ci", Timestamp::now());
        event.id = "a\r\nx-evil: 1".into();
        assert!(matches!(prepare(&event, None), Err(Unsent::Id)));
    }
}
