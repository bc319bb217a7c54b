//! The pods of the chart: as Pod Security's `restricted` wants them, probed, drained, without
//! secrets in the clear.

use crate::{
    rendered::{Rendered, SETS, containers, set, variables, with_values},
    tools::run,
};
use hydrant_testkit::binaries;
use serde_json::{Value, json};

/// What `restricted` asks of every pod and container (kubernetes.io, Pod Security Standards), and a
/// read-only root on top.
#[tokio::test]
async fn every_pod_is_let_into_a_restricted_namespace() {
    for name in SETS {
        let Some(rendered) = set(name).await else { return };
        for (owner, pod) in rendered.pods() {
            let spec = &pod["spec"];
            assert_eq!(spec["securityContext"]["runAsNonRoot"], true, "{owner}");
            assert!(spec["securityContext"]["runAsUser"].as_u64() > Some(0), "{owner}");
            let seccomp = &spec["securityContext"]["seccompProfile"]["type"];
            assert_eq!(seccomp, "RuntimeDefault", "{owner}");
            for host in ["hostNetwork", "hostPID", "hostIPC"] {
                assert!(spec.get(host).is_none(), "{owner}");
            }
            assert_eq!(spec["automountServiceAccountToken"], false, "{owner}");
            for container in containers(pod) {
                let security = &container["securityContext"];
                assert_eq!(security["allowPrivilegeEscalation"], false, "{owner}");
                assert_eq!(security["readOnlyRootFilesystem"], true, "{owner}");
                assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}), "{owner}");
                assert!(container["resources"]["limits"]["memory"].is_string(), "{owner}");
                let ports = container["ports"].as_array().into_iter().flatten();
                assert!(ports.clone().all(|port| port.get("hostPort").is_none()), "{owner}");
            }
            for volume in spec["volumes"].as_array().into_iter().flatten() {
                let kinds = ["emptyDir", "configMap", "secret", "projected"];
                assert!(kinds.iter().any(|kind| volume.get(kind).is_some()), "{owner}: {volume}");
            }
        }
    }
}

#[tokio::test]
async fn roles_are_probed_where_they_answer_and_have_the_time_to_drain() {
    for name in SETS {
        let Some(rendered) = set(name).await else { return };
        for role in ["frontend", "importer", "notifier", "control"] {
            let pod = rendered.pod(role);
            let container = &pod["spec"]["containers"][0];
            let variables = variables(container);
            for (probe, path) in [
                ("startupProbe", "/healthz"),
                ("livenessProbe", "/healthz"),
                ("readinessProbe", "/readyz"),
            ] {
                let asked = &container[probe]["httpGet"];
                assert_eq!((&asked["path"], &asked["port"]), (&json!(path), &json!("admin")));
            }
            let admin =
                container["ports"].as_array().unwrap().iter().find(|p| p["name"] == "admin");
            let port = admin.expect("a port to probe")["containerPort"].to_string();
            assert!(variables["HYDRANT_ADMIN"].ends_with(&format!(":{port}")));
            let grace = pod["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap();
            let seconds = |name: &str| -> u64 {
                variables[name].trim_end_matches('s').parse().expect("seconds")
            };
            // After the deadline up to 10 s to close and 5 s to send the last spans.
            let needed = seconds("HYDRANT_DRAIN_DELAY") + seconds("HYDRANT_DRAIN_DEADLINE") + 15;
            assert!(grace > needed, "{name}: {role} is killed after {grace} s of {needed} s");
            assert_eq!(container["args"], json!([role]));
        }
        let frontend = rendered.pod("frontend");
        let delay = &variables(&frontend["spec"]["containers"][0])["HYDRANT_DRAIN_DELAY"];
        assert_ne!(delay, "0s", "load balancers need time to see that it is not ready");
    }
}

/// Not needed, and there for who wants it; then the time is added to what the pod is given.
#[tokio::test]
async fn a_sleep_before_the_signal_is_given_its_time() {
    let values = |sleep: u32| {
        format!(
            "image: {{repository: r.example/hydrant}}\nnats: {{url: 'nats://n:4222'}}\n\
             store: {{bucket: images}}\npod: {{preStopSleep: {sleep}}}"
        )
    };
    let Some(without) = with_values(&values(0)).await else { return };
    let Some(with) = with_values(&values(7)).await else { return };
    for role in ["frontend", "importer", "notifier", "control"] {
        let spec = |rendered: &Rendered| rendered.pod(role)["spec"].clone();
        let (without, with) = (spec(&without), spec(&with));
        assert!(without["containers"][0].get("lifecycle").is_none(), "{role}");
        let sleep = &with["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"];
        assert_eq!(sleep, 7, "{role}");
        let grace = |spec: &Value| spec["terminationGracePeriodSeconds"].as_u64().unwrap();
        assert_eq!(grace(&with), grace(&without) + 7, "{role}");
    }
}

/// A node for nothing but hydrant would otherwise have no place for the job that configures it.
#[tokio::test]
async fn the_hook_job_goes_where_the_other_pods_go() {
    let Some(rendered) = set("fleet").await else { return };
    let job = &rendered.named("Job", "hydrant-apply")["spec"]["template"]["spec"];
    let pod = &rendered.pod("control")["spec"];
    for key in ["priorityClassName", "nodeSelector", "tolerations", "affinity"] {
        assert!(!pod[key].is_null(), "{key}");
        assert_eq!(job[key], pod[key], "{key}");
    }
}

#[tokio::test]
async fn secrets_are_referred_to_and_never_written_out() {
    const SECRET: [&str; 3] = ["HYDRANT_ADMIN_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"];
    for name in SETS {
        let Some(rendered) = set(name).await else { return };
        for (owner, pod) in rendered.pods() {
            for container in containers(pod) {
                for entry in container["env"].as_array().into_iter().flatten() {
                    let is_secret = SECRET.iter().any(|secret| entry["name"] == *secret);
                    let refers = entry["valueFrom"]["secretKeyRef"]["name"].is_string();
                    assert!(!is_secret || refers, "{owner}: {}", entry["name"]);
                }
            }
        }
        let made = rendered.of_kind("Secret").count();
        assert_eq!(made, if name == "trial" { 2 } else { 0 }, "{name}");
    }
}

#[tokio::test]
async fn secrets_reach_only_the_roles_that_use_them() {
    let Some(rendered) = set("fleet").await else { return };
    let mounts = |role: &str, path: &str| {
        let container = &rendered.pod(role)["spec"]["containers"][0];
        let mounts = container["volumeMounts"].as_array().unwrap();
        mounts.iter().any(|mount: &Value| mount["mountPath"] == *path)
    };
    for (role, hub, hooks) in [
        ("frontend", true, false),
        ("importer", true, false),
        ("notifier", false, true),
        ("control", false, false),
    ] {
        assert_eq!(mounts(role, "/etc/hydrant/secrets/hub"), hub, "{role}");
        assert_eq!(mounts(role, "/etc/hydrant/secrets/hooks"), hooks, "{role}");
        let token = containers(rendered.pod(role))[0]["env"].as_array().unwrap().iter();
        let token = token.filter(|entry| entry["name"] == "HYDRANT_ADMIN_TOKEN").count();
        assert_eq!(token, usize::from(role == "control"), "{role}");
    }
}

#[tokio::test]
async fn every_role_has_a_budget_an_account_and_is_spread() {
    let Some(rendered) = set("aws").await else { return };
    for role in ["frontend", "importer", "notifier", "control"] {
        let name = format!("hydrant-{role}");
        let budget = &rendered.named("PodDisruptionBudget", &name)["spec"];
        assert_eq!(budget["maxUnavailable"], 1);
        let account = rendered.named("ServiceAccount", &name);
        let role_arn = &account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"];
        assert_eq!(role_arn, "arn:aws:iam::123456789012:role/hydrant");
        let pod = rendered.pod(role);
        assert_eq!(pod["spec"]["serviceAccountName"], name);
        assert_eq!(pod["spec"]["topologySpreadConstraints"].as_array().unwrap().len(), 2);
        let container = &pod["spec"]["containers"][0];
        assert!(container["image"].as_str().unwrap().contains("@sha256:"));
        assert!(!variables(container).contains_key("AWS_ENDPOINT_URL"), "it is AWS itself");
    }
}

/// A misspelt variable would be passed over without a word.
#[tokio::test]
async fn every_variable_is_one_that_the_role_reads() {
    let Some(rendered) = set("fleet").await else { return };
    for role in ["frontend", "importer", "notifier", "control"] {
        let container = &rendered.pod(role)["spec"]["containers"][0];
        let names = container["env"].as_array().unwrap().iter().map(|entry| entry["name"].clone());
        let names: Vec<_> = names.map(|name| name.as_str().unwrap().to_owned()).collect();
        let used = container["env"].to_string();
        let is_ours = |name: &&String| {
            // Some are there for others to refer to.
            name.starts_with("HYDRANT_") && !used.contains(&format!("$({name})"))
        };
        assert_known(role, names.iter().filter(is_ours)).await;
    }
}

/// Fails for a variable that the help of the role does not name.
pub async fn assert_known(role: &str, names: impl Iterator<Item = &String>) {
    let help = run(&binaries::hydrant(), [role, "--help"]).await.success().text();
    for name in names {
        let known = help.contains(&format!("[env: {name}]")) || name == "HYDRANT_ADMIN_TOKEN";
        assert!(known, "{role} does not read {name}");
    }
}
