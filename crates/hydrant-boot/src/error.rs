//! Why a process does not start, told by what to change. Each message tells its cause itself, so
//! the cause is no `source` that a printer of error chains would repeat.

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
    #[error("cannot read the configuration {}: {cause}; check --config", .file.display())]
    ConfigFile { file: PathBuf, cause: io::Error },
    #[error("the configuration {} is not valid, so nothing was started:\n{problems}", .file.display())]
    Config { file: PathBuf, problems: Problems },
    #[error("cannot listen on {address} ({flag}): {cause}{}", bind_remedy(.cause, .flag))]
    Bind { flag: &'static str, address: SocketAddr, cause: io::Error },
    #[error("cannot use the data directory {}: {cause}; give another with --data", .dir.display())]
    Data { dir: PathBuf, cause: io::Error },
    #[error("cannot use the store {url}: {cause}; check --store and the AWS_* variables")]
    Store { url: String, cause: Box<StoreError> },
    #[error("cannot use nats at {url}: {cause}; check --nats-url")]
    Bus { url: String, cause: Box<BusError> },
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
