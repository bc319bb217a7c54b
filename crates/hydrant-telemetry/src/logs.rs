//! Logs: text or JSON lines on standard error, each with the id of the trace it belongs to.

use crate::TelemetryError;
use opentelemetry::{Context, trace::TraceContextExt};
use std::{fmt, str::FromStr};
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::LevelFilter,
    fmt::{
        FmtContext, FormatEvent, FormatFields, MakeWriter,
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
    let quiet = if quietens_nats(directives) { ",async_nats=warn" } else { "" };
    EnvFilter::try_new(format!("{directives}{quiet}"))
        .map_err(|source| TelemetryError::Filter { filter: directives.to_owned(), source })
}

/// Whether the NATS client is to be kept from telling of each attempt to reconnect, which the bus
/// sums up: unless the filter speaks of the client, or asks for no more than warnings anyway.
fn quietens_nats(directives: &str) -> bool {
    let everything = directives.split(',').filter_map(|part| part.trim().parse().ok()).next_back();
    !directives.contains("async_nats") && everything > Some(LevelFilter::WARN)
}

/// Writes lines in `format` to `writer`.
pub(crate) fn layer<S, W>(format: LogFormat, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // Told to the layer as well: it writes the fields of spans, and would colour them.
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false);
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
    use crate::{propagation, traces};
    use std::{
        io::{self, Write},
        sync::{Arc, Mutex},
    };
    use tracing_subscriber::layer::SubscriberExt;

    /// What was written, shared with the layer that writes.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Written {
        fn lines(&self) -> Vec<String> {
            let bytes = self.0.lock().unwrap().clone();
            String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
        }
    }

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Lines logged inside and outside a span, and the trace id inside.
    fn logged(format: LogFormat) -> (Vec<String>, String) {
        let written = Written::default();
        let provider = traces::provider("test", None).unwrap();
        let writer = written.clone();
        let subscriber = tracing_subscriber::registry()
            .with(traces::layer(&provider, traces::Events::LeftOut))
            .with(layer(format, move || writer.clone()));
        let trace_id = tracing::subscriber::with_default(subscriber, || {
            let id = tracing::info_span!("pull", upstream = "lab").in_scope(|| {
                tracing::info!(size_bytes = 7, "inside");
                propagation::current_trace_id().expect("a span has a trace")
            });
            tracing::info!("outside");
            id
        });
        (written.lines(), trace_id)
    }

    #[test]
    fn text_lines_end_with_the_trace_they_belong_to() {
        let (lines, id) = logged(LogFormat::Text);
        assert_eq!(lines.len(), 2);
        assert!(lines[0].contains("inside") && lines[0].contains("size_bytes=7"), "{lines:?}");
        assert!(lines[0].ends_with(&format!(" trace_id={id}")), "{lines:?}");
        assert!(!lines[1].contains("trace_id"), "{lines:?}");
    }

    #[test]
    fn text_lines_hold_no_escapes() {
        let (lines, _) = logged(LogFormat::Text);
        assert!(lines[0].contains("pull{upstream=\"lab\"}"), "{lines:?}");
        assert!(!lines.concat().contains('\u{1b}'), "{lines:?}");
    }

    #[test]
    fn json_lines_are_objects_with_the_trace_they_belong_to() {
        let (lines, id) = logged(LogFormat::Json);
        let inside: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(inside["trace_id"], id);
        assert_eq!((&inside["message"], &inside["size_bytes"]), (&"inside".into(), &7.into()));
        assert_eq!(inside["span"]["upstream"], "lab");
        let outside: serde_json::Value = serde_json::from_str(&lines[1]).unwrap();
        assert_eq!(outside["trace_id"], serde_json::Value::Null);
    }

    #[test]
    fn a_wrong_filter_is_refused_by_name() {
        let error = filter("hydrant=loud").unwrap_err();
        assert!(error.to_string().contains("hydrant=loud"), "{error}");
        assert!(filter("info,hydrant_bus=debug").is_ok());
    }

    #[test]
    fn the_nats_client_is_quiet_unless_asked_for() {
        for (directives, quiet) in [
            ("info", true),
            ("warn,debug", true),
            ("hydrant_bus=trace, info", true),
            ("info,async_nats=debug", false),
            ("async_nats::connector=trace,info", false),
            ("warn", false),
            ("error,hydrant_bus=debug", false),
            ("hydrant_bus=debug", false),
            ("off", false),
        ] {
            let filter = filter(directives).unwrap().to_string();
            let added = filter.contains("async_nats=warn");
            assert_eq!(added, quiet, "{directives}: {filter}");
        }
    }

    #[test]
    fn formats_parse_as_they_print() {
        for format in [LogFormat::Text, LogFormat::Json] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert!("xml".parse::<LogFormat>().is_err());
    }
}
