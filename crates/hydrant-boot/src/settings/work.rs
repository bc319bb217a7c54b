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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::time::Duration;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        work: WorkSettings,
    }

    /// A lost miss has to be hydrated or given up 15 minutes after all is well again.
    #[test]
    fn a_lost_miss_is_looked_for_within_five_minutes() {
        let work = Line::parse_from(["hydrant"]).work;
        // A sweep comes late by a fifth of its period at most.
        let longest = work.sweep_after.0 + work.sweep_every.0.mul_f64(1.2);
        assert!(longest <= Duration::from_secs(5 * 60), "{longest:?}");
    }
}
