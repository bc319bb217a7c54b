//! Where a report was measured, and with which programs.

use hydrant_testkit::binaries;
use serde::{Deserialize, Serialize};
use std::{fs, process::Command, thread};

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
}

/// A program that took part.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Program {
    pub name: String,
    /// What it says of itself, or why it says nothing.
    pub version: String,
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
        }
    }
}

/// The value behind `name:` in a file of `/proc`.
fn field(text: &str, name: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_once(':')).map_or("", |(_, value)| value).trim().to_owned()
}

/// hydrant and everything it is measured beside.
pub fn programs() -> Vec<Program> {
    let ask =
        |name: &str, args: &[&str]| Program { name: name.to_owned(), version: version(name, args) };
    vec![
        ask("hydrant", &["--version"]),
        ask("nats-server", &["--version"]),
        ask("weed", &["version"]),
        ask("docker-registry", &["--version"]),
        ask("nginx", &["-v"]),
        ask("skopeo", &["--version"]),
    ]
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
