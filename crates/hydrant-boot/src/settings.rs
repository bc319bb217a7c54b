//! The settings of a process, from flags and `HYDRANT_…` variables. What the cache does (rules,
//! upstreams, credentials, webhooks) is no setting but a resource, see `ResourceFeed`.

mod check;
mod work;

pub use check::{SettingsProblem, SettingsProblems};
pub use hydrant_rules::ByteSize;
pub use work::WorkSettings;

use clap::Args;
use hydrant_bus::{BusConfig, Credentials};
use hydrant_rules::Span;
use hydrant_telemetry::{LogFormat, TelemetryConfig};
use std::{
    env,
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
};
use url::Url;

/// What a process was started as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// All four in one process.
    Up,
    Frontend,
    Importer,
    Notifier,
    Control,
}

impl Role {
    pub const ALL: [Self; 5] =
        [Self::Up, Self::Frontend, Self::Importer, Self::Notifier, Self::Control];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Frontend => "frontend",
            Self::Importer => "importer",
            Self::Notifier => "notifier",
            Self::Control => "control",
        }
    }

    /// Whether it writes `--config` into the shared configuration; the others only fall back on it.
    pub const fn keeps_resources(self) -> bool {
        matches!(self, Self::Up | Self::Control)
    }
}

/// Settings that every role shares.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Settings")]
pub struct Settings {
    /// Resources (upstreams, rules, credentials, webhooks) in TOML
    ///
    /// `up` and `control` write them into the shared configuration at start: what the file names
    /// becomes as it says, what it does not name stays. The other roles use the file until the
    /// shared configuration arrives. Unknown keys are refused. Default: none; resources can also
    /// be made with `hydrant apply` and over the API.
    #[arg(long, value_name = "FILE", env = "HYDRANT_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,

    /// Address that clients pull from (`up` and `frontend`)
    ///
    /// Loopback by default. There is no client login yet: everybody who reaches this address can
    /// pull whatever the rules allow.
    #[arg(long, value_name = "ADDR", env = "HYDRANT_LISTEN", hide_env_values = true,
          default_value = "127.0.0.1:5000", value_parser = address)]
    pub listen: SocketAddr,

    /// Address of the admin port: /metrics, /healthz, /readyz and, in `up` and `control`, the API
    ///
    /// On an address that is not loopback the API answers only when HYDRANT_ADMIN_TOKEN (or
    /// HYDRANT_ADMIN_TOKEN_FILE) is set; callers then send it as a bearer token.
    #[arg(long, value_name = "ADDR", env = "HYDRANT_ADMIN", hide_env_values = true,
          default_value = "127.0.0.1:9464", value_parser = address)]
    pub admin: SocketAddr,

    /// Address at which the other processes of the cluster read blobs on their way from this one
    /// (`frontend` and `importer`, and `up` with --nats-url)
    ///
    /// For them only: not a port for clients. It has to be reachable from every frontend and
    /// importer; where it is not, each of them reads a blob from the upstream for itself. With the
    /// address 0.0.0.0 or [::] the others are told the one this machine has towards NATS. Default:
    /// a free port at that address.
    #[arg(long, value_name = "ADDR", env = "HYDRANT_PEER", hide_env_values = true,
          value_parser = address)]
    pub peer: Option<SocketAddr>,

    /// Directory for what this process keeps: spool, last known configuration, and with `up` the
    /// embedded nats-server and the store
    ///
    /// Default: $XDG_STATE_HOME/hydrant, else ~/.local/state/hydrant, else ./hydrant-data.
    #[arg(long, value_name = "DIR", env = "HYDRANT_DATA", hide_env_values = true)]
    pub data: Option<PathBuf>,

    /// Where content is stored: `s3://bucket[/prefix]`, `file:///dir` or a directory
    ///
    /// S3 reads AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and
    /// AWS_ALLOW_HTTP. Every process of one installation names the same store. Default: `store`
    /// in the data directory.
    #[arg(long, value_name = "URL", env = "HYDRANT_STORE", hide_env_values = true)]
    pub store: Option<String>,

    /// Endpoint that presigned URLs name, when clients reach S3 by another address than
    /// hydrant does, such as `https://s3.example.com`. Default: the endpoint hydrant uses
    #[arg(long, value_name = "URL", env = "HYDRANT_S3_PUBLIC_ENDPOINT", hide_env_values = true)]
    pub s3_public_endpoint: Option<Url>,

    /// How long requests and jobs under way may take to finish after SIGTERM, such as `30s`
    ///
    /// What is not finished then is dropped; jobs go to another worker.
    #[arg(
        long,
        value_name = "DURATION",
        env = "HYDRANT_DRAIN_DEADLINE",
        hide_env_values = true,
        default_value = "30s"
    )]
    pub drain_deadline: Span,

    /// How long /readyz answers 503 before the process stops accepting, such as `5s`, so that load
    /// balancers look elsewhere first
    #[arg(
        long,
        value_name = "DURATION",
        env = "HYDRANT_DRAIN_DELAY",
        hide_env_values = true,
        default_value = "0s"
    )]
    pub drain_delay: Span,

    /// Most disk space for blobs on their way from an upstream, such as `20GiB` (`up`, `frontend`
    /// and `importer`)
    #[arg(
        long,
        value_name = "SIZE",
        env = "HYDRANT_SPOOL",
        hide_env_values = true,
        default_value = "20GiB"
    )]
    pub spool: ByteSize,

    #[command(flatten)]
    pub work: WorkSettings,

    #[command(flatten)]
    pub bus: BusSettings,

    #[command(flatten)]
    pub logs: LogSettings,
}

/// Where NATS is and how to log in.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "NATS")]
pub struct BusSettings {
    /// NATS servers, separated by commas: `nats://host:4222` or `tls://host:4222`
    ///
    /// `up` starts a nats-server of its own without it; the other roles need it. 2.11 or later,
    /// with JetStream.
    #[arg(long, value_name = "URL", env = "HYDRANT_NATS_URL", hide_env_values = true)]
    pub nats_url: Option<String>,

    /// NATS credentials file, as `nsc` writes it. Default: what the URL holds, if anything
    #[arg(long, value_name = "FILE", env = "HYDRANT_NATS_CREDENTIALS", hide_env_values = true)]
    pub nats_credentials: Option<PathBuf>,

    /// PEM file of the authorities to trust for `tls://` instead of the system's
    #[arg(long, value_name = "FILE", env = "HYDRANT_NATS_CA", hide_env_values = true)]
    pub nats_ca: Option<PathBuf>,

    /// Copies of each stream that is made, 1 or 3; existing streams keep theirs
    #[arg(
        long,
        value_name = "COUNT",
        env = "HYDRANT_NATS_REPLICAS",
        hide_env_values = true,
        default_value_t = 1
    )]
    pub nats_replicas: usize,
}

/// What is logged, how, and where traces go.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logs and traces")]
pub struct LogSettings {
    /// `text` for people, `json` for machines; both on standard error
    #[arg(
        long,
        value_name = "FORMAT",
        env = "HYDRANT_LOG_FORMAT",
        hide_env_values = true,
        default_value = "text"
    )]
    pub log_format: LogFormat,

    /// What to log: a level, or directives such as `info,hydrant_importer=debug`
    #[arg(
        long,
        value_name = "FILTER",
        env = "HYDRANT_LOG",
        hide_env_values = true,
        default_value = "info"
    )]
    pub log_filter: String,

    /// Base URL of an OTLP collector (`http/protobuf`), such as `http://127.0.0.1:4318`. Default:
    /// traces are not exported
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT", hide_env_values = true)]
    pub otlp_endpoint: Option<String>,
}

impl Settings {
    /// Checks the settings against each other for this role; every problem names its flag and the
    /// remedy.
    pub fn check(&self, role: Role) -> Result<(), SettingsProblems> {
        check::check(self, role)
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(default_data)
    }

    /// Where content is stored, as [`hydrant_store::StoreUrl`] reads it.
    pub fn store_url(&self) -> String {
        let in_data = || self.data().join("store").to_string_lossy().into_owned();
        self.store.clone().unwrap_or_else(in_data)
    }

    /// Where blobs on their way are spooled.
    pub fn spool_dir(&self) -> PathBuf {
        self.data().join("spool")
    }

    /// Whether only this machine can reach the admin port.
    pub fn admin_is_loopback(&self) -> bool {
        self.admin.ip().to_canonical().is_loopback()
    }

    pub fn telemetry(&self, role: Role) -> TelemetryConfig {
        TelemetryConfig {
            service_name: format!("hydrant-{}", role.as_str()),
            log_format: self.logs.log_format,
            log_filter: self.logs.log_filter.clone(),
            otlp_endpoint: self.logs.otlp_endpoint.clone(),
        }
    }

    /// The connection to NATS at `url`.
    pub fn bus_config(&self, role: Role, url: &str) -> BusConfig {
        let credentials = self.bus.nats_credentials.clone();
        BusConfig {
            credentials: credentials.map_or(Credentials::Url, Credentials::File),
            ca_file: self.bus.nats_ca.clone(),
            replicas: self.bus.nats_replicas,
            ack_wait: self.work.ack_wait.0,
            ..BusConfig::new(url, format!("hydrant-{}", role.as_str()))
        }
    }
}

fn default_data() -> PathBuf {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map_or_else(|| PathBuf::from("hydrant-data"), |state| state.join("hydrant"))
}

/// An IP address with a port, or a name such as `localhost:5000` that has one.
fn address(text: &str) -> Result<SocketAddr, String> {
    let refused =
        || format!("`{text}` is not an address like 127.0.0.1:5000, [::]:5000 or localhost:5000");
    text.to_socket_addrs().ok().and_then(|mut found| found.next()).ok_or_else(refused)
}
