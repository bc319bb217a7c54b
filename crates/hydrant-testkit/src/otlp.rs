//! A receiver of OTLP traces over HTTP with protobuf.

use crate::{
    server::{Answer, Handler, Server, full},
    until,
};
use futures::FutureExt;
use http_body_util::BodyExt;
use hyper::{Request, Response, body::Incoming};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, Span as Exported},
};
use prost::Message;
use std::{
    collections::BTreeMap,
    fmt::Write,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

/// A running receiver; gone when dropped.
pub struct OtlpReceiver {
    server: Server,
    spans: Arc<Mutex<Vec<Span>>>,
}

/// One exported span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// 32 hex digits.
    pub trace_id: String,
    /// 16 hex digits.
    pub span_id: String,
    /// Absent in the root of a trace.
    pub parent_span_id: Option<String>,
    pub name: String,
    /// `service.name` of the resource.
    pub service: String,
    /// Texts as they are; other values as OTLP's debug text.
    pub attributes: BTreeMap<String, String>,
}

impl OtlpReceiver {
    pub async fn start() -> Self {
        let spans = Arc::<Mutex<Vec<Span>>>::default();
        let server = Server::start(handler(spans.clone())).await;
        Self { server, spans }
    }

    /// The value for `OTEL_EXPORTER_OTLP_ENDPOINT`; exporters add `/v1/traces`.
    pub fn endpoint(&self) -> String {
        self.server.url()
    }

    /// The variables that send the traces of a process here soon.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", self.endpoint()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf".to_owned()),
            ("OTEL_BSP_SCHEDULE_DELAY", "200".to_owned()),
        ]
    }

    /// Every span so far.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().expect("no holder panics").clone()
    }

    /// Waits until `wanted` takes all spans so far, and returns what it makes of them.
    pub async fn wait_until<T>(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&[Span]) -> Option<T>,
    ) -> T {
        until(&format!("traces: {what}"), limit, async || wanted(&self.spans())).await
    }
}

fn handler(spans: Arc<Mutex<Vec<Span>>>) -> Handler {
    Arc::new(move |request| receive(request, spans.clone()).boxed())
}

async fn receive(request: Request<Incoming>, spans: Arc<Mutex<Vec<Span>>>) -> Answer {
    let status = match request.uri().path() {
        "/v1/traces" => {
            let body = request.into_body().collect().await.map_err(io::Error::other)?;
            match ExportTraceServiceRequest::decode(body.to_bytes()) {
                Ok(export) => {
                    let received = export.resource_spans.into_iter().flat_map(read);
                    spans.lock().expect("no holder panics").extend(received);
                    200
                }
                Err(_) => 400,
            }
        }
        _ => 404,
    };
    // An empty body is an `ExportTraceServiceResponse` without remarks.
    let response = Response::builder().status(status).header("content-type", CONTENT_TYPE);
    Ok(response.body(full("")).expect("the header is valid"))
}

const CONTENT_TYPE: &str = "application/x-protobuf";

fn read(resource: ResourceSpans) -> Vec<Span> {
    let attributes = texts(resource.resource.unwrap_or_default().attributes);
    let service = attributes.get("service.name").cloned().unwrap_or_default();
    let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
    spans.map(|span| Span::read(span, &service)).collect()
}

impl Span {
    fn read(span: Exported, service: &str) -> Self {
        Self {
            trace_id: hex(&span.trace_id),
            span_id: hex(&span.span_id),
            parent_span_id: Some(hex(&span.parent_span_id)).filter(|id| !id.is_empty()),
            name: span.name,
            service: service.to_owned(),
            attributes: texts(span.attributes),
        }
    }
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    attributes.into_iter().map(|attribute| (attribute.key, text(attribute.value))).collect()
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        None => String::new(),
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(truth)) => truth.to_string(),
        Some(other) => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string never fails");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client;
    use opentelemetry_proto::tonic::{resource::v1::Resource, trace::v1::ScopeSpans};

    fn attribute(key: &str, value: &str) -> KeyValue {
        let value = Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) });
        KeyValue { key: key.to_owned(), value, ..Default::default() }
    }

    #[tokio::test]
    async fn exported_spans_can_be_read() {
        let receiver = OtlpReceiver::start().await;
        let span = Exported {
            trace_id: vec![1; 16],
            span_id: vec![2; 8],
            name: "pull".to_owned(),
            attributes: vec![attribute("upstream", "lab")],
            ..Default::default()
        };
        let resource = Resource {
            attributes: vec![attribute("service.name", "hydrant-frontend")],
            ..Default::default()
        };
        let export = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(resource),
                scope_spans: vec![ScopeSpans { spans: vec![span], ..Default::default() }],
                ..Default::default()
            }],
        };
        let url = receiver.endpoint() + "/v1/traces";
        let sent = client::plain().post(url).body(export.encode_to_vec()).send().await.unwrap();
        assert_eq!(sent.status(), 200);
        let span = receiver.spans().remove(0);
        assert_eq!((span.name.as_str(), span.service.as_str()), ("pull", "hydrant-frontend"));
        assert_eq!((span.trace_id.as_str(), span.parent_span_id), ("01".repeat(16).as_str(), None));
        assert_eq!(span.attributes["upstream"], "lab");
    }
}
