//! The one binary: the four roles, `up`, and the command-line client.

mod banner;
mod cli;
mod client;
mod client_config;
mod embedded;
mod memory;
mod peering;
mod process;
mod standing;

use clap::Parser as _;
use cli::{Cli, Command};
use hydrant_boot::Role;
use std::process::ExitCode;

fn main() -> ExitCode {
    memory::tune();
    hydrant_boot::install_tls_provider();
    let command = Cli::parse().command;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(run(command)),
        Err(error) => {
            eprintln!("error: cannot start threads: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> ExitCode {
    let ran = match command {
        Command::Up(flags) => process::up(flags).await,
        Command::Frontend(flags) => process::role(Role::Frontend, flags).await,
        Command::Importer(flags) => process::role(Role::Importer, flags).await,
        Command::Notifier(flags) => process::role(Role::Notifier, flags).await,
        Command::Control(flags) => process::role(Role::Control, flags).await,
        Command::ClientConfig(flags) => return client_config::run(&flags),
        Command::Client(command) => return client::run(command).await,
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
