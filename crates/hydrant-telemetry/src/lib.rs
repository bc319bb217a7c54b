//! Logs, metrics and traces: every metric name, the exporters, and trace context on the wire.
//!
//! No other crate knows OpenTelemetry: they use `tracing` for logs and spans, [`metrics()`] for
//! figures, [`propagation`] to carry a trace over a boundary and [`spans`] for what is asked of others.

mod logs;
pub mod metrics;
mod names;
pub mod propagation;
pub mod spans;
mod traces;

pub use logs::LogFormat;
pub use metrics::{Metrics, metrics, metrics_text};

use opentelemetry_sdk::trace::SdkTracerProvider;
use std::time::Duration;
use traces::Events;
use tracing_subscriber::{Layer, layer::SubscriberExt, util::SubscriberInitExt};

/// Longest wait for a collector when spans are flushed.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// What a process says about itself, and to whom.
#[derive(Clone, Debug)]
pub struct TelemetryConfig {
    /// `service.name` of the traces, such as `hydrant-frontend`.
    pub service_name: String,
    pub log_format: LogFormat,
    /// Directives of `tracing_subscriber::EnvFilter`, such as `info,hydrant_importer=debug`.
    pub log_filter: String,
    /// Base URL of an OTLP collector (`http/protobuf`); `/v1/traces` is added. Without it spans
    /// are not exported, but ids still cross the bus and stand in the logs.
    pub otlp_endpoint: Option<String>,
}

/// Why telemetry cannot start. Each is a mistake in the configuration or in `main`.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("log filter {filter:?} is not valid: {source}")]
    Filter { filter: String, source: tracing_subscriber::filter::ParseError },
    #[error("OTLP endpoint {endpoint:?} is not usable: {reason}")]
    Endpoint { endpoint: String, reason: String },
    #[error("logs and traces were already started in this process")]
    AlreadyStarted,
}

/// Keeps the exporters alive. Call [`Telemetry::shutdown`] as the last thing of `main`.
#[must_use = "dropping it stops the export of spans"]
#[derive(Debug)]
pub struct Telemetry {
    tracer: SdkTracerProvider,
}

/// Starts logs to standard error and, when an endpoint is given, the export of spans. Once per
/// process; metrics need no start.
pub fn init(config: &TelemetryConfig) -> Result<Telemetry, TelemetryError> {
    let tracer = traces::provider(&config.service_name, config.otlp_endpoint.as_deref())?;
    let log_filter = logs::filter(&config.log_filter)?;
    let events = match config.otlp_endpoint {
        Some(_) => {
            spans::are_exported();
            Events::Kept
        }
        None => Events::LeftOut,
    };
    tracing_subscriber::registry()
        .with(traces::layer(&tracer, events))
        .with(logs::layer(config.log_format, std::io::stderr).with_filter(log_filter))
        .try_init()
        .map_err(|_| TelemetryError::AlreadyStarted)?;
    Ok(Telemetry { tracer })
}

impl Telemetry {
    /// The metrics in the Prometheus text format.
    pub fn metrics_text(&self) -> String {
        metrics_text()
    }

    /// Sends the spans that have ended. Blocks for up to 5 s: call it from `spawn_blocking` or
    /// when nothing else is left to run.
    pub fn flush(&self) {
        if let Err(error) = self.tracer.force_flush() {
            tracing::warn!(%error, "cannot flush spans");
        }
    }

    /// Flushes and stops the export. Blocks for up to 5 s, as [`Telemetry::flush`] does.
    pub fn shutdown(self) {
        if let Err(error) = self.tracer.shutdown_with_timeout(FLUSH_TIMEOUT) {
            tracing::warn!(%error, "cannot flush the last spans");
        }
    }
}
