//! The systemd units: understood by systemd, strict, and with the variables hydrant knows.

use crate::tools::{deploy, run_in, tool};
use hydrant_testkit::binaries;
use std::{collections::BTreeSet, fs};

const UNITS: [&str; 5] = [
    "hydrant.service",
    "hydrant@frontend.service",
    "hydrant@importer.service",
    "hydrant@notifier.service",
    "hydrant@control.service",
];

#[tokio::test]
async fn systemd_takes_every_unit_and_finds_little_to_warn_of() {
    let Some(analyze) = tool("systemd-analyze", "the systemd units") else { return };
    let directory = tempfile::tempdir().unwrap();
    for unit in UNITS {
        let file = if unit.contains('@') { "hydrant@.service" } else { unit };
        let text = fs::read_to_string(deploy("systemd").join(file)).unwrap();
        let installed = binaries::hydrant();
        let text = text.replace("/usr/local/bin/hydrant", &installed.to_string_lossy());
        fs::write(directory.path().join(unit), text).unwrap();
    }
    for unit in UNITS {
        let path = format!("./{unit}");
        let verified = run_in(directory.path(), &analyze, ["verify", "--man=no", &path]).await;
        let told = verified.text() + &verified.stderr;
        assert!(verified.status.success() && !told.contains("hydrant"), "{unit}: {told}");
        // 0 is nothing exposed, 10 everything.
        let args = ["security", "--offline=true", "--threshold=20", &path];
        let judged = run_in(directory.path(), &analyze, args).await;
        assert!(judged.status.success(), "{unit}: {}{}", judged.text(), judged.stderr);
    }
}

#[tokio::test]
async fn the_variables_are_hydrants_and_the_ports_differ() {
    let directory = tempfile::tempdir().unwrap();
    let help = run_in(directory.path(), &binaries::hydrant(), ["frontend", "--help"]).await;
    let known = help.success().text() + "HYDRANT_ADMIN_TOKEN";
    let mut admins = BTreeSet::new();
    for role in ["hydrant", "frontend", "importer", "notifier", "control"] {
        let text = fs::read_to_string(deploy("systemd/etc").join(format!("{role}.env"))).unwrap();
        for line in text.lines().map(|line| line.trim_start_matches('#')) {
            let Some((name, value)) = line.split_once('=') else { continue };
            if name.starts_with("HYDRANT_") {
                assert!(known.contains(name), "{role}.env sets {name}");
            }
            if name == "HYDRANT_ADMIN" {
                assert!(admins.insert(value.to_owned()), "{value} is given twice");
            }
        }
    }
    assert_eq!(admins.len(), 4);
}
