//! Traces: the tracer, its sampling, and the export over OTLP `http/protobuf`.

use crate::{FLUSH_TIMEOUT, TelemetryError};
use opentelemetry::{KeyValue, trace::TracerProvider};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracerProvider},
};
use tracing::{Metadata, Subscriber};
use tracing_subscriber::{Layer, filter::filter_fn, registry::LookupSpan};

const SCOPE: &str = "hydrant";

/// With an endpoint every trace that a caller did not decide about is sampled (or as
/// `OTEL_TRACES_SAMPLER` says). Without one nothing is recorded, yet ids are made and handed on.
pub(crate) fn provider(
    service_name: &str,
    endpoint: Option<&str>,
) -> Result<SdkTracerProvider, TelemetryError> {
    // OTEL_RESOURCE_ATTRIBUTES adds to it, such as `service.instance.id`.
    let resource = Resource::builder()
        .with_service_name(service_name.to_owned())
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let builder = SdkTracerProvider::builder().with_resource(resource);
    let Some(endpoint) = endpoint else {
        return Ok(builder
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOff)))
            .build());
    };
    Ok(builder.with_batch_exporter(exporter(endpoint)?).build())
}

fn exporter(endpoint: &str) -> Result<SpanExporter, TelemetryError> {
    let refused =
        |reason: String| TelemetryError::Endpoint { endpoint: endpoint.to_owned(), reason };
    let url: http::Uri = endpoint.parse().map_err(|e| refused(format!("{e}")))?;
    if !matches!(url.scheme_str(), Some("http" | "https")) {
        return Err(refused("it must begin with http:// or https://".to_owned()));
    }
    SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(FLUSH_TIMEOUT)
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .build()
        .map_err(|e| refused(e.to_string()))
}

/// What becomes of the log lines inside of spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Events {
    /// They are exported with their span.
    Kept,
    /// Nobody will see them: not even made.
    LeftOut,
}

pub(crate) fn layer<S>(provider: &SdkTracerProvider, events: Events) -> impl Layer<S> + use<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(SCOPE))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(filter_fn(move |metadata| {
            is_ours(metadata) && (events == Events::Kept || metadata.is_span())
        }))
}

/// Spans of libraries stay out, among them those of the exporter's own HTTP client, which would
/// never end to report each other.
fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("hydrant") && *metadata.level() <= tracing::Level::DEBUG
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_is_no_url_is_refused_by_name() {
        for bad in ["localhost:4318", "grpc://x", "", "http://"] {
            let error = provider("test", Some(bad)).unwrap_err();
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
    }
}
