//! `hydrant up` as a process, with the nats-server it starts, and the client against it.

// Helpers of tests fail by panicking, as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

use assert_cmd::Command;
use hydrant_testkit::{FakeUpstream, Fault, Image, PortLease, Process, binaries, process, until};
use std::{fs, path::Path, time::Duration};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);

const LAB: &str = "[[upstream]]\nname = 'lab'\nendpoint = 'http://127.0.0.1:1'\nallow_private = true\n\
    [[rule]]\nname = 'lab'\ndownstream = 'lab/*'\nupstream = 'lab'\n";

struct Up {
    process: Process,
    admin: PortLease,
    dir: TempDir,
    listen: PortLease,
}

impl Up {
    async fn start() -> Self {
        Self::start_with(LAB).await
    }

    async fn start_with(config: &str) -> Self {
        Self::start_in(config, &[]).await
    }

    async fn start_in(config: &str, flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("hydrant.toml"), config).unwrap();
        let (listen, admin) = (PortLease::take(), PortLease::take());
        let mut process = Process::new("hydrant", env!("CARGO_BIN_EXE_hydrant"), dir.path());
        process.args(["up", "--config=hydrant.toml", "--data=data"]).args(flags);
        process.arg(format!("--listen=127.0.0.1:{}", listen.port()));
        process.arg(format!("--admin=127.0.0.1:{}", admin.port()));
        process.arg("--nats-server").arg(binaries::find("nats-server"));
        process.spawn();
        let mut up = Self { process, admin, dir, listen };
        up.ready().await;
        up
    }

    fn server(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin.port())
    }

    async fn ready(&mut self) {
        let url = format!("{}/readyz", self.server());
        let process = &mut self.process;
        until("readiness", SOON, async || {
            process.assert_running();
            reqwest::get(&url).await.ok().filter(|answer| answer.status() == 200).map(drop)
        })
        .await;
    }

    fn client(&self, args: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hydrant"));
        command.args(args).env("HYDRANT_SERVER", self.server()).current_dir(self.dir.path());
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), text + &String::from_utf8_lossy(&output.stderr))
    }

    /// The process id of the nats-server on our data.
    async fn nats_pid(&self) -> u32 {
        let data = self.dir.path().join("data");
        until("the nats-server", SOON, async || nats_of(&data)).await
    }
}

/// The running process whose arguments name our nats-server's configuration.
fn nats_of(data: &Path) -> Option<u32> {
    let config = data.join("nats/nats-server.conf").canonicalize().ok()?;
    let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(|pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let zombie = stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'));
        !zombie
            && line.starts_with(binaries::find("nats-server").to_string_lossy().as_bytes())
            && String::from_utf8_lossy(&line).contains(&*config.to_string_lossy())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn it_starts_its_own_nats_and_stops_it_at_the_end() {
    let mut up = Up::start().await;
    up.nats_pid().await;
    let status = up.process.terminate(SOON).await;
    assert!(status.success(), "{status}");
    assert_eq!(nats_of(&up.dir.path().join("data")), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_hydrant_leaves_no_nats_behind_and_starts_again() {
    let mut up = Up::start().await;
    up.nats_pid().await;
    up.process.kill9();
    let data = up.dir.path().join("data");
    until("the end of nats-server", SOON, async || nats_of(&data).is_none().then_some(())).await;
    up.process.spawn();
    up.ready().await;
    assert_eq!(up.client(&["rule", "get", "lab"]).0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_after_nats_ends_it_in_order() {
    let dir = tempfile::tempdir().unwrap();
    // The spool cannot be a directory.
    fs::create_dir(dir.path().join("data")).unwrap();
    fs::write(dir.path().join("data/spool"), "").unwrap();
    let nats = binaries::find("nats-server");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hydrant"));
    command.args(["up", "--data=data", "--listen=127.0.0.1:0", "--admin=127.0.0.1:0"]);
    let output = command.arg("--nats-server").arg(nats).current_dir(dir.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("spool") && !text.contains("panicked"), "{text}");
    let log = fs::read_to_string(dir.path().join("data/nats/nats-server.log")).unwrap();
    assert!(log.contains("Server Exiting"), "{log}");
    assert_eq!(nats_of(&dir.path().join("data")), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_nats_is_started_again() {
    let mut up = Up::start().await;
    let first = up.nats_pid().await;
    assert!(
        Command::new("kill").args(["-9", &first.to_string()]).output().unwrap().status.success()
    );
    let data = up.dir.path().join("data");
    until("another nats-server", SOON, async || nats_of(&data).filter(|pid| *pid != first)).await;
    until("a change to the configuration", SOON, async || {
        (up.client(&["rule", "set", "lab", "fresh_for=7m"]).0 == Some(0)).then_some(())
    })
    .await;
    up.process.assert_running();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_them_do_not_share_a_data_directory() {
    let up = Up::start().await;
    let nats = binaries::find("nats-server");
    let (code, text) = up.client(&[
        "up",
        "--data=data",
        "--listen=127.0.0.1:0",
        "--admin=127.0.0.1:0",
        "--nats-server",
        nats.to_str().unwrap(),
    ]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("another `hydrant up` uses the data directory"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_manages_resources_and_hydrations() {
    let up = Up::start().await;
    for (args, code, expected) in [
        (&["rule", "list"][..], 0, "lab/*"),
        (&["rule", "set", "lab", "fresh_for=10m"], 0, "changed rule lab"),
        (&["rule", "get", "lab"], 0, "fresh_for = \"10m\""),
        (&["rule", "set", "lab", "freshfor=10m"], 2, "freshfor"),
        (&["rule", "set", "lab", "freshfor"], 2, "not key=value"),
        (&["rule", "get", "nope"], 1, "no rule `nope`"),
        (&["upstream", "delete", "lab"], 1, "rule.lab.upstream"),
        (&["upstream", "set", "hub", "endpoint=https://hub.example"], 0, "created upstream hub"),
        (&["upstream", "list", "-o", "json"], 0, "\"hub\""),
        (&["credential", "set", "c", "username.env=U", "password.file=secret"], 0, "created"),
        (&["credential", "list"], 0, "file:/"),
        (
            &["webhook", "set", "ci", "url=https://a.b", "secret.env=S", "disabled=gone"],
            0,
            "created",
        ),
        (&["webhook", "get", "ci"], 0, "disabled = \"gone\""),
        (&["webhook", "set", "ci", "disabled="], 0, "changed webhook ci"),
        (&["webhook", "list"], 0, "ci    https://a.b/  -       -             -"),
        (&["apply", "-f", "/dev/null", "--prune"], 2, "--allow-empty"),
        (&["apply", "-f", "hydrant.toml", "--dry-run", "--prune"], 0, "- upstream hub"),
        (&["apply", "-f", "hydrant.toml", "--prune"], 0, "~ rule lab"),
        (&["upstream", "get", "hub"], 1, "no upstream `hub`"),
        (&["status", "lab/app:1"], 0, "hydrated  no"),
        (&["hydrate", "other/app:1"], 1, "no rule leads"),
        (&["hydrate", "lab/app:1"], 0, "lab/app:1 is queued"),
        (&["hydrate", "lab/app:1", "--wait", "--timeout=1s"], 4, "is not local after 1s"),
        (&["dead-letter", "list"], 0, "REASON"),
        (&["dead-letter", "drop", "job-x"], 1, "no dead letter"),
        (&["events", "--since=1h"], 0, ""),
    ] {
        let (found, text) = up.client(args);
        assert_eq!(found, Some(code), "{args:?}: {text}");
        assert!(text.contains(expected), "{args:?} does not say {expected:?}:\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_drains_at_sigint_too_and_tells_it_is_not_ready() {
    let mut up = Up::start().await;
    up.process.signal(process::SIGINT);
    let status = up.process.wait(SOON).await;
    assert!(status.success(), "{status}");
    assert!(up.process.log().contains("stopped"), "{}", up.process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once_with_its_own_code() {
    for (signal, code) in [(process::SIGTERM, 143), (process::SIGINT, 130)] {
        let mut up = Up::start_in(LAB, &["--drain-delay=10m"]).await;
        up.process.signal(process::SIGTERM);
        up.process.logged("a second signal ends at once", SOON).await;
        up.process.signal(signal);
        assert_eq!(up.process.wait(SOON).await.code(), Some(code));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_drains_the_admin_port_answers_to_the_end() {
    let upstream = FakeUpstream::start().await;
    let image = Image::multi_arch(1, &["linux/amd64"], &[500_000]);
    upstream.insert(&image, "app", "1");
    upstream.inject("*/blobs/*", Fault::stall(1_000).method("GET"));
    let mut up = Up::start_with(&LAB.replace("http://127.0.0.1:1", &upstream.url())).await;
    let blobs = image.child("linux/amd64").all_blobs();
    // The one that stalls: a smaller one is through before the stop.
    let layer = &blobs.iter().max_by_key(|blob| blob.size).unwrap().digest;
    let pulls = format!("127.0.0.1:{}", up.listen.port());
    let pull = reqwest::get(format!("http://{pulls}/v2/lab/app/blobs/{layer}")).await.unwrap();
    assert_eq!(pull.status(), 200);
    up.process.signal(process::SIGTERM);
    until("the end of accepting", SOON, async || {
        tokio::net::TcpStream::connect(&pulls).await.is_err().then_some(())
    })
    .await;
    for (path, status) in [("healthz", 200), ("readyz", 503), ("metrics", 200)] {
        let answer = reqwest::get(format!("{}/{path}", up.server())).await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
    }
    drop(pull);
    let status = up.process.wait(SOON).await;
    assert!(status.success(), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_not_there_is_told_once_at_the_start() {
    let credential = "[[credential]]\nname = 'me'\nusername = { file = 'hydrant.toml' }\n\
        password = { env = 'NOT_SET_FOR_THIS_TEST' }\n";
    let up = Up::start_with(&format!("{LAB}{credential}")).await;
    up.process.logged("NOT_SET_FOR_THIS_TEST", SOON).await;
    let log = up.process.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("a secret cannot")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    for part in ["credential", "me", "password"] {
        assert!(lines[0].contains(part), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_hydrate_ends_well_only_when_the_image_is_local() {
    let upstream = FakeUpstream::start().await;
    upstream.insert(
        &Image::multi_arch(1, &["linux/amd64", "linux/arm64"], &[5_000, 70_000]),
        "app",
        "1",
    );
    let up = Up::start_with(&LAB.replace("http://127.0.0.1:1", &upstream.url())).await;
    let args = ["hydrate", "lab/app:1", "--platform=linux/amd64", "--wait", "--timeout=30s"];
    let (code, text) = up.client(&args);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("lab/app:1 is local") && text.contains("@sha256:"), "{text}");
    let (_, text) = up.client(&["status", "lab/app:1"]);
    assert!(text.contains("hydrated   yes") && text.contains("linux/amd64"), "{text}");
    let (code, text) = up.client(&["hydrate", "lab/nope:1", "--wait", "--timeout=30s"]);
    assert_eq!(code, Some(1), "{text}");
    for part in ["given up", "(unknown)", "check the name", "hydrant dead-letter retry job-"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    let (_, text) = up.client(&["events", "--since=1h"]);
    assert!(text.contains("image.hydrated") && text.contains("hydration.deadlettered"), "{text}");
    let (code, text) = up.client(&["dead-letter", "retry", "--all"]);
    assert!(code == Some(2) && text.contains("--yes"), "{text}");
    let (code, text) = up.client(&["dead-letter", "retry", "--class=unknown", "--yes"]);
    assert!(code == Some(0) && text.contains("tried again: 1"), "{text}");
}
