//! Start and stop of a process: settings, the shared parts, signals, drain, the admin port.
//!
//! A process is started in this order: [`install_tls_provider`], [`Settings::check`],
//! [`Context::start`], [`bind`], the roles' `run`, and it is ended by [`stop_on_signals`] and
//! [`drain`]. What a role does is not known here.

pub mod admin;
mod context;
mod edit;
mod error;
mod feed;
mod keeper;
mod last_known_good;
pub mod merge;
mod readiness;
pub mod retry;
mod secrets;
pub mod serve;
mod settings;
mod shutdown;
mod token;

pub use context::{Context, Needs};
pub use edit::{EditError, Edited, Editor};
pub use error::BootError;
pub use feed::ResourceFeed;
pub use merge::{Action, Change};
pub use readiness::{Check, Importance, Readiness};
pub use retry::Schedule;
pub use settings::{
    BusSettings, ByteSize, LogSettings, Role, Settings, SettingsProblem, SettingsProblems,
    WorkSettings,
};
pub use shutdown::{Drained, drain, stop_on_signals};
pub use token::AdminToken;

use std::net::SocketAddr;
use tokio::net::TcpListener;

/// Makes aws-lc-rs the TLS provider of this process. To be called first thing in `main`: with two
/// providers compiled in and none chosen, rustls panics at its first connection.
pub fn install_tls_provider() {
    // An error only says that one was installed before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Binds the address that `flag` names; the error names the flag and the remedy.
pub async fn bind(flag: &'static str, address: SocketAddr) -> Result<TcpListener, BootError> {
    TcpListener::bind(address).await.map_err(|cause| BootError::Bind { flag, address, cause })
}
