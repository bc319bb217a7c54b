//! Why a process does not start, told by what to change.

use crate::settings::SettingsProblems;
use hydrant_bus::BusError;
use hydrant_rules::Problems;
use hydrant_store::StoreError;
use std::{io, net::SocketAddr, path::PathBuf};

/// A failed start. Every one names the flag or the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error(transparent)]
    Settings(#[from] SettingsProblems),
    #[error("cannot read the configuration {}: {source}; check --config", .file.display())]
    ConfigFile { file: PathBuf, source: io::Error },
    #[error("the configuration {} is not valid, so nothing was started:\n{problems}", .file.display())]
    Config { file: PathBuf, problems: Problems },
    #[error("cannot listen on {address} ({flag}): {source}{}", bind_remedy(.source, .flag))]
    Bind { flag: &'static str, address: SocketAddr, source: io::Error },
    #[error("cannot use the data directory {}: {source}; give another with --data", .dir.display())]
    Data { dir: PathBuf, source: io::Error },
    #[error("cannot use the store {url}: {source}; check --store and the AWS_* variables")]
    Store { url: String, source: Box<StoreError> },
    #[error("cannot use nats at {url}: {source}; check --nats-url")]
    Bus { url: String, source: Box<BusError> },
}

fn bind_remedy(error: &io::Error, flag: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("; stop the process that uses it, or give another address with {flag}")
        }
        io::ErrorKind::PermissionDenied => {
            format!("; ports below 1024 need privileges, give a higher one with {flag}")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("; this machine does not have that address, give another with {flag}")
        }
        _ => String::new(),
    }
}
