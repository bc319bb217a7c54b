//! Where a report was measured, and with which programs.

use hydrant_proto::Digest;
use hydrant_testkit::binaries;
use serde::{Deserialize, Serialize};
use std::{fs, path::Path, process::Command, thread};

/// The source tree this was built from.
const SOURCE: &str = env!("CARGO_MANIFEST_DIR");
const REPORTS: &str = "loadtest/reports";

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    pub cores: usize,
    pub cpu: String,
    pub memory_gib: f64,
    pub kernel: String,
    /// One-minute load average as the run began: others were at work if it is not small.
    pub load_before: f64,
    /// `release` or `debug`; a debug harness measures nothing but counts.
    pub build: String,
    /// The commit of the source tree this was built from, as it was when the run began; followed by
    /// `+changes` when files differ from it. Empty where there is no such tree any more.
    #[serde(default)]
    pub revision: String,
}

/// A program that took part.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Program {
    pub name: String,
    /// What it says of itself, or why it says nothing.
    pub version: String,
    /// Of its file; told of what is measured, so that two reports can be known to be of one program.
    #[serde(default)]
    pub sha256: Option<String>,
}

impl Machine {
    pub fn read() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let kib = memory.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok());
        let load = read("/proc/loadavg");
        Self {
            cores: thread::available_parallelism().map_or(1, usize::from),
            cpu: field(&read("/proc/cpuinfo"), "model name"),
            memory_gib: kib.unwrap_or(0.0) / 1024.0 / 1024.0,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_before: load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
            build: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
            revision: revision().unwrap_or_default(),
        }
    }
}

fn revision() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(SOURCE).args(arguments).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(text)
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    // A report that replaces an older one changes nothing that is measured.
    let reports = format!(":(exclude,top){REPORTS}");
    let changed =
        git(&["status", "--porcelain", "--untracked-files=no", "--", ":(top)", &reports])?;
    Some(if changed.is_empty() { commit } else { format!("{commit}+changes") })
}

/// The value behind `name:` in a file of `/proc`.
fn field(text: &str, name: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_once(':')).map_or("", |(_, value)| value).trim().to_owned()
}

/// hydrant and everything it is measured beside. Of a deployment nobody here can see which program it
/// runs.
pub fn programs(is_deployment: bool) -> Vec<Program> {
    let ask = |name: &str, args: &[&str]| Program {
        name: name.to_owned(),
        version: version(name, args),
        sha256: None,
    };
    let hydrant = if is_deployment {
        let version = "a deployment that ran already".to_owned();
        Program { name: "hydrant".to_owned(), version, sha256: None }
    } else {
        let file = std::panic::catch_unwind(binaries::hydrant).ok();
        Program { sha256: file.and_then(|file| sha256(&file)), ..ask("hydrant", &["--version"]) }
    };
    vec![
        hydrant,
        ask("nats-server", &["--version"]),
        ask("weed", &["version"]),
        ask("docker-registry", &["--version"]),
        ask("nginx", &["-v"]),
        ask("skopeo", &["--version"]),
    ]
}

fn sha256(file: &Path) -> Option<String> {
    Some(Digest::of(&fs::read(file).ok()?).hex().to_owned())
}

fn version(name: &str, args: &[&str]) -> String {
    let found = std::panic::catch_unwind(|| match name {
        "hydrant" => binaries::hydrant(),
        other => binaries::find(other),
    });
    let Ok(program) = found else {
        return "not found".to_owned();
    };
    let Ok(output) = Command::new(&program).args(args).output() else {
        return format!("{} does not run", program.display());
    };
    // nginx tells its version on standard error.
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    text.lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_known_by_the_bytes_of_its_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256(file.path()).as_deref(), Some(empty));
        fs::write(file.path(), "x").unwrap();
        assert_ne!(sha256(file.path()).as_deref(), Some(empty));
        assert_eq!(sha256(Path::new("/nowhere")), None);
    }
}
