//! The Helm chart: valid for Helm, for Kubernetes and for hydrant, and clear about what is missing.

use crate::{
    rendered::{Rendered, SETS, checked, labels, selects, set, with_values},
    typed::compiled,
};
use hydrant_proto::{Lane, subject};
use hydrant_rules::{Platforms, Resources, Table};
use serde_json::Value;
use std::path::Path;

#[tokio::test]
async fn every_value_set_lints_and_every_object_fits_kubernetes() {
    for name in SETS {
        let Some(rendered) = checked(name).await else { return };
        assert_eq!(rendered.refused, None, "{name}");
        assert!(rendered.lint.is_empty(), "{name}: {:#?}", rendered.lint);
        assert!(rendered.problems.is_empty(), "{name}: {:#?}", rendered.problems);
        assert!(rendered.objects.len() > 15, "{name}: only {} objects", rendered.objects.len());
        assert!(rendered.notes.contains("hydrant status"), "{}", rendered.notes);
    }
}

/// Objects of KEDA and the Prometheus operator, as literals of the types made from their CRDs.
#[tokio::test]
async fn objects_of_operators_fit_their_types() {
    let Some(rendered) = set("fleet").await else { return };
    let packages = ["@kubernetes-models/keda", "@kubernetes-models/prometheus-operator"];
    let source = typescript(&rendered);
    let Some(checked) = compiled(&source, &packages, "objects of operators").await else { return };
    assert!(checked.status.success(), "{}", checked.text());
}

fn typescript(rendered: &Rendered) -> String {
    let mut text = String::from(
        "import type { IScaledObject } from \"@kubernetes-models/keda/keda.sh/v1alpha1\";\n\
         import type { IServiceMonitor, IPrometheusRule } from \
         \"@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1\";\n",
    );
    for kind in ["ScaledObject", "ServiceMonitor", "PrometheusRule"] {
        let objects: Vec<_> = rendered.of_kind(kind).collect();
        assert!(!objects.is_empty(), "no {kind}");
        for (index, object) in objects.iter().enumerate() {
            text.push_str(&format!("export const x{kind}{index}: I{kind} = {object:#};\n"));
        }
    }
    text
}

#[tokio::test]
async fn what_is_missing_or_misspelt_is_refused_with_a_remedy() {
    const IMAGE: &str = "image: {repository: r.example/hydrant}\n";
    for (values, expected) in [
        (String::new(), "image.repository is empty: build deploy/Dockerfile"),
        (IMAGE.to_owned(), "nats.url is empty: name your NATS"),
        (format!("{IMAGE}nats: {{url: 'nats://n:4222'}}"), "store.bucket is empty"),
        (format!("{IMAGE}nats: {{url: 'nats://u:p@n:4222'}}"), "/nats/url"),
        (format!("{IMAGE}frontend: {{replica: 3}}"), "replica"),
        (format!("{IMAGE}nats: {{replicas: 2}}"), "/nats/replicas"),
        (format!("{IMAGE}disruptionBudget: {{maxUnavailable: 0}}"), "/maxUnavailable"),
        (format!("{IMAGE}disruptionBudget: {{maxUnavailable: '0%'}}"), "/maxUnavailable"),
        (
            format!(
                "{IMAGE}nats: {{url: 'nats://n:4222'}}\nstore: {{bucket: images}}\n\
                 importer: {{keda: {{enabled: true}}}}"
            ),
            "nats.monitoring is empty",
        ),
    ] {
        let Some(rendered) = with_values(&values).await else { return };
        let why = rendered.refused.unwrap_or_else(|| panic!("{values} was accepted"));
        assert!(why.contains(expected), "{values}\nwas refused with: {why}");
    }
}

/// The configuration becomes a ConfigMap, which is no place for a secret.
#[tokio::test]
async fn secrets_are_taken_by_reference_alone() {
    let base = "image: {repository: r.example/hydrant}\nnats: {url: 'nats://n:4222'}\n\
                store: {bucket: images}\nconfig: ";
    let credential = |user: &str, password: &str| {
        format!("{base}{{credential: [{{name: hub, username: {user}, password: {password}}}]}}")
    };
    let webhook = |url: &str, secret: &str| {
        format!("{base}{{webhook: [{{name: ci, url: '{url}', secret: {secret}}}]}}")
    };
    let upstream = |url: &str| format!("{base}{{upstream: [{{name: hub, endpoint: '{url}'}}]}}");
    for (values, refused) in [
        (credential("{env: U}", "hunter2"), Some("credential/0/password")),
        (credential("bob", "{env: P}"), Some("credential/0/username")),
        (credential("{env: U}", "{env: P, file: /p}"), Some("credential/0/password")),
        (credential("{env: U}", "{value: hunter2}"), Some("credential/0/password")),
        (credential("{env: U}", "{}"), Some("credential/0/password")),
        (credential("{env: U}", "{file: /p}"), None),
        (webhook("https://ci.example/hook", "whsec_c2VjcmV0"), Some("webhook/0/secret")),
        (webhook("https://u:p@ci.example/hook", "{env: S}"), Some("webhook/0/url")),
        (webhook("https://ci.example/hook", "{env: S}"), None),
        (upstream("https://u:p@hub.example"), Some("upstream/0/endpoint")),
        (upstream("https://hub.example:5000"), None),
    ] {
        let Some(rendered) = with_values(&values).await else { return };
        match refused {
            Some(place) => {
                let why = rendered.refused.unwrap_or_else(|| panic!("{values} was accepted"));
                assert!(why.contains(place), "{values}\nwas refused with: {why}");
            }
            None => assert_eq!(rendered.refused, None, "{values}"),
        }
    }
}

#[tokio::test]
async fn frontends_may_scale_by_more_than_their_cpu() {
    let Some(rendered) = set("fleet").await else { return };
    let metrics = &rendered.named("HorizontalPodAutoscaler", "hydrant-frontend")["spec"]["metrics"];
    assert_eq!(metrics[0]["resource"]["name"], "cpu");
    let more = &metrics[1]["pods"]["metric"]["name"];
    assert_eq!(more, "hydrant_pull_served_bytes_per_second");
}

#[tokio::test]
async fn the_configuration_is_one_that_hydrant_accepts_and_means() {
    for name in SETS {
        let Some(rendered) = set(name).await else { return };
        let resources = Resources::from_toml(rendered.resources(), Path::new("/etc/hydrant"));
        let table = Table::compile(resources.unwrap_or_else(|p| panic!("{name}: {p}"))).unwrap();
        if name == "fleet" {
            let resources = table.resources();
            assert_eq!(resources.upstream[0].concurrency, 32);
            assert_eq!(resources.upstream[0].quota_reserve, Some(20));
            assert_eq!(resources.rule[0].tags.len(), 2);
            assert!(
                matches!(&resources.rule[0].platforms, Platforms::These(two) if two.len() == 2)
            );
            assert_eq!(resources.rule[0].fresh_for.to_string(), "10m");
            assert_eq!(resources.webhook[0].events, ["image.hydrated"]);
        }
    }
}

#[tokio::test]
async fn the_scaler_asks_for_the_consumers_that_importers_have() {
    let Some(rendered) = set("fleet").await else { return };
    let scaled = rendered.named("ScaledObject", "hydrant-importer");
    let triggers = scaled["spec"]["triggers"].as_array().unwrap();
    for upstream in ["docker", "lab", "made-by-hand"] {
        for lane in Lane::ALL {
            let consumer = subject::job_consumer(upstream, lane);
            let found = triggers.iter().find(|t| t["metadata"]["consumer"] == *consumer);
            let found = found.unwrap_or_else(|| panic!("no trigger for {consumer}"));
            assert_eq!(found["metadata"]["stream"], subject::JOBS_STREAM);
        }
    }
    assert_eq!(scaled["spec"]["minReplicaCount"], 0);
    assert!(triggers.iter().any(|t| t["type"] == "cron"), "nobody would sweep");
    assert!(rendered.named("Deployment", "hydrant-importer")["spec"].get("replicas").is_none());
    assert_eq!(scaled["spec"]["pollingInterval"], 10);
}

/// KEDA warns of them where they mean nothing.
#[tokio::test]
async fn a_scaler_that_never_reaches_zero_says_nothing_of_the_way_there() {
    let values = "image: {repository: r.example/hydrant}\nnats: {url: 'nats://n:4222', monitoring: \
                  'n:8222'}\nstore: {bucket: images}\nimporter: {keda: {enabled: true}}";
    let Some(rendered) = with_values(values).await else { return };
    let spec = &rendered.named("ScaledObject", "hydrant-importer")["spec"];
    assert_eq!(spec["minReplicaCount"], 1);
    for key in ["pollingInterval", "cooldownPeriod"] {
        assert!(spec.get(key).is_none(), "{key}");
    }
}

/// Helm deletes hooks that succeeded, and leaves the others alone even when it uninstalls.
#[tokio::test]
async fn a_hook_job_that_failed_goes_by_itself() {
    let Some(rendered) = set("trial").await else { return };
    let lives = &rendered.named("Job", "hydrant-apply")["spec"]["ttlSecondsAfterFinished"];
    assert!(lives.as_u64().is_some_and(|seconds| seconds > 0), "{lives}");
}

#[tokio::test]
async fn services_lead_to_pods_and_ports_that_there_are() {
    for name in SETS {
        let Some(rendered) = set(name).await else { return };
        for service in rendered.of_kind("Service") {
            let selector = &service["spec"]["selector"];
            let pods = rendered.pods();
            let picked: Vec<_> =
                pods.iter().filter(|(_, pod)| selects(selector, &labels(pod))).collect();
            assert!(!picked.is_empty(), "{name}: nothing behind {}", service["metadata"]["name"]);
            for (owner, pod) in picked {
                for port in service["spec"]["ports"].as_array().unwrap() {
                    assert!(has_port(pod, &port["targetPort"]), "{owner} has no {port}");
                }
            }
        }
    }
}

fn has_port(pod: &Value, name: &Value) -> bool {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let mut ports = containers.flat_map(|c| c["ports"].as_array().into_iter().flatten());
    ports.any(|port| port["name"] == *name)
}
