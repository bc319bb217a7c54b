//! Changes to a document of resources: one put, one removed, or another document laid over it.
//! Pure; whether the outcome is valid is for `Table::compile` to say.

use hydrant_rules::{Kind, Name, Resource, Resources};
use serde::{Deserialize, Serialize};

/// What happens to one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Created,
    Changed,
    Unchanged,
    Deleted,
}

/// One line of what an apply did or would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub kind: Kind,
    pub name: Name,
    pub action: Action,
}

macro_rules! put_in {
    ($list:expr, $resource:expr) => {
        match $list.iter_mut().find(|held| held.name == $resource.name) {
            Some(held) => *held = $resource,
            None => $list.push($resource),
        }
    };
}

macro_rules! found_in {
    ($list:expr, $name:expr, $kind:ident) => {
        $list.iter().find(|held| held.name.as_str() == $name).cloned().map(Resource::$kind)
    };
}

/// Lays `wanted` over `current`: what it names becomes as it says; what it does not name stays,
/// or goes with `prune`. Changes are in the order of kinds, then of the documents.
pub fn merge(current: &Resources, wanted: &Resources, prune: bool) -> (Resources, Vec<Change>) {
    let mut merged = current.clone();
    let mut changes = Vec::new();
    for kind in Kind::ALL {
        for resource in all(wanted, kind) {
            let name = name(&resource).clone();
            let action = match by_name(current, kind, name.as_str()) {
                None => Action::Created,
                Some(held) if held == resource => Action::Unchanged,
                Some(_) => Action::Changed,
            };
            put(&mut merged, resource);
            changes.push(Change { kind, name, action });
        }
        for gone in all(current, kind).iter().map(name).filter(|_| prune) {
            if by_name(wanted, kind, gone.as_str()).is_none() {
                remove(&mut merged, kind, gone.as_str());
                changes.push(Change { kind, name: gone.clone(), action: Action::Deleted });
            }
        }
    }
    (merged, changes)
}

/// Adds a resource, or replaces the one of its kind and name.
pub fn put(resources: &mut Resources, resource: Resource) {
    match resource {
        Resource::Upstream(upstream) => put_in!(resources.upstream, upstream),
        Resource::Credential(credential) => put_in!(resources.credential, credential),
        Resource::Rule(rule) => put_in!(resources.rule, rule),
        Resource::Webhook(webhook) => put_in!(resources.webhook, webhook),
    }
}

/// Takes a resource away; does nothing when it is not there.
pub fn remove(resources: &mut Resources, kind: Kind, name: &str) {
    match kind {
        Kind::Upstream => resources.upstream.retain(|held| held.name.as_str() != name),
        Kind::Credential => resources.credential.retain(|held| held.name.as_str() != name),
        Kind::Rule => resources.rule.retain(|held| held.name.as_str() != name),
        Kind::Webhook => resources.webhook.retain(|held| held.name.as_str() != name),
    }
}

/// The resource of that kind and name.
pub fn by_name(resources: &Resources, kind: Kind, name: &str) -> Option<Resource> {
    match kind {
        Kind::Upstream => found_in!(resources.upstream, name, Upstream),
        Kind::Credential => found_in!(resources.credential, name, Credential),
        Kind::Rule => found_in!(resources.rule, name, Rule),
        Kind::Webhook => found_in!(resources.webhook, name, Webhook),
    }
}

/// Every resource of a kind, in the order of the document.
pub fn all(resources: &Resources, kind: Kind) -> Vec<Resource> {
    match kind {
        Kind::Upstream => resources.upstream.iter().cloned().map(Resource::Upstream).collect(),
        Kind::Credential => {
            resources.credential.iter().cloned().map(Resource::Credential).collect()
        }
        Kind::Rule => resources.rule.iter().cloned().map(Resource::Rule).collect(),
        Kind::Webhook => resources.webhook.iter().cloned().map(Resource::Webhook).collect(),
    }
}

/// The name of a resource.
pub fn name(resource: &Resource) -> &Name {
    match resource {
        Resource::Upstream(upstream) => &upstream.name,
        Resource::Credential(credential) => &credential.name,
        Resource::Rule(rule) => &rule.name,
        Resource::Webhook(webhook) => &webhook.name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn document(text: &str) -> Resources {
        Resources::from_toml(text, Path::new("/")).unwrap()
    }

    fn lab(fresh_for: &str) -> Resources {
        document(&format!(
            "[[upstream]]\nname='lab'\nendpoint='https://lab.example'\n\
             [[rule]]\nname='lab'\ndownstream='lab/*'\nupstream='lab'\nfresh_for='{fresh_for}'"
        ))
    }

    fn told(changes: &[Change]) -> Vec<String> {
        changes
            .iter()
            .map(|change| format!("{} {} {:?}", change.kind, change.name, change.action))
            .collect()
    }

    #[test]
    fn what_is_named_becomes_as_it_says_and_the_rest_stays() {
        let mut current = lab("5m");
        let other = document("[[upstream]]\nname='hub'\nendpoint='https://hub.example'");
        put(&mut current, by_name(&other, Kind::Upstream, "hub").unwrap());
        let (merged, changes) = merge(&current, &lab("6m"), false);
        assert_eq!(told(&changes), ["upstream lab Unchanged", "rule lab Changed"]);
        assert_eq!(merged.upstream.len(), 2);
        assert_eq!(by_name(&merged, Kind::Rule, "lab"), by_name(&lab("6m"), Kind::Rule, "lab"));
    }

    #[test]
    fn pruning_takes_away_what_is_not_named() {
        let (merged, changes) = merge(&lab("5m"), &Resources::default(), true);
        assert_eq!(told(&changes), ["upstream lab Deleted", "rule lab Deleted"]);
        assert_eq!(merged, Resources::default());
        let (merged, changes) = merge(&Resources::default(), &lab("5m"), true);
        assert_eq!(told(&changes), ["upstream lab Created", "rule lab Created"]);
        assert_eq!(merged, lab("5m"));
    }
}
