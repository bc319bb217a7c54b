//! The alerts: taken by Prometheus, raised by the trouble they are for and by nothing else, and each
//! with a runbook.

use crate::tools::{deploy, run, run_in, tool};
use hydrant_testkit::binaries::workspace_root;
use std::{collections::BTreeSet, fs};

#[tokio::test]
async fn prometheus_takes_the_rules() {
    let Some(promtool) = tool("promtool", "the alerts") else { return };
    let file = deploy("helm/hydrant/alerts.yaml");
    let checked = run(&promtool, ["check".as_ref(), "rules".as_ref(), file.as_os_str()]).await;
    assert!(checked.status.success(), "{}{}", checked.text(), checked.stderr);
}

#[tokio::test]
async fn alerts_are_raised_by_their_trouble_and_by_nothing_else() {
    let Some(promtool) = tool("promtool", "the alerts") else { return };
    let directory = tempfile::tempdir().unwrap();
    let cases = workspace_root().join("tests/deploy/alerts.yaml");
    fs::copy(deploy("helm/hydrant/alerts.yaml"), directory.path().join("rules.yaml")).unwrap();
    fs::copy(&cases, directory.path().join("cases.yaml")).unwrap();
    let tested = run_in(directory.path(), &promtool, ["test", "rules", "cases.yaml"]).await;
    assert!(tested.status.success(), "{}{}", tested.text(), tested.stderr);
    let cases = fs::read_to_string(cases).unwrap();
    for alert in alerts() {
        let raised = cases.lines().any(|line| {
            line.contains(&format!("alertname: {alert},")) && !line.contains("exp_alerts: []")
        });
        assert!(raised, "no case raises {alert}");
    }
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let text = fs::read_to_string(workspace_root().join("docs/runbooks.md")).unwrap();
    let sections: BTreeSet<_> =
        text.lines().filter_map(|line| line.strip_prefix("## ")).map(str::to_owned).collect();
    assert_eq!(sections, alerts());
}

fn alerts() -> BTreeSet<String> {
    let text = fs::read_to_string(deploy("helm/hydrant/alerts.yaml")).unwrap();
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    names.map(str::to_owned).collect()
}
