//! Headers of messages: trace context out and in, and ids that come from elsewhere.

use async_nats::{HeaderMap, HeaderValue};
use hydrant_telemetry::propagation;

/// The headers that continue the current trace at whoever reads the message.
pub(crate) fn of_current_trace() -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in propagation::inject_current() {
        // Given as a string, a value with CR or LF would panic.
        if let Ok(value) = value.parse::<HeaderValue>() {
            headers.insert(name.as_str(), value);
        }
    }
    headers
}

/// Makes `span` a child of the trace the message came from.
pub(crate) fn continue_trace(span: &tracing::Span, headers: Option<&HeaderMap>) {
    let Some(headers) = headers else { return };
    propagation::set_parent(span, |name| headers.get(name).map(|value| value.as_str().to_owned()));
}

/// The trace the message came from, as it was written.
pub(crate) fn traceparent(headers: Option<&HeaderMap>) -> Option<String> {
    headers?.get("traceparent").map(|value| value.as_str().to_owned())
}
