//! Tells of secrets that are not where the configuration says, before a pull or a delivery fails
//! for it. Secrets are read where they are used; here they are only looked for.

use crate::{feed::ResourceFeed, settings::Role};
use hydrant_rules::{Kind, Resources, Secret};
use std::{collections::HashSet, fs, io};

/// One secret that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Missing {
    kind: Kind,
    name: String,
    field: &'static str,
    problem: String,
}

/// Warns once of each secret that this role will use and cannot read, now and when the
/// configuration changes.
pub(crate) async fn warn_of_missing(feed: ResourceFeed, role: Role) {
    let (mut changed, mut told) = (feed.changed(), HashSet::new());
    loop {
        let table = changed.borrow_and_update().clone();
        for missing in missing(table.resources(), role) {
            if told.insert(missing.clone()) {
                let Missing { kind, name, field, problem } = missing;
                tracing::warn!(%kind, name, field, problem, "a secret cannot be read; what needs it will fail");
            }
        }
        if changed.changed().await.is_err() {
            return;
        }
    }
}

fn missing(resources: &Resources, role: Role) -> Vec<Missing> {
    let (fetches, delivers) = match role {
        Role::Up => (true, true),
        Role::Frontend | Role::Importer => (true, false),
        Role::Notifier => (false, true),
        Role::Control => (false, false),
    };
    let credentials = resources.credential.iter().filter(|_| fetches).flat_map(|held| {
        let parts = [("username", &held.username), ("password", &held.password)];
        parts.map(|(field, secret)| (Kind::Credential, &held.name, field, secret))
    });
    let webhooks = resources.webhook.iter().filter(|_| delivers);
    let webhooks = webhooks.map(|held| (Kind::Webhook, &held.name, "secret", &held.secret));
    let look = |(kind, name, field, secret): (_, &hydrant_rules::Name, _, _)| {
        let problem = problem(secret)?;
        Some(Missing { kind, name: name.to_string(), field, problem })
    };
    credentials.chain(webhooks).filter_map(look).collect()
}

fn problem(secret: &Secret) -> Option<String> {
    match secret {
        Secret::Env(name) => match std::env::var(name) {
            Ok(value) if value.is_empty() => {
                Some(format!("the environment variable {name} is empty"))
            }
            Ok(_) => None,
            // The error itself would show a value that is not UTF-8.
            Err(_) => Some(format!("the environment variable {name} is not set, or not UTF-8")),
        },
        Secret::File(path) => {
            let error = readable(path).err()?;
            Some(format!("the file {} cannot be read: {error}", path.display()))
        }
    }
}

fn readable(path: &std::path::Path) -> io::Result<()> {
    // Only a regular file is opened: opening a pipe waits for its other end.
    match fs::metadata(path)?.is_file() {
        true => fs::File::open(path).map(drop),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_misses_the_secrets_it_uses() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("there"), "x").unwrap();
        let text = "[[credential]]\nname = 'lab'\nusername = { file = 'there' }\n\
                    password = { file = 'gone' }\n\
                    [[webhook]]\nname = 'ci'\nurl = 'https://ci.example'\n\
                    secret = { env = 'HYDRANT_TEST_NOT_SET' }\n";
        let resources = Resources::from_toml(text, dir.path()).unwrap();
        let told = |role| -> Vec<_> {
            let missing = missing(&resources, role).into_iter();
            missing.map(|m| format!("{} {} {}: {}", m.kind, m.name, m.field, m.problem)).collect()
        };
        let all = told(Role::Up);
        assert!(all[0].starts_with("credential lab password: the file /"), "{all:?}");
        assert!(all[1].starts_with("webhook ci secret: the environment"), "{all:?}");
        assert_eq!(all.len(), 2);
        assert_eq!(told(Role::Importer), all[..1]);
        assert_eq!(told(Role::Frontend), all[..1]);
        assert_eq!(told(Role::Notifier), all[1..]);
        assert!(told(Role::Control).is_empty());
    }
}
