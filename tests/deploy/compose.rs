//! The compose file, as Docker Compose understands it, and the files it hands to its services.

use crate::{
    chart_pods::assert_known,
    tools::{deploy, run, run_in, tool},
};
use hydrant_rules::{Resources, Table};
use hydrant_testkit::{Process, binaries};
use serde_json::{Map, Value};
use std::{fs, time::Duration};

/// The services, as Compose resolves them; `None` where it is not installed.
pub async fn services() -> Option<Map<String, Value>> {
    let compose = tool("docker-compose", "the compose file")?;
    let file = deploy("compose.yaml");
    let args = ["-f".as_ref(), file.as_os_str(), "config".as_ref(), "--format=json".as_ref()];
    let told = run(&compose, args).await.success();
    let resolved: Value = serde_json::from_slice(&told.stdout).expect("compose prints JSON");
    Some(resolved["services"].as_object().expect("there are services").clone())
}

#[tokio::test]
async fn every_service_has_a_health_check_and_waits_for_what_it_needs() {
    let Some(services) = services().await else { return };
    for (name, service) in &services {
        let checked = service["healthcheck"]["test"].is_array();
        assert!(checked || ends(service), "{name} has no health check");
        for (needed, how) in service["depends_on"].as_object().into_iter().flatten() {
            let condition = match ends(&services[needed]) {
                true => "service_completed_successfully",
                false => "service_healthy",
            };
            assert_eq!(how["condition"], condition, "{name} needs {needed}");
        }
        // To `up --wait` one that ends has failed, unless somebody waits for its end.
        let mut others = services.values();
        assert!(!ends(service) || others.any(|other| waits(other, name)), "{name} ends");
    }
    for role in ["frontend-1", "frontend-2", "importer", "notifier", "control"] {
        let needs = services[role]["depends_on"].as_object().unwrap();
        for server in ["nats-1", "nats-2", "nats-3", "seaweedfs"] {
            assert!(needs.contains_key(server), "{role} does not wait for {server}");
        }
    }
    assert_eq!(services["importer"]["deploy"]["replicas"], 3);
}

/// Whether a service is one that does its work and ends.
fn ends(service: &Value) -> bool {
    matches!(service["restart"].as_str(), None | Some("no" | "on-failure"))
}

fn waits(service: &Value, one: &str) -> bool {
    service["depends_on"].get(one).is_some()
}

/// The collector's image holds no program that could ask; see the comment in the compose file.
#[tokio::test]
async fn the_collector_asks_itself_at_the_address_where_it_answers() {
    let Some(services) = services().await else { return };
    let test = services["otel-collector"]["healthcheck"]["test"].to_string();
    let config = fs::read_to_string(deploy("compose/otel-collector.yaml")).unwrap();
    assert!(config.contains("endpoint: \"127.0.0.1:13133\", path: /healthz"), "{config}");
    assert!(config.contains("response_body: {healthy: \"{}\"}"), "{config}");
    assert!(test.contains("--config=http://127.0.0.1:13133/healthz"), "{test}");
}

#[tokio::test]
async fn hydrant_runs_without_privileges_and_nothing_is_published_to_the_network() {
    let Some(services) = services().await else { return };
    for (name, service) in &services {
        for port in service["ports"].as_array().into_iter().flatten() {
            assert_eq!(port["host_ip"], "127.0.0.1", "{name}");
        }
        let image = service["image"].as_str().unwrap_or_default();
        if !image.starts_with("hydrant:") {
            assert!(image.contains(':'), "{name}: an image without a version");
            continue;
        }
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(service["cap_drop"], serde_json::json!(["ALL"]), "{name}");
        let variables = &service["environment"];
        let url = variables["HYDRANT_NATS_URL"].as_str().unwrap_or("nats-1,nats-2,nats-3");
        assert_eq!(url.split(',').count(), 3, "{name}");
    }
}

#[test]
fn the_resources_are_valid() {
    let text = fs::read_to_string(deploy("compose/hydrant.toml")).unwrap();
    let resources = Resources::from_toml(&text, &deploy("compose")).unwrap();
    let table = Table::compile(resources).unwrap();
    assert_eq!(table.resources().webhook.len(), 1);
    assert!(table.resources().rule.len() >= 7);
}

#[tokio::test]
async fn nats_takes_its_configuration_on_every_node_and_syncs_its_writes() {
    let config = deploy("compose/nats.conf");
    for node in ["nats-1", "nats-2", "nats-3"] {
        let directory = tempfile::tempdir().unwrap();
        let mut nats = Process::new(node, binaries::find("nats-server"), directory.path());
        nats.arg("-t").arg("-c").arg(&config).env("NATS_NAME", node);
        nats.run(Duration::from_secs(30)).await.success();
    }
    assert!(fs::read_to_string(config).unwrap().contains("sync_interval: always"));
}

#[tokio::test]
async fn the_balancer_takes_its_configuration() {
    let Some(haproxy) = tool("haproxy", "the balancer of compose") else { return };
    let config = deploy("compose/haproxy.cfg");
    run(&haproxy, ["-c".as_ref(), "-f".as_ref(), config.as_os_str()]).await.success();
}

#[tokio::test]
async fn prometheus_takes_its_configuration() {
    let Some(promtool) = tool("promtool", "Prometheus's configuration") else { return };
    let directory = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(deploy("compose/prometheus.yml")).unwrap();
    fs::copy(deploy("helm/hydrant/alerts.yaml"), directory.path().join("alerts.yaml")).unwrap();
    let text = text.replace("/etc/prometheus/", "");
    fs::write(directory.path().join("prometheus.yml"), text).unwrap();
    let checked = run_in(directory.path(), &promtool, ["check", "config", "prometheus.yml"]).await;
    assert!(checked.status.success(), "{}{}", checked.text(), checked.stderr);
}

#[tokio::test]
async fn every_variable_is_one_that_the_role_reads() {
    let Some(services) = services().await else { return };
    for service in ["control", "importer", "notifier", "frontend-1"] {
        let role = services[service]["command"][0].as_str().unwrap();
        let names: Vec<_> = services[service]["environment"].as_object().unwrap().keys().collect();
        let ours = names.into_iter().filter(|name| name.starts_with("HYDRANT_"));
        assert_known(role, ours).await;
    }
}
