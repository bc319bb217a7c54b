//! `client-config`: the files that send a node's pulls through hydrant, and to the registry itself
//! when hydrant is away. Nothing is asked of a running hydrant, so that nodes need not reach its API.

mod buildkit;
mod containerd;
mod docker;
mod mirror;
mod output;
mod registries;

pub use mirror::{Mirror, Upstream};
pub use output::Document;

use crate::cli::{Client, ClientConfig};
use std::process::ExitCode;

/// Why the files cannot be told or written.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// What was asked for cannot be.
    #[error("{0}")]
    Usage(String),
    #[error("{file} is there and was not written by hydrant; {remedy}")]
    Foreign { file: String, remedy: &'static str },
    #[error("cannot {what} {file}: {cause}")]
    File { what: &'static str, file: String, cause: std::io::Error },
}

/// What one client needs.
#[derive(Debug)]
pub struct Plan {
    pub documents: Vec<Document>,
    /// What is left to do, for people.
    pub notes: Vec<String>,
}

pub fn run(flags: &ClientConfig) -> ExitCode {
    match plan(flags).and_then(|plan| output::hand_over(&plan, flags)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(if matches!(error, ConfigError::Usage(_)) { 2 } else { 1 })
        }
    }
}

fn plan(flags: &ClientConfig) -> Result<Plan, ConfigError> {
    let mirror = Mirror::new(flags)?;
    match flags.client {
        Client::Containerd => Ok(containerd::plan(&mirror)),
        Client::Docker => docker::plan(&mirror, &flags.root),
        Client::Crio => registries::plan(&mirror, "CRI-O: systemctl reload crio"),
        Client::Podman => registries::plan(&mirror, "podman, skopeo and buildah read it at once"),
        Client::Buildkit => Ok(buildkit::plan(&mirror)),
    }
}
