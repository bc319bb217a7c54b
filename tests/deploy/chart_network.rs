//! The chart's NetworkPolicies, evaluated: what has to get through does, and nothing else.

use crate::rendered::{NAMESPACE, Rendered, labels, map, selects, set, with_values};
use serde_json::{Value, json};
use std::{collections::BTreeMap, net::Ipv4Addr};

/// One end of a connection.
#[derive(Clone, Debug)]
enum Place {
    /// A pod of the release, by its component.
    Ours(String),
    /// A pod of another namespace.
    Elsewhere(&'static str),
    /// No pod: a node, or a host outside of the cluster.
    Address(Ipv4Addr),
}

fn ours(role: &str) -> Place {
    Place::Ours(role.to_owned())
}

const INTERNET: Place = Place::Address(Ipv4Addr::new(104, 18, 121, 25));
const NODE: Place = Place::Address(Ipv4Addr::new(10, 4, 0, 7));

/// Whether both ends let a connection through, as a network plugin decides it.
fn passes(rendered: &Rendered, from: &Place, to: &Place, protocol: &str, port: u16) -> bool {
    let out = allowed(rendered, from, "Egress", "egress", "to", to, protocol, &json!(port));
    let named = port_name(rendered, to, port).unwrap_or(json!(port));
    let into = allowed(rendered, to, "Ingress", "ingress", "from", from, protocol, &named);
    out && into
}

/// Policies speak of our ports by name.
fn port_name(rendered: &Rendered, place: &Place, port: u16) -> Option<Value> {
    let pod = pod(rendered, place)?;
    let ports = pod["spec"]["containers"][0]["ports"].as_array()?;
    ports.iter().find(|p| p["containerPort"] == port).map(|p| p["name"].clone())
}

fn pod<'a>(rendered: &'a Rendered, place: &Place) -> Option<&'a Value> {
    let Place::Ours(role) = place else { return None };
    let has = |pod: &Value| labels(pod)["app.kubernetes.io/component"] == *role;
    let found = rendered.pods().into_iter().find(|(_, pod)| has(pod));
    Some(found.unwrap_or_else(|| panic!("no pod of {role}")).1)
}

#[allow(clippy::too_many_arguments)]
fn allowed(
    rendered: &Rendered,
    end: &Place,
    kind: &str,
    rules: &str,
    side: &str,
    other: &Place,
    protocol: &str,
    port: &Value,
) -> bool {
    let Some(pod) = pod(rendered, end) else { return true };
    let labels = labels(pod);
    let concerns = |policy: &&Value| {
        let types = policy["spec"]["policyTypes"].as_array().unwrap();
        types.contains(&json!(kind))
            && selects(&policy["spec"]["podSelector"]["matchLabels"], &labels)
    };
    let policies: Vec<_> = rendered.of_kind("NetworkPolicy").filter(concerns).collect();
    let rules = policies.iter().flat_map(|p| p["spec"][rules].as_array().into_iter().flatten());
    let fits = |rule: &Value| {
        let ports = rule["ports"].as_array().unwrap();
        let port = ports.iter().any(|p| p["port"] == *port && p["protocol"] == protocol);
        let peers = rule[side].as_array();
        port && peers.is_none_or(|peers| peers.iter().any(|peer| is(rendered, other, peer)))
    };
    policies.is_empty() || rules.into_iter().any(fits)
}

/// Whether `place` is one of those a peer speaks of.
fn is(rendered: &Rendered, place: &Place, peer: &Value) -> bool {
    let (namespace, labels) = match place {
        Place::Address(address) => return in_block(*address, &peer["ipBlock"]["cidr"]),
        Place::Elsewhere(namespace) => (*namespace, BTreeMap::new()),
        Place::Ours(_) => (NAMESPACE, labels(pod(rendered, place).unwrap())),
    };
    let own = BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), namespace.to_owned())]);
    let there = match peer.get("namespaceSelector") {
        Some(selector) => selects(&selector["matchLabels"], &own),
        None => peer.get("podSelector").is_some() && namespace == NAMESPACE,
    };
    there && map(&peer["podSelector"]["matchLabels"]).iter().all(|(k, v)| labels.get(k) == Some(v))
}

fn in_block(address: Ipv4Addr, cidr: &Value) -> bool {
    let Some((network, bits)) = cidr.as_str().and_then(|cidr| cidr.split_once('/')) else {
        return false;
    };
    let network: Ipv4Addr = network.parse().unwrap();
    let shift = 32 - bits.parse::<u32>().unwrap();
    u32::from(address).checked_shr(shift).unwrap_or(0)
        == u32::from(network).checked_shr(shift).unwrap_or(0)
}

const ROLES: [&str; 4] = ["frontend", "importer", "notifier", "control"];

#[tokio::test]
async fn a_trial_is_closed_but_for_what_it_needs() {
    let Some(r) = set("trial").await else { return };
    for role in ROLES {
        let role = ours(role);
        assert!(passes(&r, &role, &Place::Elsewhere("kube-system"), "UDP", 53), "DNS of {role:?}");
        assert!(passes(&r, &role, &Place::Address([169, 254, 20, 10].into()), "UDP", 53));
        assert!(passes(&r, &role, &ours("nats"), "TCP", 4222), "NATS of {role:?}");
        assert!(passes(&r, &role, &ours("store"), "TCP", 8333), "the store of {role:?}");
        assert!(passes(&r, &Place::Elsewhere("monitoring"), &role, "TCP", 9464), "the scrape");
        assert!(!passes(&r, &NODE, &role, "TCP", 4222));
    }
    for (one, other) in
        [("frontend", "importer"), ("importer", "frontend"), ("frontend", "frontend")]
    {
        assert!(passes(&r, &ours(one), &ours(other), "TCP", 5001), "{one} reads from {other}");
    }
    for stranger in [ours("notifier"), ours("control"), Place::Elsewhere("monitoring"), NODE] {
        assert!(!passes(&r, &stranger, &ours("frontend"), "TCP", 5001), "{stranger:?}");
    }
    for role in ["frontend", "importer", "notifier"] {
        assert!(passes(&r, &ours(role), &INTERNET, "TCP", 443), "{role}");
        assert!(!passes(&r, &ours(role), &INTERNET, "TCP", 25), "{role}");
    }
    assert!(passes(&r, &NODE, &ours("frontend"), "TCP", 5000), "nodes pull");
    assert!(passes(&r, &ours("apply"), &ours("control"), "TCP", 9464), "the hook job");
    assert!(passes(&r, &ours("apply"), &Place::Elsewhere("kube-system"), "UDP", 53));
    assert!(passes(&r, &Place::Elsewhere("keda"), &ours("nats"), "TCP", 8222), "the scaler");
    assert!(!passes(&r, &ours("control"), &INTERNET, "TCP", 443), "control fetches nothing");
    assert!(!passes(&r, &ours("apply"), &INTERNET, "TCP", 443));
    for role in ROLES {
        let outsider = Place::Elsewhere("default");
        assert!(!passes(&r, &outsider, &ours(role), "TCP", 9464), "the admin port of {role}");
    }
    assert!(!passes(&r, &Place::Elsewhere("default"), &ours("nats"), "TCP", 8222));
    for outsider in [Place::Elsewhere("default"), NODE, ours("apply")] {
        assert!(!passes(&r, &outsider, &ours("nats"), "TCP", 4222), "{outsider:?}");
        assert!(!passes(&r, &outsider, &ours("store"), "TCP", 8333), "{outsider:?}");
    }
    assert!(!passes(&r, &ours("nats"), &INTERNET, "TCP", 443));
}

#[tokio::test]
async fn a_fleet_reaches_what_its_configuration_names_and_is_reached_by_whom_it_says() {
    let Some(r) = set("fleet").await else { return };
    for role in ROLES {
        assert!(passes(&r, &ours(role), &Place::Elsewhere("nats"), "TCP", 4222), "{role}");
        assert!(passes(&r, &ours(role), &Place::Elsewhere("storage"), "TCP", 9000), "{role}");
        assert!(passes(&r, &ours(role), &Place::Elsewhere("monitoring"), "TCP", 4318), "{role}");
        assert!(!passes(&r, &ours(role), &Place::Elsewhere("default"), "TCP", 4222), "{role}");
        assert!(passes(&r, &Place::Elsewhere("monitoring"), &ours(role), "TCP", 9464), "{role}");
        assert!(!passes(&r, &Place::Elsewhere("default"), &ours(role), "TCP", 9464), "{role}");
    }
    for role in ["frontend", "importer"] {
        // The upstream `lab` is inside of the cluster; 8443 is where one redirects to.
        assert!(passes(&r, &ours(role), &Place::Elsewhere("lab"), "TCP", 5001), "{role}");
        assert!(passes(&r, &ours(role), &INTERNET, "TCP", 8443), "{role}");
    }
    assert!(passes(&r, &ours("notifier"), &INTERNET, "TCP", 8443), "the port of the webhook");
    assert!(!passes(&r, &ours("notifier"), &Place::Elsewhere("lab"), "TCP", 5001));
    assert!(passes(&r, &NODE, &ours("frontend"), "TCP", 5000), "10.0.0.0/8 may pull");
    assert!(!passes(&r, &INTERNET, &ours("frontend"), "TCP", 5000));
    assert!(passes(&r, &ours("apply"), &ours("control"), "TCP", 9464));
}

/// In a policy, no peers at all would be everybody.
#[tokio::test]
async fn whom_nobody_is_named_for_lets_nobody_in() {
    let values = "image: {repository: r.example/hydrant}\nbundled: {nats: {enabled: true}, store: \
                  {enabled: true}}\nnetworkPolicy: {metrics: [], scaler: [], api: []}";
    let Some(r) = with_values(values).await else { return };
    for role in ROLES {
        let scraper = Place::Elsewhere("monitoring");
        assert!(!passes(&r, &scraper, &ours(role), "TCP", 9464), "{role}");
    }
    assert!(!passes(&r, &Place::Elsewhere("keda"), &ours("nats"), "TCP", 8222));
    assert!(passes(&r, &ours("apply"), &ours("control"), "TCP", 9464), "the hook job");
}

#[tokio::test]
async fn workload_identity_gets_its_credentials() {
    let Some(r) = set("aws").await else { return };
    for role in ROLES {
        assert!(passes(&r, &ours(role), &INTERNET, "TCP", 443), "{role}: S3 and STS");
        assert!(passes(&r, &ours(role), &Place::Address([169, 254, 170, 23].into()), "TCP", 80));
        assert!(passes(&r, &ours(role), &Place::Elsewhere("nats"), "TCP", 4222), "{role}");
    }
}
