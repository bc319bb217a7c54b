//! The one binary: the four roles, `up`, and the command-line client.

fn main() {}
