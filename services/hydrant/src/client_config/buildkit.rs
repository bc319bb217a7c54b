//! BuildKit: mirrors in `buildkitd.toml`.
//!
//! BuildKit asks the mirrors of a registry in turn, and then the registry by its name. One that is
//! elsewhere is the last of its own mirrors.

use super::{
    Plan,
    mirror::{Mirror, Security, Upstream},
    output::{Document, MARK},
};
use std::{collections::BTreeMap, path::Path};

const FILE: &str = "/etc/buildkit/buildkitd.toml";

/// What is said of one `host[:port]`.
#[derive(Default)]
struct Host<'a> {
    mirrors: Vec<String>,
    is_plain: bool,
    authority: Option<&'a Path>,
}

pub fn plan(mirror: &Mirror) -> Plan {
    let mut text = format!("{MARK}\n");
    for (name, host) in &hosts(mirror) {
        text.push_str(&host.table(name));
    }
    let note = "buildkitd reads it at its start; with docker buildx: docker buildx create \
                --buildkitd-config FILE";
    Plan { documents: vec![Document::ours(FILE, text)], notes: vec![note.to_owned()] }
}

fn hosts(mirror: &Mirror) -> BTreeMap<String, Host<'_>> {
    let mut hosts: BTreeMap<String, Host<'_>> = BTreeMap::new();
    for upstream in &mirror.upstreams {
        let mirrors = &mut hosts.entry(upstream.name.clone()).or_default().mirrors;
        mirrors.push(mirror.host.clone());
        if upstream.host() != asked_by_name(upstream) {
            mirrors.push(upstream.host());
        }
        if upstream.endpoint.scheme() == "http" {
            hosts.entry(upstream.host()).or_default().is_plain = true;
        }
    }
    let ours = hosts.entry(mirror.host.clone()).or_default();
    ours.is_plain = mirror.security == Security::Plain;
    ours.authority = mirror.authority().map(|(file, _)| file.as_path());
    hosts
}

/// Where BuildKit looks for the registry when no mirror answers.
fn asked_by_name(upstream: &Upstream) -> &str {
    if upstream.name == "docker.io" { "registry-1.docker.io" } else { &upstream.name }
}

impl Host<'_> {
    fn table(&self, name: &str) -> String {
        let mut lines = String::new();
        if !self.mirrors.is_empty() {
            lines.push_str(&format!("  mirrors = {:?}\n", self.mirrors));
        }
        if self.is_plain {
            lines.push_str("  http = true\n");
        }
        if let Some(file) = self.authority {
            lines.push_str(&format!("  ca = [{:?}]\n", file.to_string_lossy()));
        }
        if lines.is_empty() { lines } else { format!("\n[registry.{name:?}]\n{lines}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_that_is_elsewhere_is_asked_there_when_hydrant_is_away() {
        let upstreams =
            ["docker.io", "near.test=http://near.test", "far.test=http://10.0.0.7:5000"];
        let mirror = Mirror {
            url: "http://127.0.0.1:30500".to_owned(),
            host: "127.0.0.1:30500".to_owned(),
            security: Security::Plain,
            upstreams: upstreams.map(|upstream| upstream.parse().unwrap()).to_vec(),
        };
        let told: toml::Table = plan(&mirror).documents[0].text.parse().unwrap();
        let expected: toml::Table = r#"
            [registry."docker.io"]
            mirrors = ["127.0.0.1:30500"]
            [registry."near.test"]
            mirrors = ["127.0.0.1:30500"]
            http = true
            [registry."far.test"]
            mirrors = ["127.0.0.1:30500", "10.0.0.7:5000"]
            [registry."10.0.0.7:5000"]
            http = true
            [registry."127.0.0.1:30500"]
            http = true
        "#
        .parse()
        .unwrap();
        assert_eq!(told, expected);
    }
}
