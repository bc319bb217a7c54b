//! `cargo xtask up`: hydrant with everything it needs, from a fresh checkout.

use crate::{
    run::{cargo, command, say, step},
    setup,
};
use anyhow::{Context, Result};
use std::{env, os::unix::process::CommandExt, path::PathBuf};

const CONFIG: &str = "deploy/config/public-registries.toml";

#[derive(clap::Args)]
pub struct Up {
    /// Builds without optimisation, which is quicker to build and slower to run
    #[arg(long)]
    debug: bool,
    /// Handed to `hydrant up`, such as `--listen 0.0.0.0:5000`; `--config` replaces the example
    #[arg(last = true)]
    hydrant: Vec<String>,
}

impl Up {
    pub fn run(self) -> Result<()> {
        let nats_server = setup::nats_server()?;
        let mut hydrant = command(self.build()?);
        hydrant.arg("up").arg("--nats-server").arg(nats_server);
        if !self.hydrant.iter().any(|arg| arg == "--config" || arg.starts_with("--config=")) {
            hydrant.args(["--config", CONFIG]);
        }
        hydrant.args(&self.hydrant);
        say("hydrant up");
        // Returns only when hydrant could not be started.
        Err(hydrant.exec()).context("start hydrant")
    }

    fn build(&self) -> Result<PathBuf> {
        let mut build = cargo(["build", "--bin", "hydrant"]);
        let profile = if self.debug { "debug" } else { "release" };
        if !self.debug {
            build.arg("--release");
        }
        step(&format!("build hydrant ({profile})"), build)?;
        let xtask = env::current_exe().context("find the target directory")?;
        // xtask lies in <target>/debug.
        let target = xtask.ancestors().nth(2).context("find the target directory")?;
        Ok(target.join(profile).join("hydrant"))
    }
}
