//! The demo as people run it, without a terminal.

// Test helpers fail by panicking, as tests do.
#![allow(clippy::unwrap_used)]

use hydrant_testkit::{Finished, Process, binaries, process::SIGINT, until};
use std::{env, fs, path::Path, time::Duration};

/// The demo takes ten seconds; a busy machine may take longer.
const LIMIT: Duration = Duration::from_secs(150);

fn demo(directory: &Path, hydrant: &Path) -> Process {
    let mut demo = Process::new("demo", env!("CARGO_BIN_EXE_hydrant-demo"), directory);
    demo.arg("--hydrant").arg(hydrant);
    demo.arg("--nats-server").arg(binaries::find("nats-server"));
    // What it leaves behind, it leaves here.
    let temporary = directory.join("tmp");
    fs::create_dir(&temporary).unwrap();
    demo.env("TMPDIR", temporary);
    demo
}

fn succeeded(finished: Finished, directory: &Path, client: &str) {
    let text = finished.success().text();
    assert!(text.contains("amplification 1.00: "), "{text}");
    assert!(text.contains(client) && !text.contains('✗') && !text.contains('\x1b'), "{text}");
    nothing_left(directory);
}

/// No file of the demo, and no process that names its directory.
fn nothing_left(directory: &Path) {
    let left: Vec<_> = fs::read_dir(directory.join("tmp")).unwrap().flatten().collect();
    let left: Vec<_> =
        left.iter().map(|e| e.file_name()).filter(|n| n != "hydrant-testkit-ports").collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(processes_of(directory), [""; 0]);
}

/// Command lines of running processes that name `directory`.
fn processes_of(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(directory.to_str().unwrap()) {
            found.push(line);
        }
    }
    found
}

#[tokio::test]
async fn the_demo_succeeds_with_skopeo() {
    let directory = tempfile::tempdir().unwrap();
    let demo = demo(directory.path(), &binaries::hydrant());
    succeeded(demo.run(LIMIT).await, directory.path(), "skopeo, linux/amd64: 4 blobs");
}

#[tokio::test]
async fn the_demo_succeeds_where_there_is_no_skopeo() {
    let directory = tempfile::tempdir().unwrap();
    let mut demo = demo(directory.path(), &binaries::hydrant());
    demo.env("PATH", "");
    succeeded(demo.run(LIMIT).await, directory.path(), "own client, linux/amd64: 4 blobs");
}

#[tokio::test]
async fn a_hydrant_that_does_not_start_is_told_and_is_a_failure() {
    let directory = tempfile::tempdir().unwrap();
    let finished = demo(directory.path(), Path::new("/bin/false")).run(LIMIT).await;
    assert_eq!(finished.status.code(), Some(1));
    assert!(finished.text().contains("✗ hydrant: hydrant ended by itself"), "{}", finished.text());
    nothing_left(directory.path());
}

#[tokio::test]
async fn an_interrupted_demo_leaves_nothing_running() {
    let directory = tempfile::tempdir().unwrap();
    let mut demo = demo(directory.path(), &binaries::hydrant());
    demo.spawn();
    demo.logged("✓ hydrant ", LIMIT).await;
    until("a nats-server", LIMIT, async || {
        processes_of(directory.path())
            .iter()
            .any(|line| line.contains("nats-server -c"))
            .then_some(())
    })
    .await;
    demo.signal(SIGINT);
    assert_eq!(demo.wait(LIMIT).await.code(), Some(130));
    nothing_left(directory.path());
}
