//! Chores of the workspace: `cargo xtask up|test`.

fn main() {}
