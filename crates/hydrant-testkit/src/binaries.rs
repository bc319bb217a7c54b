//! Where the servers and tools that tests start are found.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The path of the program `name`: from the environment variable `HYDRANT_<NAME>` (upper case,
/// dashes as underscores), from `PATH`, or from the workspace's `.tools/venv/bin`.
///
/// # Panics
/// When it is nowhere; the message says how to install it.
pub fn find(name: &str) -> PathBuf {
    let variable = format!("HYDRANT_{}", name.to_uppercase().replace('-', "_"));
    if let Some(path) = env::var_os(&variable) {
        return path.into();
    }
    on_path(name).or_else(|| in_tools(name)).unwrap_or_else(|| {
        panic!("`{name}` is neither on PATH nor in .tools/venv/bin: run `cargo xtask setup`, or set {variable}")
    })
}

/// The `hydrant` binary under test: `HYDRANT_BIN`, or the one beside the running test executable.
///
/// # Panics
/// When it was not built; the message says how to build it.
pub fn hydrant() -> PathBuf {
    if let Some(path) = env::var_os("HYDRANT_BIN") {
        return path.into();
    }
    // Tests lie in target/<profile>/deps.
    let test = env::current_exe().expect("the running executable has a path");
    let built = test.ancestors().nth(2).map(|profile| profile.join("hydrant"));
    built.filter(|file| file.is_file()).unwrap_or_else(|| {
        panic!("`hydrant` is not built: run `cargo build --bin hydrant`, or set HYDRANT_BIN")
    })
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

fn in_tools(name: &str) -> Option<PathBuf> {
    Some(workspace_root().join(".tools/venv/bin").join(name)).filter(|file| file.is_file())
}

/// The root of the workspace this crate was built from.
pub fn workspace_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("the crate lies in crates/hydrant-testkit").to_owned()
}
