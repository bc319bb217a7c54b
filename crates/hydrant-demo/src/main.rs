//! `cargo xtask up --demo`: what hydrant is for, shown on this machine alone.
//!
//! An upstream of our own, the real `hydrant up`, a cold pull, the hydration, the webhook, the
//! upstream cut off, a warm pull. Ends with 0 only if all of it was as it should be.

mod demo;
mod hydrant;
mod judge;
mod pull;
mod report;
mod stage;
mod upstream;
mod webhook;

use clap::Parser;
use demo::Demo;
use stage::Stage;
use std::{path::PathBuf, process::ExitCode};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What shells answer for a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Pulls an image through hydrant, cold and warm, without internet, and judges what happened.
#[derive(Debug, Parser)]
#[command(name = "hydrant-demo")]
struct Arguments {
    /// The built hydrant
    #[arg(long, value_name = "PATH")]
    hydrant: PathBuf,
    /// The nats-server that hydrant starts, 2.11 or later
    #[arg(long, value_name = "PATH")]
    nats_server: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let stage = Stage::new();
    match show(&stage, arguments).await {
        Ok(code) => code,
        Err(error) => {
            stage.complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs the demo until its end or a signal; either way nothing is left behind.
async fn show(stage: &Stage, arguments: Arguments) -> anyhow::Result<ExitCode> {
    let mut stop = Interruption::listen()?;
    let mut demo = Demo::prepare(arguments.hydrant, arguments.nats_server)?;
    let shown = tokio::select! {
        shown = demo.run(stage) => Some(shown),
        () = stop.heard() => None,
    };
    let code = match shown {
        Some(Ok(true)) => ExitCode::SUCCESS,
        Some(Ok(false)) => ExitCode::FAILURE,
        Some(Err(error)) => {
            stage.complain(&format!("{error:#}"));
            stage.quote("hydrant's last words", &demo.last_words());
            ExitCode::FAILURE
        }
        None => {
            stage.say("");
            stage.complain("interrupted");
            ExitCode::from(INTERRUPTED)
        }
    };
    demo.end().await;
    Ok(code)
}

/// The signals that end a program by the wish of its user.
struct Interruption {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Interruption {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn heard(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}
