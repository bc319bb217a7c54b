//! The command-line client: everything it does goes through the HTTP API.

mod api;
mod apply;
mod dead_letters;
mod events;
mod failure;
mod fields;
mod health;
mod hydrate;
mod output;
mod progress;
mod resources;
mod status;
mod tags;
mod upstream;

use crate::cli::ClientCommand;
use hydrant_rules::Kind;
use std::process::ExitCode;

/// Runs one command and says how it ended.
pub async fn run(command: ClientCommand) -> ExitCode {
    let ran = match command {
        ClientCommand::Apply(flags) => apply::run(flags).await,
        ClientCommand::Rule(flags) => resources::run(Kind::Rule, flags.action).await,
        ClientCommand::Upstream(flags) => upstream::run(flags.action).await,
        ClientCommand::Credential(flags) => resources::run(Kind::Credential, flags.action).await,
        ClientCommand::Webhook(flags) => resources::run(Kind::Webhook, flags.action).await,
        ClientCommand::Hydrate(flags) => Box::pin(hydrate::run(flags)).await,
        ClientCommand::Status(flags) => status::run(flags).await,
        ClientCommand::Tag(flags) => Box::pin(tags::run(flags.action)).await,
        ClientCommand::DeadLetter(flags) => dead_letters::run(flags.action).await,
        ClientCommand::Events(flags) => events::run(flags).await,
        ClientCommand::Health(flags) => health::run(flags).await,
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            failure.exit_code()
        }
    }
}
