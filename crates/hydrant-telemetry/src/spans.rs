//! Spans that only a collector wants, in the words of OpenTelemetry's semantic conventions. They are
//! made while spans are exported and not otherwise, so that they cost nothing where nobody sees them.
//! What is asked of others is timed here as well, for the metrics.

use crate::metrics;
use http::Method;
use opentelemetry::trace::Status;
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};
use tracing::{Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt;

static EXPORTED: AtomicBool = AtomicBool::new(false);

pub(crate) fn are_exported() {
    EXPORTED.store(true, Ordering::Relaxed);
}

/// Whether a collector gets the spans of this process.
pub fn exported() -> bool {
    EXPORTED.load(Ordering::Relaxed)
}

/// Adds to the span of a request what its log lines need not repeat.
pub fn received(span: &Span, path: &str) {
    if exported() {
        span.set_attribute("url.path", path.to_owned());
    }
}

/// Tells how a request to us was answered: what the client did wrong is no error of ours.
pub fn answered(span: &Span, status: u16) {
    if exported() && status >= 500 {
        span.set_attribute("error.type", status.to_string());
        span.set_status(Status::error(""));
    }
}

/// The span of a message given to the bus; `destination` is a stream.
pub fn published(destination: &'static str) -> Span {
    if !exported() || Span::current().is_none() {
        return Span::none();
    }
    tracing::debug_span!(
        "publish",
        otel.name = format!("publish {destination}"),
        otel.kind = "producer",
        messaging.system = "nats",
        messaging.operation.name = "publish",
        messaging.operation.type = "send",
        messaging.destination.name = destination,
    )
}

/// One request to the object store; `method` is S3's own name of it.
#[derive(Clone, Copy, Debug)]
pub struct S3Request<'a> {
    pub method: &'static str,
    pub bucket: &'a str,
    /// Absent where the request is about the bucket.
    pub key: Option<&'a str>,
    pub address: &'a str,
    pub port: Option<u16>,
}

/// The span of a request to S3, below the one that it is made for. What nobody's trace asked for,
/// such as a sweep, has none.
pub fn s3(request: &S3Request<'_>) -> Span {
    if !exported() || Span::current().is_none() {
        return Span::none();
    }
    tracing::debug_span!(
        "s3 request",
        otel.name = format!("S3/{}", request.method),
        otel.kind = "client",
        otel.status_code = Empty,
        rpc.system = "aws-api",
        rpc.service = "S3",
        rpc.method = request.method,
        aws.s3.bucket = request.bucket,
        aws.s3.key = request.key,
        server.address = request.address,
        server.port = request.port,
        http.response.status_code = Empty,
        error.type = Empty,
    )
}

/// Tells how a request to somebody else ended: its status, or a word for why there is none.
pub fn ended(span: &Span, outcome: Result<u16, &'static str>) {
    if span.is_none() {
        return;
    }
    let failed = |why: &str| {
        span.record("error.type", why);
        span.record("otel.status_code", "error");
    };
    match outcome {
        Ok(status) => {
            span.record("http.response.status_code", status);
            if status >= 400 {
                failed(&status.to_string());
            }
        }
        Err(why) => failed(why),
    }
}

/// Whom a configured destination is at, for metrics: redirects lead elsewhere and are not labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub address: String,
    pub port: u16,
}

/// Where a request goes, as spans tell it: without its query, which may be a signature.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub scheme: &'a str,
    pub address: &'a str,
    pub port: u16,
    pub path: &'a str,
    /// How often the same was sent before: redirected, refused without a token, or failed.
    pub resends: u32,
}

impl Target<'_> {
    /// Elsewhere than at the configured server, where a redirect leads, the path may be signed.
    fn as_seen_from(&self, server: &Server) -> Self {
        match self.address == server.address && self.port == server.port {
            true => *self,
            false => Self { path: "/", ..*self },
        }
    }
}

/// An HTTP request to somebody else, under way.
#[derive(Debug)]
#[must_use = "it is recorded when it is told how it ended"]
pub struct Outgoing<'a> {
    server: &'a Server,
    method: &'static str,
    began: Instant,
    span: Span,
}

impl<'a> Outgoing<'a> {
    pub fn begin(server: &'a Server, method: &Method, target: &Target<'_>) -> Self {
        let method = method_name(method);
        let span = match exported() {
            true => outgoing_span(method, &target.as_seen_from(server)),
            false => Span::none(),
        };
        Self { server, method, began: Instant::now(), span }
    }

    /// What the request is to be made in.
    pub fn span(&self) -> Span {
        self.span.clone()
    }

    /// It was answered with this status, or not for this reason.
    pub fn ended(self, outcome: Result<u16, &'static str>) {
        ended(&self.span, outcome);
        metrics().http_client.answered(self.method, self.server, outcome, self.began.elapsed());
    }
}

fn outgoing_span(method: &'static str, target: &Target<'_>) -> Span {
    let Target { scheme, address, port, path, resends } = *target;
    tracing::debug_span!(
        "http request",
        otel.name = method,
        otel.kind = "client",
        otel.status_code = Empty,
        http.request.method = method,
        http.request.resend_count = (resends > 0).then_some(resends),
        http.response.status_code = Empty,
        url.full = format!("{scheme}://{address}:{port}{path}"),
        server.address = address,
        server.port = port,
        error.type = Empty,
    )
}

/// The method as a label: one of those we send.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "_OTHER",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt;

    #[test]
    fn without_a_collector_there_are_no_such_spans() {
        let server = Server { address: "lab".to_owned(), port: 443 };
        let to = Target { scheme: "https", address: "lab", port: 443, path: "/v2/", resends: 0 };
        let request =
            S3Request { method: "GetObject", bucket: "b", key: None, address: "s3", port: None };
        let provider = crate::traces::provider("test", None).unwrap();
        let layer = crate::traces::layer(&provider, crate::traces::Events::LeftOut);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let _pull = tracing::info_span!("pull").entered();
            assert!(!Span::current().is_none());
            assert!(s3(&request).is_none() && published("HYDRANT_EVENTS").is_none());
            let outgoing = Outgoing::begin(&server, &Method::GET, &to);
            assert!(outgoing.span().is_none());
            outgoing.ended(Err("timeout"));
        });
        let text = crate::metrics_text();
        let count = "http_client_request_duration_seconds_count{error_type=\"timeout\",\
                     http_request_method=\"GET\",server_address=\"lab\",server_port=\"443\"} 1";
        assert!(text.contains(count), "{text}");
    }
}
