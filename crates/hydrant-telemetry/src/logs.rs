//! Logs: text or JSON lines on standard error, each with the id of the trace it belongs to.

use crate::TelemetryError;
use opentelemetry::{Context, trace::TraceContextExt};
use std::{fmt, str::FromStr};
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{DefaultFields, Format, Full, JsonFields, Writer},
    },
    registry::LookupSpan,
};

/// How a log line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("log format must be `text` or `json`".to_owned()),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

pub(crate) fn filter(directives: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(directives)
        .map_err(|source| TelemetryError::Filter { filter: directives.to_owned(), source })
}

pub(crate) fn layer<S>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Text => {
            Box::new(layer.fmt_fields(DefaultFields::new()).event_format(Text::new()))
        }
        LogFormat::Json => Box::new(layer.fmt_fields(JsonFields::new()).event_format(Json)),
    }
}

/// The id of the trace the running code belongs to, as 32 hex digits.
fn trace_id() -> Option<String> {
    let context = Context::current();
    let span = context.span().span_context().clone();
    span.is_valid().then(|| span.trace_id().to_string())
}

/// The usual text line, followed by the trace id.
struct Text(Format<Full>);

impl Text {
    fn new() -> Self {
        Self(Format::default().with_ansi(false))
    }
}

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        match trace_id() {
            Some(id) => writeln!(writer, "{} trace_id={id}", line.trim_end_matches('\n')),
            None => writer.write_str(&line),
        }
    }
}

/// The usual JSON line, with the trace id as its first key.
struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        Format::default().json().flatten_event(true).format_event(
            context,
            Writer::new(&mut line),
            event,
        )?;
        match (trace_id(), line.strip_prefix('{')) {
            (Some(id), Some(rest)) => write!(writer, "{{\"trace_id\":\"{id}\",{rest}"),
            _ => writer.write_str(&line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_filter_is_refused_by_name() {
        let error = filter("hydrant=loud").unwrap_err();
        assert!(error.to_string().contains("hydrant=loud"), "{error}");
        assert!(filter("info,hydrant_bus=debug").is_ok());
    }

    #[test]
    fn formats_parse_as_they_print() {
        for format in [LogFormat::Text, LogFormat::Json] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert!("xml".parse::<LogFormat>().is_err());
    }
}
