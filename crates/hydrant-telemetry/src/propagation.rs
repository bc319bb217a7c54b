//! Carries the trace over a boundary, in W3C trace context (`traceparent`, `tracestate`).
//!
//! Names are lower-case: HTTP does not mind, NATS headers are case-sensitive.

use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::TraceContextExt,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The headers that may carry a trace.
const HEADERS: [&str; 2] = ["traceparent", "tracestate"];

/// The headers that continue the current span elsewhere; empty outside a trace.
pub fn inject_current() -> Vec<(String, String)> {
    let mut headers = Collected(Vec::new());
    TraceContextPropagator::new().inject_context(&tracing::Span::current().context(), &mut headers);
    headers.0
}

/// Makes `span` a child of the trace that `header` tells of, if it tells of one. To be called
/// before the span is entered; an entered span keeps its parent.
pub fn set_parent(span: &tracing::Span, header: impl Fn(&str) -> Option<String>) {
    let found = HEADERS.iter().filter_map(|name| Some((*name, header(name)?))).collect();
    let parent = TraceContextPropagator::new().extract(&Found(found));
    if !parent.span().span_context().is_valid() {
        return;
    }
    if let Err(error) = span.set_parent(parent) {
        tracing::debug!(%error, "trace is not continued");
    }
}

/// The id of the current trace as 32 hex digits, which is also the correlation id of answers.
pub fn current_trace_id() -> Option<String> {
    let context: Context = tracing::Span::current().context();
    let span = context.span().span_context().clone();
    span.is_valid().then(|| span.trace_id().to_string())
}

struct Collected(Vec<(String, String)>);

impl Injector for Collected {
    fn set(&mut self, key: &str, value: String) {
        if !value.is_empty() {
            self.0.push((key.to_ascii_lowercase(), value));
        }
    }
}

struct Found(Vec<(&'static str, String)>);

impl Extractor for Found {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, v)| v.as_str())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| *name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces;
    use tracing_subscriber::layer::SubscriberExt;

    fn traced<T>(run: impl FnOnce() -> T) -> T {
        let provider = traces::provider("test", None).unwrap();
        let subscriber =
            tracing_subscriber::registry().with(traces::layer(&provider, traces::Events::LeftOut));
        tracing::subscriber::with_default(subscriber, run)
    }

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    fn continued(traceparent: &str) -> Vec<(String, String)> {
        traced(|| {
            let span = tracing::info_span!("work");
            set_parent(&span, |name| (name == "traceparent").then(|| traceparent.to_owned()));
            span.in_scope(inject_current)
        })
    }

    #[test]
    fn what_came_in_goes_out_with_a_span_of_our_own() {
        for flags in ["00", "01"] {
            let parent = "b7ad6b7169203331";
            let out = continued(&format!("00-{TRACE}-{parent}-{flags}"));
            assert_eq!(out.len(), 1, "{out:?}");
            assert_eq!(out[0].0, "traceparent");
            assert!(out[0].1.starts_with(&format!("00-{TRACE}-")), "{out:?}");
            assert!(out[0].1.ends_with(&format!("-{flags}")), "the caller decides on sampling");
            assert!(!out[0].1.contains(parent), "{out:?}");
        }
    }

    #[test]
    fn junk_begins_a_trace_of_its_own() {
        for junk in ["", "junk", "00-0-0-0", "\r\n", &"9".repeat(10_000)] {
            let out = continued(junk);
            assert_eq!(out.len(), 1, "{out:?}");
            assert!(!out[0].1.contains(TRACE));
        }
    }

    #[test]
    fn outside_a_trace_nothing_goes_out() {
        assert_eq!(traced(inject_current), []);
        assert_eq!(inject_current(), []);
        assert_eq!(current_trace_id(), None);
    }
}
