//! `cargo xtask up`: hydrant with everything it needs, from a fresh checkout; with `--demo`, shown
//! by a pull that needs no internet.

use crate::{
    run::{cargo, command, say, step},
    setup,
};
use anyhow::{Context, Result};
use std::{
    env,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

const CONFIG: &str = "deploy/config/public-registries.toml";

#[derive(clap::Args)]
pub struct Up {
    /// Shows a cold pull, the hydration, the webhook, and a warm pull with the upstream cut off;
    /// all of it on this machine
    #[arg(long, conflicts_with = "hydrant")]
    demo: bool,
    /// Builds without optimisation, which is quicker to build and slower to run; --demo does so
    #[arg(long)]
    debug: bool,
    /// Builds the demo with optimisation too
    #[arg(long, requires = "demo", conflicts_with = "debug")]
    release: bool,
    /// Handed to `hydrant up`, such as `--listen 0.0.0.0:5000`; `--config` replaces the example
    #[arg(last = true)]
    hydrant: Vec<String>,
}

impl Up {
    pub fn run(self) -> Result<()> {
        let nats_server = setup::nats_server()?;
        let mut program = if self.demo { self.demo(&nats_server)? } else { self.up(&nats_server)? };
        // Returns only when the program could not be started.
        Err(program.exec()).with_context(|| format!("start {:?}", program.get_program()))
    }

    fn up(&self, nats_server: &Path) -> Result<Command> {
        let programs = self.build(&["hydrant"])?;
        let mut hydrant = command(programs.join("hydrant"));
        hydrant.arg("up").arg("--nats-server").arg(nats_server);
        if !self.hydrant.iter().any(|arg| arg == "--config" || arg.starts_with("--config=")) {
            hydrant.args(["--config", CONFIG]);
        }
        hydrant.args(&self.hydrant);
        say("hydrant up");
        Ok(hydrant)
    }

    fn demo(&self, nats_server: &Path) -> Result<Command> {
        let programs = self.build(&["hydrant", "hydrant-demo"])?;
        let mut demo = command(programs.join("hydrant-demo"));
        demo.arg("--hydrant").arg(programs.join("hydrant"));
        demo.arg("--nats-server").arg(nats_server);
        Ok(demo)
    }

    /// Builds packages whose program has their name; returns the directory of the programs.
    fn build(&self, packages: &[&str]) -> Result<PathBuf> {
        let optimised = self.release || !(self.debug || self.demo);
        let profile = if optimised { "release" } else { "debug" };
        let mut build = cargo(["build", "--bins"]);
        build.args(packages.iter().flat_map(|package| ["--package", package]));
        if optimised {
            build.arg("--release");
        }
        step(&format!("build {} ({profile})", packages.join(" and ")), build)?;
        let xtask = env::current_exe().context("find the target directory")?;
        // xtask lies in <target>/debug.
        let target = xtask.ancestors().nth(2).context("find the target directory")?;
        Ok(target.join(profile))
    }
}
