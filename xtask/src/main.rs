//! Chores of the workspace: `cargo xtask setup|test|lint|up|bench`.

mod bench;
mod run;
mod setup;
mod test;
mod up;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of the workspace")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Installs what the tests need: servers and checkers below .tools/, packages of the system,
    /// cargo-nextest
    Setup,
    /// Does the set-up and runs all tests
    Test {
        /// Handed to `cargo nextest run`, such as a filter
        #[arg(last = true)]
        nextest: Vec<String>,
    },
    /// Checks formatting, clippy, and the dependency tree where cargo-deny is installed
    Lint,
    /// Starts hydrant with rules for the well-known public registries
    Up(up::Up),
    /// Measures hydrant beside its peers, optimised; the report is a page
    Bench {
        /// Handed to hydrant-loadtest, such as `cold herd --effort quick`; --help tells them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        loadtest: Vec<String>,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().chore {
        Chore::Setup => setup::everything(),
        Chore::Test { nextest } => test::run(&nextest),
        Chore::Lint => lint(),
        Chore::Up(up) => up.run(),
        Chore::Bench { loadtest } => bench::run(&loadtest),
    }
}

fn lint() -> anyhow::Result<()> {
    run::step("cargo fmt --check", run::cargo(["fmt", "--all", "--check"]))?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    run::step("cargo clippy", run::cargo(clippy))?;
    if run::succeeds("cargo", &["deny", "--version"]) {
        run::step("cargo deny check", run::cargo(["deny", "check"]))?;
    } else {
        run::say("cargo-deny is not installed; licences and advisories were not checked");
    }
    Ok(())
}
