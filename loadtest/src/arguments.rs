//! The command line.

use crate::scenario::Scenario;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Measures hydrant beside what else does the work: a direct pull, docker-registry as a proxy,
/// nginx, skopeo, and the bus and the store alone.
///
/// Everything that is needed is started on loopback, unless --hydrant names a deployment. The
/// report is a table on standard output, and report.json and report.html in --out.
#[derive(Debug, Parser)]
#[command(name = "hydrant-loadtest", args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub options: Options,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tells how the figures of one report differ from those of another
    Compare {
        /// The report compared with: a directory or its report.json
        before: PathBuf,
        after: PathBuf,
    },
    /// Runs only the upstream, for deployments on other machines (see --upstream-url)
    Upstream {
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7070")]
        listen: SocketAddr,
    },
}

#[derive(Args, Clone, Debug)]
pub struct Options {
    /// What to run, in this order; everything but soak and smoke if nothing is named
    #[arg(value_enum)]
    pub scenarios: Vec<Scenario>,

    /// How large and how long everything is. Default: full, or smoke for the scenario of that name
    #[arg(long, value_enum)]
    effort: Option<Effort>,

    /// Rounds in which everybody is measured once. Default: 5 (full), 3 (quick), 1 (smoke)
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,

    /// Length of each load phase. Default: 10 (full), 3 (quick), 1 (smoke)
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: Option<u64>,

    /// Longest time for everything; what does not fit is left out and the report says so
    #[arg(long, value_name = "MINUTES", default_value_t = 180,
          value_parser = clap::value_parser!(u64).range(1..=1440))]
    pub time_limit: u64,

    /// Length of the soak
    #[arg(long, value_name = "MINUTES", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=1440))]
    pub soak_minutes: u64,

    /// Leaves out docker-registry and nginx as caches
    #[arg(long)]
    pub no_peers: bool,

    /// Leaves out everything on SeaweedFS
    #[arg(long)]
    pub no_s3: bool,

    /// Directory for the report
    #[arg(long, value_name = "DIR", default_value = "target/loadtest")]
    pub out: PathBuf,

    /// Frontends of a deployment that runs already, as http://host:port; several are a list
    ///
    /// It needs a rule that leads --prefix to the upstream of --upstream-url, and keeps what it
    /// pulled. Scenarios that start and kill processes are not run against it.
    #[arg(long, value_name = "URL", value_delimiter = ',', requires = "upstream_url",
          value_parser = http_url)]
    pub hydrant: Vec<String>,

    /// Its admin port, to ask for hydrations; the token is read from HYDRANT_ADMIN_TOKEN
    #[arg(long, value_name = "URL", requires = "hydrant", value_parser = http_url)]
    pub admin: Option<String>,

    /// What its rule has before the upstream's repositories
    #[arg(long, value_name = "PATH/", default_value = "load/", value_parser = prefix)]
    pub prefix: String,

    /// A running `hydrant-loadtest upstream`, as this process reaches it
    #[arg(long, value_name = "URL", value_parser = http_url)]
    pub upstream_url: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Effort {
    /// Counts only, under a minute
    Smoke,
    /// Small images, three rounds: whether something changed a lot
    Quick,
    /// The figures
    Full,
}

impl Effort {
    pub fn name(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Quick => "quick",
            Self::Full => "full",
        }
    }

    /// One of three, by effort.
    pub fn pick<T>(self, smoke: T, quick: T, full: T) -> T {
        match self {
            Self::Smoke => smoke,
            Self::Quick => quick,
            Self::Full => full,
        }
    }
}

impl Options {
    pub fn effort(&self) -> Effort {
        let usual = if self.scenarios == [Scenario::Smoke] { Effort::Smoke } else { Effort::Full };
        self.effort.unwrap_or(usual)
    }

    pub fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(self.effort().pick(1, 3, 5))
    }

    /// Of each load phase.
    pub fn phase(&self) -> Duration {
        Duration::from_secs(self.seconds.unwrap_or(self.effort().pick(1, 3, 10)))
    }

    pub fn is_external(&self) -> bool {
        !self.hydrant.is_empty()
    }

    /// What is to be run.
    pub fn chosen(&self) -> Vec<Scenario> {
        let all = || Scenario::value_variants().iter().copied().filter(|s| s.is_usual());
        if self.scenarios.is_empty() { all().collect() } else { self.scenarios.clone() }
    }
}

fn http_url(text: &str) -> Result<String, String> {
    let url: url::Url = text.parse().map_err(|error| format!("{error}: give http://host:port"))?;
    if url.scheme() != "http" || url.host_str().is_none() {
        return Err("the load is sent over plain http: give http://host:port, before TLS".into());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn prefix(text: &str) -> Result<String, String> {
    let ends_well = text.is_empty() || text.ends_with('/');
    ends_well.then(|| text.to_owned()).ok_or_else(|| format!("end it with a slash: `{text}/`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
        let parsed = Arguments::try_parse_from(["x", "cold", "herd", "--rounds", "2"]).unwrap();
        assert_eq!(parsed.options.chosen(), [Scenario::Cold, Scenario::Herd]);
        assert!(Arguments::try_parse_from(["x", "--hydrant", "http://a:1"]).is_err());
        assert!(Arguments::try_parse_from(["x", "compare", "a", "b"]).unwrap().command.is_some());
    }

    #[test]
    fn the_smoke_alone_is_small_without_being_told() {
        let effort = |arguments: &[&str]| {
            let arguments = ["x"].iter().chain(arguments);
            Arguments::try_parse_from(arguments).unwrap().options.effort()
        };
        assert_eq!(effort(&["smoke"]), Effort::Smoke);
        assert_eq!(effort(&["smoke", "--effort", "quick"]), Effort::Quick);
        assert_eq!(effort(&["smoke", "cold"]), Effort::Full);
        assert_eq!(effort(&[]), Effort::Full);
    }

    #[test]
    fn everything_usual_is_run_where_nothing_is_named() {
        let parsed = Arguments::try_parse_from(["x"]).unwrap();
        let chosen = parsed.options.chosen();
        assert!(chosen.contains(&Scenario::Cold) && !chosen.contains(&Scenario::Soak));
    }
}
