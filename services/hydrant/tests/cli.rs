//! The command line as people meet it: help, mistakes, and what a missing server looks like.

// Helpers of tests fail by panicking, as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

use assert_cmd::Command;
use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt as _, path::Path};

fn hydrant(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hydrant"));
    // Settings of whoever runs the tests are not theirs.
    let foreign = std::env::vars_os().map(|(name, _)| name).filter(|name| {
        let name = name.to_string_lossy();
        name.starts_with("HYDRANT_") || name.starts_with("OTEL_") || name.starts_with("AWS_")
    });
    for name in foreign {
        command.env_remove(name);
    }
    command.args(args);
    command
}

/// Runs it, and gives the exit code with what it wrote to both outputs.
fn run(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn help_teaches_flags_variables_and_examples() {
    for (args, expected) in [
        (&["--help"][..], &["hydrate", "dead-letter", "Examples:", "Exit codes"][..]),
        (
            &["up", "--help"],
            &["HYDRANT_DRAIN_DEADLINE", "such as `30s`", "--nats-server", "--data"],
        ),
        (&["frontend", "--help"], &["HYDRANT_NATS_URL", "--listen", "127.0.0.1:5000"]),
        (&["hydrate", "--help"], &["--platform", "--wait", "HYDRANT_SERVER"]),
        (&["rule", "set", "--help"], &["KEY=VALUE", "hydrant rule set lab fresh_for=10m"]),
        (&["tag", "--help"], &["refresh", "history", "freeze", "unfreeze", "rollback"]),
        (&["tag", "rollback", "--help"], &["--to", "--reason", "stays frozen", "unfreeze"]),
        (&["events", "--help"], &["--follow", "--since"]),
        (&["health", "--help"], &["--ready", "--wait", "HYDRANT_ADMIN"]),
    ] {
        let (code, text) = run(&mut hydrant(args));
        assert_eq!(code, Some(0), "{text}");
        for part in expected {
            assert!(text.contains(part), "{args:?} does not say {part:?}:\n{text}");
        }
    }
}

#[test]
fn help_shows_no_values_of_the_environment() {
    let mut command = hydrant(&["rule", "list", "--help"]);
    let (_, text) = run(command.env("HYDRANT_ADMIN_TOKEN", "hunter2-is-secret"));
    assert!(text.contains("HYDRANT_ADMIN_TOKEN") && !text.contains("hunter2"), "{text}");
}

#[test]
fn mistakes_name_the_flag_and_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let data = format!("--data={}", dir.path().display());
    for (args, code, expected) in [
        (&["frontend", &data][..], 1, "--nats-url is missing"),
        (&["up", &data, "--nats-url=http://x"], 1, "nats://host:4222"),
        (&["up", &data, "--store=gs://x"], 1, "s3://"),
        (&["up", &data, "--listen=9000"], 2, "127.0.0.1:5000"),
        (&["up", &data, "--config=/nowhere.toml"], 1, "/nowhere.toml, which does not exist"),
        (&["up", &data, "--nats-server=/nowhere/nats-server"], 1, "--nats-url"),
        (&["hydrate", "lab/app:1", "--platform=x"], 2, "os/architecture"),
        (&["apply", "-f", "/nowhere.toml"], 2, "cannot read /nowhere.toml"),
        (&["health", "--admin=127.0.0.1:1"], 1, "no answer from http://127.0.0.1:1/healthz"),
        (&["hydrte"], 2, "hydrate"),
    ] {
        let mut command = hydrant(args);
        command.env("HYDRANT_SERVER", "http://127.0.0.1:1");
        let (found, text) = run(&mut command);
        assert_eq!(found, Some(code), "{args:?}: {text}");
        assert!(text.contains(expected), "{args:?} does not say {expected:?}:\n{text}");
    }
}

#[test]
fn a_server_that_is_away_is_told_with_the_remedy_and_exit_code_3() {
    for args in
        [&["rule", "list"][..], &["hydrate", "lab/app:1"], &["events"], &["dead-letter", "list"]]
    {
        let mut command = hydrant(args);
        let (code, text) = run(command.env("HYDRANT_SERVER", "http://127.0.0.1:1"));
        assert_eq!(code, Some(3), "{args:?}: {text}");
        assert!(text.contains("hydrant up") && text.contains("--server"), "{text}");
    }
}

#[test]
fn a_wrong_file_is_told_with_key_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("hydrant.toml");
    fs::write(&file, "[[rule]]\nname = 'lab'\ndownstreem = 'lab/*'\nupstream = 'lab'\n").unwrap();
    let (code, text) = run(&mut hydrant(&["apply", "-f", file.to_str().unwrap()]));
    assert_eq!(code, Some(2), "{text}");
    for part in ["hydrant.toml", "line 3", "downstreem"] {
        assert!(text.contains(part), "{text}");
    }
    let data = format!("--data={}", dir.path().display());
    let config = format!("--config={}", file.display());
    let nats = fake_nats(dir.path(), "2.15.1");
    let (code, text) = run(&mut hydrant(&[
        "up",
        &data,
        &config,
        "--listen=127.0.0.1:0",
        "--admin=127.0.0.1:0",
        "--nats-url=nats://127.0.0.1:1",
        &format!("--nats-server={nats}"),
    ]));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("line 3") && text.contains("nothing was started"), "{text}");
}

#[test]
fn a_wrong_file_is_told_before_anything_is_started() {
    let dir = tempfile::tempdir().unwrap();
    let (file, data) = (dir.path().join("hydrant.toml"), dir.path().join("data"));
    fs::write(&file, "[[rule]]\nname = 'lab'\n").unwrap();
    let (code, text) = run(&mut hydrant(&[
        "up",
        &format!("--data={}", data.display()),
        &format!("--config={}", file.display()),
        "--listen=127.0.0.1:0",
        "--admin=127.0.0.1:0",
        &format!("--nats-server={}", fake_nats(dir.path(), "2.15.1")),
    ]));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("nothing was started") && !text.contains("panicked"), "{text}");
    assert!(!data.exists(), "a nats-server was set up");
}

#[test]
fn an_old_or_missing_nats_server_is_told_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let data = format!("--data={}", dir.path().display());
    let old = format!("--nats-server={}", fake_nats(dir.path(), "2.9.10"));
    let (code, text) = run(&mut hydrant(&["up", &data, &old]));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("2.9.10") && text.contains("2.11"), "{text}");
    let (code, text) = run(hydrant(&["up", &data]).env("PATH", "/nowhere"));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("none on PATH") && text.contains("--nats-server"), "{text}");
}

#[test]
fn a_taken_port_is_told_with_its_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("--admin={}", taken.local_addr().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let data = format!("--data={}", dir.path().display());
    let args = ["importer", &data, &address, "--nats-url=nats://127.0.0.1:1"];
    let (code, text) = run(&mut hydrant(&args));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("(--admin)") && text.contains("give another address"), "{text}");
    assert_eq!(text.matches("in use").count(), 1, "the cause is told once: {text}");
}

#[test]
fn a_placeholder_for_a_token_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = format!("--data={}", dir.path().display());
    let mut command = hydrant(&["control", &data, "--nats-url=nats://127.0.0.1:1"]);
    let (code, text) = run(command.env("HYDRANT_ADMIN_TOKEN", "changeme"));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("HYDRANT_ADMIN_TOKEN is a placeholder"), "{text}");
}

/// A program that says it is a nats-server of that version.
fn fake_nats(dir: &Path, version: &str) -> String {
    let file = dir.join(format!("nats-server-{version}"));
    fs::write(&file, format!("#!/bin/sh\necho nats-server: v{version}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file.to_str().unwrap().to_owned()
}
