//! The alerts: taken by Prometheus, raised by the trouble they are for and by nothing else, and each
//! with a runbook.

use crate::{
    rendered::{NAMESPACE, set},
    tools::{deploy, run, run_in, tool},
};
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

/// Each release brings its own rules, so they must not speak of another's.
#[tokio::test]
async fn the_charts_rules_speak_of_its_own_release_alone() {
    let Some(promtool) = tool("promtool", "the chart's alerts") else { return };
    let Some(rendered) = set("fleet").await else { return };
    let spec = &rendered.named("PrometheusRule", "hydrant")["spec"];
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("rules.yaml"), spec.to_string()).unwrap();
    run_in(directory.path(), &promtool, ["check", "rules", "rules.yaml"]).await.success();

    let ours = format!("{{namespace=\"{NAMESPACE}\",job=\"hydrant\"");
    let groups = spec["groups"].as_array().unwrap().iter();
    let rules: Vec<_> = groups.flat_map(|group| group["rules"].as_array().unwrap()).collect();
    assert!(rules.len() > 20, "{} rules", rules.len());
    for rule in rules {
        let expr = rule["expr"].as_str().unwrap();
        let selectors = expr.match_indices('{').count();
        assert!(selectors > 0 && selectors == expr.matches(&ours).count(), "{expr}");
        let named = ["up{", "hydrant_", "hydrant:"].map(|name| expr.matches(name).count());
        assert_eq!(named.iter().sum::<usize>(), selectors, "a metric of everybody's: {expr}");
    }
    let relabelled = rendered.named("ServiceMonitor", "hydrant").to_string();
    assert!(relabelled.contains(r#""targetLabel":"namespace""#), "{relabelled}");
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
