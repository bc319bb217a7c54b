//! The command line: what can be said. What it does is elsewhere.

use crate::client_config::Upstream;
use clap::{Args, Parser, Subcommand, ValueEnum};
use hydrant_boot::Settings;
use hydrant_proto::Platform;
use hydrant_rules::Span;
use std::path::PathBuf;
use url::Url;

const EXAMPLES: &str = "\
Examples:
  hydrant up --config hydrant.toml          everything in one process, no other server needed
  hydrant up --store s3://cache --nats-url nats://nats:4222
  hydrant hydrate docker/library/node:22 --wait
  hydrant rule list

Exit codes of client commands: 0 done, 1 it failed, 2 wrong usage, 3 hydrant cannot be reached,
4 still going on when --timeout passed.";

/// A pull-through cache for OCI registries: serves now, hydrates for later, asks the upstream once.
#[derive(Debug, Parser)]
#[command(name = "hydrant", version, about, after_help = EXAMPLES, max_term_width = 100,
          propagate_version = true, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
// One is built per process.
#[allow(clippy::large_enum_variant)]
pub enum Command {
    /// Run everything in one process, with a nats-server and a store of its own
    #[command(after_help = "\
Examples:
  hydrant up --config hydrant.toml
  hydrant up --listen 0.0.0.0:5000 --data /var/lib/hydrant
  AWS_ENDPOINT_URL=http://minio:9000 AWS_ALLOW_HTTP=true hydrant up --store s3://cache")]
    Up(UpFlags),
    /// Serve pulls: what is local from the store, the rest from the upstream at once
    Frontend(RoleFlags),
    /// Make missed images durable
    Importer(RoleFlags),
    /// Tell webhooks what happened
    Notifier(RoleFlags),
    /// Serve the HTTP API over resources, hydrations and dead letters
    Control(RoleFlags),
    /// Print or write the files that send a node's pulls through hydrant
    #[command(after_help = "\
Files go to standard output, where they belong to standard error. Each registry must be the `namespace`
of an upstream in hydrant.

Examples:
  hydrant client-config containerd --registry http://127.0.0.1:30500
  hydrant client-config podman --registry https://hydrant.example.com --upstream docker.io --write
  hydrant client-config containerd --upstream lab.example=http://10.0.0.7:5000")]
    ClientConfig(ClientConfig),
    #[command(flatten)]
    Client(ClientCommand),
}

/// Whom files are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Client {
    Containerd,
    Docker,
    Crio,
    Podman,
    Buildkit,
}

#[derive(Args, Debug)]
pub struct ClientConfig {
    #[arg(value_enum)]
    pub client: Client,
    /// hydrant as nodes reach it
    #[arg(
        long,
        value_name = "URL",
        env = "HYDRANT_REGISTRY",
        hide_env_values = true,
        default_value = "http://127.0.0.1:5000"
    )]
    pub registry: Url,
    /// Registry to pull through hydrant, as it stands in image names, with =URL where it is
    /// elsewhere; may be repeated. Default: docker.io, ghcr.io, quay.io and registry.k8s.io
    #[arg(long = "upstream", value_name = "NAME[=URL]")]
    pub upstreams: Vec<Upstream>,
    /// PEM file of the authority behind an https --registry, on the node. Default: the system's
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Write the files instead of printing them
    #[arg(long)]
    pub write: bool,
    /// Root of the file system they are written to
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// Replace files that others wrote
    #[arg(long, requires = "write")]
    pub force: bool,
}

#[derive(Args, Debug)]
pub struct RoleFlags {
    #[command(flatten)]
    pub settings: Settings,
}

#[derive(Args, Debug)]
pub struct UpFlags {
    #[command(flatten)]
    pub settings: Settings,

    /// The nats-server to start when no --nats-url is given, 2.11 or later. Default: the one on PATH
    #[arg(
        long,
        value_name = "PATH",
        env = "HYDRANT_NATS_SERVER",
        hide_env_values = true,
        help_heading = "NATS"
    )]
    pub nats_server: Option<PathBuf>,
}

/// Commands that talk to the API of a running hydrant.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Lay a file of resources over the configuration, in one change
    #[command(after_help = "\
Relative files of secrets are taken to be relative to FILE, and are read by the hydrant processes.

Examples:
  hydrant apply -f hydrant.toml --dry-run
  hydrant apply -f hydrant.toml --prune
  generate-rules | hydrant apply -f -")]
    Apply(Apply),
    /// Cache rules: which downstream path leads to which upstream repository
    Rule(Resource),
    /// Registries to fetch from
    Upstream(UpstreamResource),
    /// Credential sets: where a username and a password live
    Credential(Resource),
    /// Endpoints that hear of events
    Webhook(Resource),
    /// Make an image local now
    #[command(after_help = "\
Examples:
  hydrant hydrate docker/library/node:22 --wait
  hydrant hydrate lab/app:1.2 --platform linux/amd64 --platform linux/arm64 --wait")]
    Hydrate(Hydrate),
    /// What is local of an image, and what is being done about the rest
    Status(Status),
    /// Tags: check, freeze and roll back what they name, and see what became of them
    Tag(Tag),
    /// What was given up, and why
    DeadLetter(DeadLetter),
    /// What happens, as it happens
    #[command(after_help = "\
Examples:
  hydrant events --follow
  hydrant events --since 1h -o json | jq .type")]
    Events(Events),
    /// Ask a process whether it is alive, or ready for work
    #[command(after_help = "\
The exit code is 0 when it is and 1 when it is not.

Examples:
  hydrant health
  hydrant health --ready --admin hydrant-control:9464 --wait 5m")]
    Health(Health),
}

/// Where the API is.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Server")]
pub struct Server {
    /// Admin address of `hydrant up` or `hydrant control`
    #[arg(
        long,
        value_name = "URL",
        env = "HYDRANT_SERVER",
        hide_env_values = true,
        default_value = "http://127.0.0.1:9464"
    )]
    pub server: Url,

    /// Token of the API; better given as HYDRANT_ADMIN_TOKEN, since arguments can be seen by others
    #[arg(long, value_name = "TOKEN", env = "HYDRANT_ADMIN_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    Json,
    Toml,
}

#[derive(Args, Debug)]
pub struct Apply {
    /// TOML file of resources; `-` reads standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Delete what the file does not name
    #[arg(long)]
    pub prune: bool,
    /// Let a file without resources prune, which deletes all there are
    #[arg(long, requires = "prune")]
    pub allow_empty: bool,
    /// Only say what would change
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub server: Server,
}

#[derive(Args, Debug)]
pub struct Resource {
    #[command(subcommand)]
    pub action: Action,
}

#[derive(Args, Debug)]
pub struct UpstreamResource {
    #[command(subcommand)]
    pub action: UpstreamAction,
}

#[derive(Debug, Subcommand)]
pub enum UpstreamAction {
    #[command(flatten)]
    Resource(Action),
    /// How one is doing: breaker, quota, queue
    Status {
        name: String,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        #[command(flatten)]
        server: Server,
    },
}

#[derive(Debug, Subcommand)]
pub enum Action {
    /// List all
    List {
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        #[command(flatten)]
        server: Server,
    },
    /// Show one
    Get {
        name: String,
        #[arg(short, long, value_enum, default_value = "toml")]
        output: Output,
        #[command(flatten)]
        server: Server,
    },
    /// Make one, or change fields of it
    #[command(after_help = "\
Values are TOML, or plain text where that is no TOML. Fields that are not named stay as they are; an
empty value takes a field away, so that its default holds.

Examples:
  hydrant upstream set lab endpoint=http://127.0.0.1:5100 allow_private=true
  hydrant credential set lab-user username.env=LAB_USER password.file=/run/secrets/lab
  hydrant rule set lab downstream='lab/*' upstream=lab 'platforms=[\"linux/amd64\"]'
  hydrant rule set lab fresh_for=10m 'tags=[{pattern=\"semver\",immutable=true}]'
  hydrant webhook set ci disabled=
  hydrant webhook set -f webhook.toml")]
    Set {
        /// Name; may be left out with -f
        #[arg(required_unless_present = "file")]
        name: Option<String>,
        /// Fields, as key=value
        #[arg(value_name = "KEY=VALUE", conflicts_with = "file")]
        fields: Vec<String>,
        /// TOML file with the fields of one resource, or with several as in hydrant.toml
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        server: Server,
    },
    /// Delete one; refused while another resource names it
    Delete {
        name: String,
        #[command(flatten)]
        server: Server,
    },
}

#[derive(Args, Debug)]
pub struct Hydrate {
    /// Image as clients pull it, without the registry host: `repository:tag` or `repository@digest`
    pub image: String,
    /// Platform of an index, such as `linux/amd64`; may be repeated. Default: the rule's policy
    #[arg(long = "platform", value_name = "PLATFORM")]
    pub platforms: Vec<Platform>,
    /// Wait until it is local, with progress; the exit code is 0 only then
    #[arg(long)]
    pub wait: bool,
    /// Longest wait, such as `10m`
    #[arg(long, value_name = "DURATION", default_value = "1h", requires = "wait")]
    pub timeout: Span,
    #[command(flatten)]
    pub server: Server,
}

#[derive(Args, Debug)]
pub struct Status {
    /// Image as clients pull it, without the registry host
    pub image: String,
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    #[command(flatten)]
    pub server: Server,
}

#[derive(Args, Debug)]
pub struct Tag {
    #[command(subcommand)]
    pub action: TagAction,
}

#[derive(Debug, Subcommand)]
pub enum TagAction {
    /// Ask the upstream now, and hydrate what it says, even where the rule calls the tag immutable
    #[command(after_help = "\
Examples:
  hydrant tag refresh docker/library/node:22 --wait")]
    Refresh {
        /// Image as clients pull it: `repository:tag`
        image: String,
        /// Why, for those who read the history
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Wait until it is local, with progress; the exit code is 0 only then
        #[arg(long)]
        wait: bool,
        /// Longest wait, such as `10m`
        #[arg(long, value_name = "DURATION", default_value = "1h", requires = "wait")]
        timeout: Span,
        #[command(flatten)]
        server: Server,
    },
    /// What the tag named when, and who made it so; the newest first
    History {
        /// Image as clients pull it: `repository:tag`
        image: String,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        #[command(flatten)]
        server: Server,
    },
    /// Keep the tag where it is: it is not checked and not moved until it is unfrozen
    #[command(after_help = "\
Examples:
  hydrant tag freeze docker/library/node:22 --reason 'release week'")]
    Freeze(Steer),
    /// Let the tag follow the upstream again, which is asked at once
    Unfreeze(Steer),
    /// Point the tag at a digest it named before, and freeze it there
    #[command(after_help = "\
The digest must be in the tag's history and all of it still local. The tag stays frozen, because the
next check would move it forward again: end that with `hydrant tag unfreeze`.

Examples:
  hydrant tag rollback docker/library/node:22 --reason '22.9 breaks the build'
  hydrant tag rollback docker/library/node:22 --to sha256:…")]
    Rollback {
        /// Digest to go back to, as `hydrant tag history` shows it. Default: the one before
        #[arg(long, value_name = "DIGEST")]
        to: Option<String>,
        #[command(flatten)]
        steer: Steer,
    },
}

#[derive(Args, Debug)]
pub struct Steer {
    /// Image as clients pull it: `repository:tag`
    pub image: String,
    /// Why, for those who read the history
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    #[command(flatten)]
    pub server: Server,
}

#[derive(Args, Debug)]
pub struct DeadLetter {
    #[command(subcommand)]
    pub action: DeadLetterAction,
}

#[derive(Debug, Subcommand)]
pub enum DeadLetterAction {
    /// List what was given up, the newest first
    List {
        /// Most letters to list
        #[arg(long, value_name = "N", default_value_t = 1_000)]
        limit: usize,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        #[command(flatten)]
        server: Server,
    },
    /// Try again and remove the letter
    Retry(Letters),
    /// Remove the letter; what it was about stays undone
    Drop(Letters),
}

#[derive(Args, Debug)]
pub struct Letters {
    /// Ids, as `list` shows them
    #[arg(required_unless_present_any = ["all", "rule", "class"])]
    pub ids: Vec<String>,
    /// All of them
    #[arg(long, conflicts_with_all = ["ids", "rule", "class"], requires = "yes")]
    pub all: bool,
    /// Those of one rule
    #[arg(long, value_name = "NAME", conflicts_with = "ids", requires = "yes")]
    pub rule: Option<String>,
    /// Those of one class, such as `unknown`
    #[arg(long, conflicts_with = "ids", requires = "yes")]
    pub class: Option<String>,
    /// Many at once are meant
    #[arg(long, conflicts_with = "ids")]
    pub yes: bool,
    #[command(flatten)]
    pub server: Server,
}

#[derive(Args, Debug)]
pub struct Events {
    /// Go on with what happens from now on
    #[arg(long, short = 'F')]
    pub follow: bool,
    /// From when: RFC 3339, or how long ago, such as `1h`. Default: the last hour, or from now on
    /// with --follow
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// `json` prints one CloudEvent per line
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    #[command(flatten)]
    pub server: Server,
}

#[derive(Args, Debug)]
pub struct Health {
    /// Admin address of the process; 0.0.0.0 is asked at loopback, so what the process itself
    /// reads will do
    #[arg(
        long,
        value_name = "ADDR",
        env = "HYDRANT_ADMIN",
        hide_env_values = true,
        default_value = "127.0.0.1:9464"
    )]
    pub admin: String,
    /// Ready, which a process that drains or misses what it cannot work without is not
    #[arg(long)]
    pub ready: bool,
    /// Ask again for as long, such as `5m`
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    pub wait: Span,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
