//! Programs that check what is in `deploy/`. `cargo xtask setup` installs what it can; where one is
//! missing the test says that it did not run, and why.

use hydrant_testkit::{Finished, Process, binaries::workspace_root};
use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    time::Duration,
};

/// Longest run of a tool.
const LIMIT: Duration = Duration::from_secs(120);

/// The directory `deploy/` and what is below it.
pub fn deploy(path: &str) -> PathBuf {
    workspace_root().join("deploy").join(path)
}

/// A program from `.tools` or the system; says on standard error that `what` is not checked when
/// it is nowhere.
pub fn tool(name: &str, what: &str) -> Option<PathBuf> {
    let tools = workspace_root().join(".tools/venv/bin");
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).chain([tools, "/usr/sbin".into()]);
    let found = places.map(|place| place.join(name)).find(|file| file.is_file());
    if found.is_none() {
        eprintln!("SKIPPED: {what}: `{name}` is not installed (cargo xtask setup)");
    }
    found
}

/// Python with the packages of `.tools/venv`; `None` when `module` is not there.
pub async fn python(module: &str, what: &str) -> Option<PathBuf> {
    let python = tool("python", what)?;
    let import = format!("import {module}");
    let there = run(&python, ["-c", &import]).await.status.success();
    if !there {
        eprintln!("SKIPPED: {what}: Python has no `{module}` (cargo xtask setup)");
    }
    there.then_some(python)
}

/// Runs a tool to its end in the root of the workspace.
pub async fn run(program: &Path, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Finished {
    let directory = tempfile::tempdir().expect("the temporary directory is writable");
    run_in(directory.path(), program, args).await
}

/// Runs a tool to its end in a directory.
pub async fn run_in(
    directory: &Path,
    program: &Path,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Finished {
    let name = program.file_name().expect("a program has a name").to_string_lossy().into_owned();
    let mut process = Process::new(&name, program, directory);
    process.args(args);
    process.run(LIMIT).await
}
