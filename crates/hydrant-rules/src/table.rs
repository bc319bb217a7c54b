//! The compiled rules: for a downstream repository, which rule, upstream and upstream repository.
//!
//! An exact rule beats a wildcard and the longest wildcard wins, so the order in which rules are
//! written never matters.

use crate::{
    check::{Problems, check},
    fingerprint::fingerprint,
    resources::{Credential, Resources, Rule, Upstream, Webhook},
};
use hydrant_proto::RepositoryName;
use serde::Serialize;
use std::{collections::HashMap, fmt, sync::Arc};

/// Docker Hub's registry name; there, one-component names live below `library/`.
const DOCKER_HUB: &str = "docker.io";

/// The fingerprint of what a rule makes of an image, with its upstream and credential set. A job
/// made under another generation is obsolete. How long tags are fresh and how blobs are delivered
/// are not part of it: they change when and how something is served, never what. Being a function
/// of the content alone, it is the same in every process, with or without the bus.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Generation(Arc<str>);

impl Generation {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a downstream repository leads.
#[derive(Clone, Debug)]
pub struct Route {
    pub rule: Arc<Rule>,
    pub upstream: Arc<Upstream>,
    pub credential: Option<Arc<Credential>>,
    pub generation: Generation,
    /// The downstream repository, in the one spelling it is stored under.
    pub repository: RepositoryName,
    pub upstream_repository: RepositoryName,
    /// Fingerprint of where the content comes from: the upstream's endpoint and repository, and the
    /// credential set it is asked with. Content of another origin is not this route's to serve.
    pub origin: Arc<str>,
}

/// Checked resources, ready to answer.
#[derive(Debug)]
pub struct Table {
    resources: Resources,
    entries: Vec<Entry>,
    exact: HashMap<String, usize>,
    /// By what stands before the `*`: empty, or ending in `/`.
    wildcard: HashMap<String, usize>,
}

#[derive(Debug)]
struct Entry {
    rule: Arc<Rule>,
    upstream: Arc<Upstream>,
    credential: Option<Arc<Credential>>,
    generation: Generation,
}

impl Table {
    /// Checks `resources` whole and compiles them. Nothing of an invalid document takes effect.
    pub fn compile(resources: Resources) -> Result<Self, Problems> {
        check(&resources)?;
        let entries: Vec<_> = resources.rule.iter().map(|rule| entry(&resources, rule)).collect();
        let (mut exact, mut wildcard) = (HashMap::new(), HashMap::new());
        for (index, rule) in resources.rule.iter().enumerate() {
            match rule.downstream.strip_suffix('*') {
                Some(prefix) => wildcard.insert(prefix.to_owned(), index),
                None => exact.insert(rule.downstream.clone(), index),
            };
        }
        Ok(Self { resources, entries, exact, wildcard })
    }

    /// A table without rules.
    pub fn empty() -> Self {
        Self::compile(Resources::default()).expect("no resources have no problems")
    }

    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    /// The rule, upstream and upstream repository that serve a downstream repository.
    pub fn route(&self, repository: &RepositoryName) -> Option<Route> {
        let name = repository.as_str();
        if let Some(&index) = self.exact.get(name) {
            return self.entries[index].lead(name, None);
        }
        let slashes = name.rmatch_indices('/').map(|(at, _)| at + 1);
        slashes
            .chain([0])
            .find_map(|cut| {
                let (prefix, rest) = name.split_at(cut);
                self.wildcard.get(prefix).map(|&index| (index, prefix, rest))
            })
            .and_then(|(index, prefix, rest)| self.entries[index].lead(prefix, Some(rest)))
    }

    /// The route of an upstream repository as a client names it that believes it speaks to
    /// `namespace` (containerd's `?ns=`, Docker's mirror root): through the rule that leads there.
    pub fn route_for_namespace(
        &self,
        namespace: &str,
        repository: &RepositoryName,
    ) -> Option<Route> {
        let wanted = with_library(namespace, repository.as_str());
        let mut candidates: Vec<_> = self
            .entries
            .iter()
            .filter(|entry| entry.upstream.namespace.as_deref() == Some(namespace))
            .filter_map(|entry| Some((entry, entry.downstream_of(&wanted)?)))
            .collect();
        candidates.sort_by_key(|(entry, _)| std::cmp::Reverse(entry.rule.repository.len()));
        candidates.into_iter().find_map(|(entry, downstream)| {
            let route = self.route(&downstream.parse().ok()?)?;
            (route.rule.name == entry.rule.name).then_some(route)
        })
    }

    pub fn upstream(&self, name: &str) -> Option<&Upstream> {
        self.resources.upstream.iter().find(|upstream| upstream.name.as_str() == name)
    }

    pub fn credential(&self, name: &str) -> Option<&Credential> {
        self.resources.credential.iter().find(|credential| credential.name.as_str() == name)
    }

    pub fn rule(&self, name: &str) -> Option<&Rule> {
        self.resources.rule.iter().find(|rule| rule.name.as_str() == name)
    }

    pub fn webhook(&self, name: &str) -> Option<&Webhook> {
        self.resources.webhook.iter().find(|webhook| webhook.name.as_str() == name)
    }
}

fn entry(resources: &Resources, rule: &Rule) -> Entry {
    let upstream = resources
        .upstream
        .iter()
        .find(|upstream| upstream.name == rule.upstream)
        .expect("checked: every rule names an upstream");
    let credential = upstream.credential.as_ref().map(|name| {
        let found = resources.credential.iter().find(|credential| credential.name == *name);
        found.expect("checked: every upstream's credential set is there")
    });
    Entry {
        generation: Generation(fingerprint(&(terms(rule), source(upstream), credential)).into()),
        rule: Arc::new(rule.clone()),
        upstream: Arc::new(upstream.clone()),
        credential: credential.map(|credential| Arc::new(credential.clone())),
    }
}

/// What of a rule decides on what is hydrated. Exhaustive, so that a new field is thought about.
fn terms(rule: &Rule) -> impl Serialize {
    let Rule {
        name,
        downstream,
        upstream,
        repository,
        platforms,
        fresh_for: _,
        revalidate_for: _,
        check_within: _,
        stale_for: _,
        when_gone: _,
        delivery: _,
        tags: _,
    } = rule;
    (name, downstream, upstream, repository, platforms)
}

/// What of an upstream decides on what is fetched from it, and not how fast or how patiently.
fn source(upstream: &Upstream) -> impl Serialize {
    let Upstream {
        name,
        endpoint,
        allow_private,
        credential,
        token_hosts,
        redirect_hosts,
        namespace,
        timeout: _,
        concurrency: _,
        parallel: _,
        caps: _,
        quota_reserve: _,
    } = upstream;
    (name, endpoint, allow_private, credential, token_hosts, redirect_hosts, namespace)
}

impl Entry {
    /// The route of `prefix` and what the `*` matched, if the names it makes are valid.
    fn lead(&self, prefix: &str, matched: Option<&str>) -> Option<Route> {
        let namespace = self.upstream.namespace.as_deref().unwrap_or_default();
        let (downstream, upstream) = match matched {
            None => (prefix.to_owned(), self.rule.repository.clone()),
            Some(rest) if self.rule.repository == "*" => {
                let rest = with_library(namespace, rest);
                (format!("{prefix}{rest}"), rest)
            }
            Some(rest) => (format!("{prefix}{rest}"), self.rule.repository.replace('*', rest)),
        };
        let upstream_repository: RepositoryName =
            with_library(namespace, &upstream).parse().ok()?;
        let origin = (&self.upstream.endpoint, &self.credential, upstream_repository.as_str());
        Some(Route {
            rule: self.rule.clone(),
            upstream: self.upstream.clone(),
            credential: self.credential.clone(),
            generation: self.generation.clone(),
            origin: fingerprint(&(origin.0, origin.1.as_deref(), origin.2)).into(),
            repository: downstream.parse().ok()?,
            upstream_repository,
        })
    }

    /// The downstream name that this rule maps to the upstream repository `wanted`.
    fn downstream_of(&self, wanted: &str) -> Option<String> {
        let namespace = self.upstream.namespace.as_deref().unwrap_or_default();
        match (self.rule.downstream.strip_suffix('*'), self.rule.repository.strip_suffix('*')) {
            (Some(prefix), Some(template)) => {
                Some(format!("{prefix}{}", wanted.strip_prefix(template)?))
            }
            (None, None) if with_library(namespace, &self.rule.repository) == wanted => {
                Some(self.rule.downstream.clone())
            }
            _ => None,
        }
    }
}

fn with_library(namespace: &str, repository: &str) -> String {
    if namespace == DOCKER_HUB && !repository.contains('/') {
        return format!("library/{repository}");
    }
    repository.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn table(text: &str) -> Table {
        Table::compile(Resources::from_toml(text, Path::new("/etc/hydrant")).unwrap()).unwrap()
    }

    fn lab() -> Table {
        table(
            r#"
            [[upstream]]
            name = "hub"
            endpoint = "https://registry-1.docker.io"
            namespace = "docker.io"
            [[upstream]]
            name = "lab"
            endpoint = "http://127.0.0.1:5100"
            allow_private = true
            [[rule]]
            name = "hub"
            downstream = "docker/*"
            upstream = "hub"
            [[rule]]
            name = "team"
            downstream = "docker/team/*"
            upstream = "lab"
            repository = "mirror/team/*"
            [[rule]]
            name = "one"
            downstream = "docker/library/one"
            upstream = "lab"
            repository = "the/one"
            "#,
        )
    }

    fn led(table: &Table, name: &str) -> Option<(String, String, String)> {
        let route = table.route(&name.parse().unwrap())?;
        Some((
            route.rule.name.to_string(),
            route.repository.to_string(),
            route.upstream_repository.to_string(),
        ))
    }

    #[test]
    fn exact_beats_wildcard_and_the_longest_wildcard_wins() {
        let table = lab();
        for (name, rule, downstream, upstream) in [
            ("docker/library/node", "hub", "docker/library/node", "library/node"),
            ("docker/node", "hub", "docker/library/node", "library/node"),
            ("docker/grafana/loki", "hub", "docker/grafana/loki", "grafana/loki"),
            ("docker/team/a/b", "team", "docker/team/a/b", "mirror/team/a/b"),
            ("docker/library/one", "one", "docker/library/one", "the/one"),
        ] {
            let expected = Some((rule.into(), downstream.into(), upstream.into()));
            assert_eq!(led(&table, name), expected, "{name}");
        }
        for name in ["docker", "docker-evil/x", "other/x"] {
            assert_eq!(led(&table, name), None, "{name}");
        }
    }

    #[test]
    fn a_namespace_leads_through_the_rule_of_its_upstream() {
        let table = lab();
        let by_ns = |ns: &str, name: &str| {
            table
                .route_for_namespace(ns, &name.parse().unwrap())
                .map(|route| (route.repository.to_string(), route.upstream_repository.to_string()))
        };
        let node = Some(("docker/library/node".into(), "library/node".into()));
        assert_eq!(by_ns("docker.io", "library/node"), node);
        assert_eq!(by_ns("docker.io", "node"), node);
        // The downstream name belongs to another rule, which leads to another upstream.
        assert_eq!(by_ns("docker.io", "team/x"), None);
        assert_eq!(by_ns("ghcr.io", "library/node"), None);
    }

    #[test]
    fn a_generation_changes_with_rule_upstream_and_nothing_else() {
        let text = |platforms: &str, endpoint: &str, more: &str| {
            format!(
                "[[upstream]]\nname='a'\nendpoint='{endpoint}'\n[[rule]]\nname='a'\n\
                 downstream='a/*'\nupstream='a'\nplatforms='{platforms}'\n{more}"
            )
        };
        let generation =
            |text: String| table(&text).route(&"a/b".parse().unwrap()).unwrap().generation;
        let base = generation(text("all", "https://a.example", ""));
        let other = "[[upstream]]\nname='b'\nendpoint='https://b.example'\n";
        assert_eq!(base, generation(text("all", "https://a.example", other)));
        assert_ne!(base, generation(text("pulled", "https://a.example", "")));
        assert_ne!(base, generation(text("all", "https://c.example", "")));
        // Jobs under way and what they hydrate stay what they are.
        let serving = "fresh_for='7m'\ndelivery='redirect'\ncheck_within='1s'\nwhen_gone='refuse'\n\
                       [[rule.tags]]\npattern='semver'\nimmutable=true\n";
        assert_eq!(base, generation(text("all", "https://a.example", serving)));
    }

    #[test]
    fn a_bare_star_takes_everything() {
        let table = table(
            "[[upstream]]\nname='a'\nendpoint='https://a.example'\n[[rule]]\nname='a'\n\
             downstream='*'\nupstream='a'\n",
        );
        assert_eq!(led(&table, "x/y"), Some(("a".into(), "x/y".into(), "x/y".into())));
    }
}
