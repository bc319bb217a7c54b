//! `cargo xtask test`: everything that can be tested here, on real servers.

use crate::{
    run::{cargo, root, say, step},
    setup,
};
use anyhow::{Context, Result};
use std::{env, fs, path::Path};

/// Builds once, with the features the tests use, so that nextest finds everything built.
pub fn run(nextest: &[String]) -> Result<()> {
    setup::everything()?;
    step("build", cargo(["build", "--workspace", "--bins", "--tests"]))?;
    if root_has_doc_tests()? {
        step("doc tests", cargo(["test", "--workspace", "--doc", "--quiet"]))?;
    }
    let xtask = env::current_exe().context("find the target directory")?;
    let mut tests = cargo(["nextest", "run", "--workspace"]);
    tests.args(nextest);
    tests.env("HYDRANT_BIN", xtask.with_file_name("hydrant"));
    tests.env("PATH", setup::path_with_tools()?);
    tests.stdin(std::process::Stdio::null());
    say("tests");
    let status = tests.status().context("start cargo nextest")?;
    // nextest's summary stays the last line.
    std::process::exit(status.code().unwrap_or(1));
}

/// Whether a library has an example in its documentation that rustdoc would run. Looking is quick;
/// `cargo test --doc` asks rustdoc once for every library.
fn root_has_doc_tests() -> Result<bool> {
    ["proto", "crates", "services"]
        .iter()
        .try_fold(false, |found, room| Ok(found || has_doc_tests(&root().join(room))?))
}

fn has_doc_tests(path: &Path) -> Result<bool> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            if has_doc_tests(&entry?.path())? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    let is_source = path.extension().is_some_and(|extension| extension == "rs");
    Ok(is_source && has_example(&fs::read_to_string(path)?))
}

/// Whether a doc comment opens a code block that rustdoc takes for Rust.
fn has_example(source: &str) -> bool {
    const RUST: [&str; 5] = ["", "rust", "no_run", "should_panic", "compile_fail"];
    let comments = source.lines().filter_map(|line| {
        let line = line.trim_start();
        line.strip_prefix("///").or_else(|| line.strip_prefix("//!"))
    });
    let fences = comments.filter_map(|line| line.trim_start().strip_prefix("```"));
    fences.step_by(2).any(|language| RUST.contains(&language.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rust_in_doc_comments_is_an_example() {
        for (source, expected) in [
            ("/// ```\n/// f();\n/// ```", true),
            ("//! ```text\n//! a\n//! ```\n", false),
            ("//! ```text\n//! a\n//! ```\n    /// ```no_run\n", true),
            ("// ```\n", false),
        ] {
            assert_eq!(has_example(source), expected, "{source}");
        }
    }
}
