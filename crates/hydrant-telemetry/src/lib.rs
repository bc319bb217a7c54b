//! Logs, metrics and traces: every metric name, the exporters, and trace context on the wire.
