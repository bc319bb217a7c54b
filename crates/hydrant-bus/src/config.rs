//! Where the bus is and how to log in to it.

use crate::BusError;
use async_nats::{ConnectOptions, ServerAddr};
use std::{fmt, path::PathBuf, time::Duration};

/// Settings of one connection.
#[derive(Clone, Debug)]
pub struct BusConfig {
    /// One or more servers, separated by commas: `nats://host:4222` or `tls://host:4222`.
    pub url: String,
    pub credentials: Credentials,
    /// PEM file of the authorities to trust instead of the platform's.
    pub ca_file: Option<PathBuf>,
    /// What the server shows for this connection, such as `hydrant-importer`; also names us as
    /// the writer of KV values.
    pub client_name: String,
    /// Copies of each stream that is created, 1 or 3. Existing streams keep theirs.
    pub replicas: usize,
    /// How long a job may go without a sign of life before another worker gets it.
    pub ack_wait: Duration,
    /// Most jobs on the queue at once; more are answered with [`BusError::Full`].
    pub max_jobs: u64,
}

/// How we log in to NATS.
#[derive(Clone, Default)]
pub enum Credentials {
    /// None, or those in the URL.
    #[default]
    Url,
    UserPassword {
        user: String,
        password: String,
    },
    Token(String),
    /// A `.creds` file as `nsc` writes it.
    File(PathBuf),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Url => "Url",
            Self::UserPassword { .. } => "UserPassword(…)",
            Self::Token(_) => "Token(…)",
            Self::File(_) => "File(…)",
        })
    }
}

impl BusConfig {
    pub const DEFAULT_ACK_WAIT: Duration = Duration::from_secs(30);
    pub const DEFAULT_MAX_JOBS: u64 = 1_000_000;

    /// A configuration with the defaults for everything but address and name.
    pub fn new(url: impl Into<String>, client_name: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            credentials: Credentials::default(),
            ca_file: None,
            client_name: client_name.into(),
            replicas: 1,
            ack_wait: Self::DEFAULT_ACK_WAIT,
            max_jobs: Self::DEFAULT_MAX_JOBS,
        }
    }

    pub(crate) fn servers(&self) -> Result<Vec<ServerAddr>, BusError> {
        let parse = |url: &str| {
            let server = url.trim().parse::<ServerAddr>().map_err(|e| invalid(&e))?;
            match server.host() {
                "" => Err(invalid(&std::io::Error::other(format!("{url:?} names no host")))),
                _ => Ok(server),
            }
        };
        self.url.split(',').map(parse).collect()
    }

    /// Host and port of each server, for people: a URL may hold a login.
    pub(crate) fn server_names(&self) -> Result<String, BusError> {
        let names = self.servers()?;
        let names = names.iter().map(|server| format!("{}:{}", server.host(), server.port()));
        Ok(names.collect::<Vec<_>>().join(", "))
    }

    /// The user and password of the first server whose URL has them: the client sends one login to
    /// all servers, and does not read URLs for it.
    fn login_of_url(&self) -> Result<Option<(String, String)>, BusError> {
        let text =
            |part: &str| percent_encoding::percent_decode_str(part).decode_utf8_lossy().into();
        Ok(self.servers()?.iter().find_map(|server| {
            Some((text(server.username()?), text(server.password().unwrap_or_default())))
        }))
    }

    /// Options that connect in the background and never give up.
    pub(crate) async fn options(&self) -> Result<ConnectOptions, BusError> {
        let options = ConnectOptions::new()
            .name(&self.client_name)
            .retry_on_initial_connect()
            .max_reconnects(None)
            .ping_interval(PING_INTERVAL)
            .connection_timeout(CONNECT_TIMEOUT)
            .request_timeout(Some(REQUEST_TIMEOUT))
            .reconnect_delay_callback(reconnect_delay);
        let options = match &self.credentials {
            Credentials::Url => match self.login_of_url()? {
                Some((user, password)) => options.user_and_password(user, password),
                None => options,
            },
            Credentials::UserPassword { user, password } => {
                options.user_and_password(user.clone(), password.clone())
            }
            Credentials::Token(token) => options.token(token.clone()),
            Credentials::File(path) => {
                options.credentials_file(path).await.map_err(|e| invalid(&e))?
            }
        };
        Ok(match &self.ca_file {
            Some(path) => options.add_root_certificates(path.clone()),
            None => options,
        })
    }
}

/// A server that stops answering (frozen, or cut off without a reset) is noticed after two.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for one answer of the server.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// 50 ms doubled up to 2 s: a restarted server is found again quickly, a missing one not hammered.
fn reconnect_delay(attempts: usize) -> Duration {
    match u32::try_from(attempts).unwrap_or(u32::MAX) {
        0 | 1 => Duration::ZERO,
        n => Duration::from_millis(50 << (n - 2).min(6)).min(Duration::from_secs(2)),
    }
}

fn invalid(error: &std::io::Error) -> BusError {
    BusError::Refused { what: "read the nats settings", reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_stay_out_of_debug_output() {
        let mut config = BusConfig::new("nats://localhost", "test");
        config.credentials = Credentials::Token("hunter2".to_owned());
        assert!(!format!("{config:?}").contains("hunter2"));
        config.credentials =
            Credentials::UserPassword { user: "u".to_owned(), password: "hunter2".to_owned() };
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn several_servers_are_separated_by_commas() {
        let config = BusConfig::new("nats://a:1, tls://b:2", "test");
        let servers = config.servers().unwrap();
        assert_eq!(servers.len(), 2);
        assert!(servers[1].tls_required());
        assert!(BusConfig::new("nats://[", "test").servers().is_err());
    }

    #[test]
    fn servers_are_named_without_their_login() {
        let config = BusConfig::new("nats://u:hunter2@a:1,nats://t0ken@b", "test");
        assert_eq!(config.server_names().unwrap(), "a:1, b:4222");
    }

    #[test]
    fn reconnects_begin_at_once_and_slow_down_to_two_seconds() {
        let delays: Vec<_> = [1, 2, 3, 6, 8, 1000].map(|n| reconnect_delay(n).as_millis()).into();
        assert_eq!(delays, [0, 50, 100, 800, 2000, 2000]);
    }
}
