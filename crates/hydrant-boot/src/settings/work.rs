//! How importers work through the queue.

use clap::Args;
use hydrant_rules::Span;

/// Settings of `up` and `importer`.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Importing")]
pub struct WorkSettings {
    /// Images of one upstream that one process makes durable at once, 1 to 256
    #[arg(
        long,
        value_name = "COUNT",
        env = "HYDRANT_JOBS",
        hide_env_values = true,
        default_value_t = 8,
        value_parser = clap::value_parser!(u16).range(1..=256)
    )]
    pub jobs: u16,

    /// How long a worker may be silent before its job goes to another, such as `30s`
    ///
    /// A living worker gives a sign of life three times in this span.
    #[arg(
        long,
        value_name = "DURATION",
        env = "HYDRANT_ACK_WAIT",
        hide_env_values = true,
        default_value = "30s"
    )]
    pub ack_wait: Span,

    /// How often what was missed and is not hydrated is looked for
    #[arg(
        long,
        value_name = "DURATION",
        env = "HYDRANT_SWEEP_EVERY",
        hide_env_values = true,
        default_value = "1m"
    )]
    pub sweep_every: Span,

    /// How old a miss must be to be put on the queue again
    #[arg(
        long,
        value_name = "DURATION",
        env = "HYDRANT_SWEEP_AFTER",
        hide_env_values = true,
        default_value = "2m"
    )]
    pub sweep_after: Span,
}
