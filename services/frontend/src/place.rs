//! Where a request's repository leads: the rule, the upstream's client, and who is asking.

use crate::{
    error::{Audience, Failure, What},
    request::Request,
};
use hydrant_flight::Grant;
use hydrant_proto::{RepositoryName, Via};
use hydrant_rules::{Generation, Route, Table};
use hydrant_upstream::{Client, Upstreams};
use std::sync::Arc;

/// The registry that Docker's `registry-mirrors` are mirrors of; no client says so.
const DOCKER_HUB: &str = "docker.io";

/// A repository as one rule serves it.
#[derive(Clone)]
pub struct Place {
    pub route: Route,
    pub client: Arc<Client>,
}

/// Something in a place, as a key. The generation in it makes everything remembered under a rule
/// unreachable as soon as the rule, its upstream or its credential changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Spot<T> {
    pub generation: Generation,
    pub repository: RepositoryName,
    pub what: T,
}

impl Place {
    /// The place a route leads to, with its client, for a request that came through `via`.
    pub fn of(route: Route, upstreams: &Upstreams, via: Via) -> Result<Self, Failure> {
        let client = upstreams.get(&route.upstream, route.credential.as_deref());
        let client = client.map_err(|error| Failure::Upstream { what: What::Repository, error })?;
        let client = if via.is_empty() { client } else { Arc::new(client.forwarding(via)) };
        Ok(Self { route, client })
    }

    /// The downstream repository in its stored spelling.
    pub fn repository(&self) -> &RepositoryName {
        &self.route.repository
    }

    /// What lets this place read a flight along.
    pub fn grant(&self) -> Grant {
        Grant { repository: self.route.repository.clone(), origin: self.route.origin.clone() }
    }

    pub fn spot<T: Clone>(&self, what: &T) -> Spot<T> {
        Spot {
            generation: self.route.generation.clone(),
            repository: self.route.repository.clone(),
            what: what.clone(),
        }
    }
}

/// The route of `name`, and whether the client takes us for a mirror.
///
/// With `?ns=` only a rule towards that registry will do. Without, a name that no rule matches may
/// begin with a registry, as podman and CRI-O ask a mirror at `host/ghcr.io`; else it is looked for
/// at Docker Hub, because dockerd does not say that it speaks to a mirror.
pub fn route(
    table: &Table,
    request: &Request,
    name: &RepositoryName,
) -> Result<(Route, Audience), Failure> {
    if let Some(namespace) = &request.namespace {
        let route = table.route_for_namespace(namespace, name).ok_or(Failure::NoRule)?;
        return Ok((route, Audience::Mirror));
    }
    if let Some(route) = table.route(name) {
        return Ok((route, Audience::Direct));
    }
    let route = named_in_path(table, name)
        .or_else(|| table.route_for_namespace(DOCKER_HUB, name))
        .ok_or(Failure::NoRule)?;
    Ok((route, Audience::Mirror))
}

/// The route of a name whose first part is the namespace of an upstream.
fn named_in_path(table: &Table, name: &RepositoryName) -> Option<Route> {
    let (namespace, rest) = name.as_str().split_once('/')?;
    table.route_for_namespace(namespace, &rest.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use hydrant_rules::Resources;
    use std::path::Path;

    fn table() -> Table {
        let text = r#"
            [[upstream]]
            name = "hub"
            endpoint = "https://registry-1.docker.io"
            namespace = "docker.io"
            [[upstream]]
            name = "ghcr"
            endpoint = "https://ghcr.io"
            namespace = "ghcr.io"
            [[rule]]
            name = "hub"
            downstream = "docker/*"
            upstream = "hub"
            [[rule]]
            name = "ghcr"
            downstream = "github/*"
            upstream = "ghcr"
        "#;
        Table::compile(Resources::from_toml(text, Path::new("/")).unwrap()).unwrap()
    }

    #[test]
    fn names_lead_to_rules_as_clients_spell_them() {
        for (path, expected) in [
            ("docker/node/manifests/22", Some(("docker/library/node", Audience::Direct))),
            ("docker/library/node/manifests/22", Some(("docker/library/node", Audience::Direct))),
            ("library/node/manifests/22", Some(("docker/library/node", Audience::Mirror))),
            ("node/manifests/22", Some(("docker/library/node", Audience::Mirror))),
            (
                "grafana/loki/manifests/3?ns=docker.io",
                Some(("docker/grafana/loki", Audience::Mirror)),
            ),
            ("ghcr.io/a/b/manifests/1", Some(("github/a/b", Audience::Mirror))),
            ("docker.io/node/manifests/22", Some(("docker/library/node", Audience::Mirror))),
            // Nobody's namespace: a repository of Docker Hub, if anything.
            ("quay.io/a/manifests/1", Some(("docker/quay.io/a", Audience::Mirror))),
            ("a/b/manifests/1?ns=ghcr.io", Some(("github/a/b", Audience::Mirror))),
            ("a/b/manifests/1?ns=quay.io", None),
            ("docker/node/manifests/22?ns=quay.io", None),
        ] {
            let request = Request::parse(&Method::GET, &format!("/v2/{path}").parse().unwrap());
            let request = request.unwrap();
            let name = request.ask.repository().unwrap();
            let found = route(&table(), &request, name).ok();
            let found = found.as_ref().map(|(route, who)| (route.repository.as_str(), *who));
            assert_eq!(found, expected, "{path}");
        }
    }

    #[test]
    fn a_name_that_only_begins_like_a_rule_does_not_match_it() {
        let text = "[[upstream]]\nname='hub'\nendpoint='https://hub.example'\n[[rule]]\n\
                    name='hub'\ndownstream='hub/*'\nupstream='hub'\n";
        let table = Table::compile(Resources::from_toml(text, Path::new("/")).unwrap()).unwrap();
        let uri = "/v2/hub-evil/x/manifests/1".parse().unwrap();
        let request = Request::parse(&Method::GET, &uri).unwrap();
        let name = request.ask.repository().unwrap();
        assert!(matches!(route(&table, &request, name), Err(Failure::NoRule)));
    }
}
