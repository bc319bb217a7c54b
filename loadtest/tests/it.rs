//! The load test as people run it, without a terminal and without an opinion on time.

// Test helpers fail by panicking, as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

use hydrant_testkit::{Process, binaries, process::SIGINT};
use serde_json::Value;
use std::{fs, path::Path, time::Duration};

/// The smoke takes a quarter of a minute; a busy machine may take longer.
const LIMIT: Duration = Duration::from_secs(170);

fn loadtest(directory: &Path, arguments: &[&str]) -> Process {
    let mut loadtest = Process::new("loadtest", env!("CARGO_BIN_EXE_hydrant-loadtest"), directory);
    loadtest.args(arguments).arg("--out").arg(directory.join("report"));
    // What is set here does not reach it otherwise, and what it leaves behind, it leaves here.
    loadtest.env("HYDRANT_BIN", binaries::hydrant());
    let temporary = directory.join("tmp");
    fs::create_dir_all(&temporary).unwrap();
    loadtest.env("TMPDIR", temporary);
    loadtest
}

fn report(directory: &Path) -> Value {
    let page = fs::read_to_string(directory.join("report/report.html")).unwrap();
    assert!(page.ends_with("</html>\n") && !page.contains("NaN"));
    serde_json::from_slice(&fs::read(directory.join("report/report.json")).unwrap()).unwrap()
}

/// No file of the run, and no process that names its directory.
fn nothing_left(directory: &Path) {
    let temporary = directory.join("tmp");
    assert_eq!(processes_of(&temporary), [""; 0]);
    let left = fs::read_dir(temporary).unwrap().flatten();
    let left: Vec<_> = left
        .map(|entry| entry.file_name())
        .filter(|name| name != "hydrant-testkit-ports")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

fn processes_of(directory: &Path) -> Vec<String> {
    let lines = fs::read_dir("/proc").unwrap().flatten().map(|process| {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ")
    });
    lines.filter(|line| line.contains(directory.to_str().unwrap())).collect()
}

/// The value of the first trial of a contestant.
fn measured(report: &Value, part: &str, contestant: &str, metric: &str) -> f64 {
    let parts = report["scenarios"][0]["parts"].as_array().unwrap();
    let part = parts.iter().find(|found| found["name"] == part).unwrap();
    let trials = part["trials"].as_array().unwrap();
    let trial = trials.iter().find(|trial| trial["contestant"] == contestant).unwrap();
    trial["outcome"]["measured"][metric].as_f64().unwrap_or_else(|| panic!("{trial}"))
}

#[tokio::test]
async fn the_smoke_counts_one_upstream_read_and_no_error() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["smoke", "--effort", "smoke", "--no-peers"];
    let finished = loadtest(directory.path(), &arguments).run(LIMIT).await;
    assert!(finished.status.success(), "{}{}", finished.text(), finished.stderr);
    let report = report(directory.path());
    assert_eq!(report["scenarios"][0]["ended"], "complete");
    let count = |part, metric| measured(&report, part, "hydrant", metric);
    assert_eq!(count("herd", "most_gets"), 1.0);
    assert!((count("herd", "amplification") - 1.0).abs() < 0.01);
    for (part, metric) in [
        ("herd", "errors"),
        ("warm", "errors"),
        ("warm", "upstream_requests"),
        ("webhooks", "errors"),
    ] {
        assert_eq!(count(part, metric), 0.0, "{part} {metric}");
    }
    nothing_left(directory.path());
}

#[tokio::test]
async fn an_interrupted_run_reports_what_it_has_and_leaves_nothing_running() {
    let directory = tempfile::tempdir().unwrap();
    let mut loadtest =
        loadtest(directory.path(), &["smoke", "warm", "--effort", "smoke", "--no-s3"]);
    loadtest.spawn();
    // The first contestant is measured by then, and the second is under way.
    loadtest.logged("round 1 of 1, nginx cache", LIMIT).await;
    loadtest.signal(SIGINT);
    assert_eq!(loadtest.wait(LIMIT).await.code(), Some(130));
    let report = report(directory.path());
    assert_eq!(report["scenarios"][0]["ended"], "interrupted");
    assert!(measured(&report, "herd", "hydrant", "amplification") > 0.0);
    assert!(report["scenarios"].get(1).is_none());
    nothing_left(directory.path());
}

#[tokio::test]
async fn a_peer_that_does_not_start_says_why_and_the_others_are_measured() {
    let directory = tempfile::tempdir().unwrap();
    let mut loadtest = loadtest(directory.path(), &["cold", "--effort", "smoke", "--no-s3"]);
    loadtest.env("HYDRANT_DOCKER_REGISTRY", "/bin/false");
    let finished = loadtest.run(LIMIT).await;
    assert!(finished.status.success(), "{}", finished.stderr);
    let text = finished.text();
    assert!(
        text.contains("docker-registry proxy failed: docker-registry ended by itself"),
        "{text}"
    );
    let report = report(directory.path());
    let part = "small image, 20 ms";
    assert!(measured(&report, part, "direct", "wall") > 0.0);
    assert!(measured(&report, part, "hydrant", "wall") > 0.0);
}
