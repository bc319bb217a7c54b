//! JSON as literals of published types: TypeScript refuses what is missing, misspelt or mistyped.

use crate::tools::{run_in, tool};
use hydrant_testkit::{Finished, binaries::workspace_root};
use std::fs;

/// What TypeScript says of a source that uses packages of `.tools/node_modules`; `None` where they
/// are not installed.
pub async fn compiled(source: &str, packages: &[&str], what: &str) -> Option<Finished> {
    let node = tool("node", what)?;
    let modules = workspace_root().join(".tools/node_modules");
    let compiler = modules.join("typescript/bin/tsc");
    let mut needed = packages.iter().map(|package| modules.join(package).join("package.json"));
    if !compiler.is_file() || !needed.all(|package| package.is_file()) {
        eprintln!("SKIPPED: {what}: not all of it is in .tools/node_modules (cargo xtask setup)");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(&modules, directory.path().join("node_modules")).unwrap();
    fs::write(directory.path().join("objects.ts"), source).unwrap();
    let mut args = vec![compiler.to_string_lossy().into_owned()];
    args.extend(
        "--noEmit --strict --skipLibCheck --module nodenext --target es2022 objects.ts"
            .split(' ')
            .map(str::to_owned),
    );
    Some(run_in(directory.path(), &node, args).await)
}
