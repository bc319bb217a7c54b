//! `hydrant-loadtest`: the judge of hydrant's speed. It starts what it needs, measures hydrant and
//! its peers in turn in one run, and reports ratios with their ranges.
//!
//! Times are told only here. What must hold whatever the speed is tested elsewhere; the `smoke`
//! scenario runs in the tests too, and asserts counts alone.

// Servers of the test kit report by panicking that they do not start; the rounds catch that.
mod arguments;
mod bars;
mod bench;
mod cluster;
mod contestant;
mod load;
mod memory;
mod metric;
mod progress;
mod pull;
mod raw;
mod report;
mod scenario;
mod spread;
mod stage;
mod stop;
mod timeline;
mod trials;
mod upstream;
mod usage;
mod wire;

use anyhow::Result;
use arguments::{Arguments, Command};
use clap::Parser;
use report::{Report, compare};
use std::process::ExitCode;

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let Arguments { command, options } = Arguments::parse();
    match command {
        None => bench::run(options).await,
        Some(Command::Upstream { listen }) => {
            upstream::program::run(listen).await?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Compare { before, after }) => {
            let (before, after) = (Report::read(&before)?, Report::read(&after)?);
            print!("{}", compare::text(&before, &after));
            Ok(ExitCode::SUCCESS)
        }
    }
}
