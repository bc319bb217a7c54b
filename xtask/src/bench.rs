//! `cargo xtask bench`: hydrant and its peers, measured with everything optimised.

use crate::{
    run::{cargo, command, step},
    setup,
};
use anyhow::{Context, Result};
use std::{env, os::unix::process::CommandExt};

/// Builds, and becomes the load test, which reports what it finds.
pub fn run(arguments: &[String]) -> Result<()> {
    setup::for_bench()?;
    let build = ["build", "--release", "--bins", "-p", "hydrant", "-p", "hydrant-loadtest"];
    step("build hydrant and hydrant-loadtest (release)", cargo(build))?;
    let xtask = env::current_exe().context("find the target directory")?;
    // xtask lies in <target>/debug.
    let target = xtask.ancestors().nth(2).context("find the target directory")?;
    let programs = target.join("release");
    let mut loadtest = command(programs.join("hydrant-loadtest"));
    loadtest.args(arguments);
    loadtest.env("HYDRANT_BIN", programs.join("hydrant")).env("PATH", setup::path_with_tools()?);
    // Returns only when the program could not be started.
    Err(loadtest.exec()).context("start hydrant-loadtest")
}
