//! Docker: a mirror of Docker Hub in `daemon.json`, beside what stands there. It has mirrors of nothing
//! else.

use super::{
    ConfigError, Plan,
    mirror::{Mirror, Security},
    output::{Document, below},
};
use serde_json::{Map, Value, json};
use std::{fs, path::Path};

const FILE: &str = "/etc/docker/daemon.json";
const DOCKER_HUB: &str = "docker.io";

pub fn plan(mirror: &Mirror, root: &Path) -> Result<Plan, ConfigError> {
    let names = mirror.upstreams.iter().map(|upstream| upstream.name.as_str());
    let (hub, others): (Vec<_>, Vec<_>) = names.partition(|name| *name == DOCKER_HUB);
    if hub.is_empty() {
        return Err(ConfigError::Usage(only_docker_hub(mirror, &others)));
    }
    let mut settings = present(&below(root, Path::new(FILE)))?;
    add(&mut settings, "registry-mirrors", &mirror.url);
    if mirror.security == Security::Plain && !others.is_empty() {
        // A mirror says by its URL that it is plain, a registry in an image's name does not.
        add(&mut settings, "insecure-registries", &mirror.host);
    }
    let text = format!("{:#}\n", Value::Object(settings));
    let mut documents = vec![Document::shared(FILE, text)];
    if let Some((_, pem)) = mirror.authority() {
        let path = format!("/etc/docker/certs.d/{}/ca.crt", mirror.host);
        documents.push(Document::shared(path, pem.to_owned()));
    }
    let mut notes = vec!["Docker reads it at its start: systemctl restart docker".to_owned()];
    if !others.is_empty() {
        notes.push(format!(
            "Docker has mirrors of Docker Hub alone; images of {} are pulled through hydrant by \
             name, such as {}/{}/…",
            others.join(", "),
            mirror.host,
            others[0],
        ));
    }
    Ok(Plan { documents, notes })
}

fn only_docker_hub(mirror: &Mirror, others: &[&str]) -> String {
    let plain = match mirror.security {
        Security::Plain => {
            format!(" (with \"insecure-registries\": [{:?}] in {FILE})", mirror.host)
        }
        Security::Tls | Security::Authority { .. } => String::new(),
    };
    format!(
        "Docker can mirror Docker Hub only, and --upstream names {}; add --upstream {DOCKER_HUB} to \
         mirror that, and pull from the others by hydrant's own name, such as \
         {}/DOWNSTREAM/IMAGE{plain}",
        others.join(", "),
        mirror.host,
    )
}

/// What is configured already.
fn present(file: &Path) -> Result<Map<String, Value>, ConfigError> {
    let text = match fs::read_to_string(file) {
        Ok(text) if !text.trim().is_empty() => text,
        Ok(_) => return Ok(Map::new()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(cause) => {
            let file = file.display().to_string();
            return Err(ConfigError::File { what: "read", file, cause });
        }
    };
    serde_json::from_str(&text).map_err(|error| {
        ConfigError::Usage(format!("{} is not a JSON object ({error}); mend it", file.display()))
    })
}

/// Puts `value` first in the list `key`, once.
fn add(settings: &mut Map<String, Value>, key: &str, value: &str) {
    let list = settings.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let others = list.into_iter().filter(|one| one != value);
    let all: Vec<_> = std::iter::once(json!(value)).chain(others).collect();
    settings.insert(key.to_owned(), all.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(registry: &str, upstreams: &[&str]) -> Value {
        let plan = planned(registry, upstreams).unwrap();
        serde_json::from_str(&plan.documents[0].text).unwrap()
    }

    fn planned(registry: &str, upstreams: &[&str]) -> Result<Plan, ConfigError> {
        let mirror = Mirror {
            url: registry.to_owned(),
            host: registry.split_once("://").unwrap().1.to_owned(),
            security: if registry.starts_with("http:") { Security::Plain } else { Security::Tls },
            upstreams: upstreams.iter().map(|upstream| upstream.parse().unwrap()).collect(),
        };
        let root = tempfile::tempdir().unwrap();
        plan(&mirror, root.path())
    }

    #[test]
    fn registries_that_docker_cannot_mirror_are_no_mirror_of_docker_hub() {
        for (registry, remedy) in [
            ("https://hydrant.test", "such as hydrant.test/DOWNSTREAM/IMAGE"),
            ("http://10.0.0.7:5000", "\"insecure-registries\": [\"10.0.0.7:5000\"]"),
        ] {
            let refused = planned(registry, &["ghcr.io", "quay.io"]).unwrap_err();
            assert!(matches!(refused, ConfigError::Usage(_)));
            for told in ["Docker Hub only", "ghcr.io, quay.io", "--upstream docker.io", remedy] {
                assert!(refused.to_string().contains(told), "{refused}");
            }
        }
    }

    #[test]
    fn plain_hydrant_may_be_named_by_images_that_are_not_docker_hubs() {
        let (plain, tls) = ("http://10.0.0.7:5000", "https://hydrant.test");
        let named = settings(plain, &["docker.io", "ghcr.io"]);
        assert_eq!(named["insecure-registries"], json!(["10.0.0.7:5000"]));
        assert_eq!(named["registry-mirrors"], json!([plain]));
        assert_eq!(settings(plain, &["docker.io"]), json!({"registry-mirrors": [plain]}));
        let tls_only = settings(tls, &["docker.io", "ghcr.io"]);
        assert_eq!(tls_only, json!({"registry-mirrors": [tls]}));
    }

    #[test]
    fn what_others_wrote_stays_and_nothing_is_added_twice() {
        let text =
            r#"{"log-driver": "journald", "registry-mirrors": ["https://other", "http://h:1"]}"#;
        let mut settings = serde_json::from_str(text).unwrap();
        for _ in 0..2 {
            add(&mut settings, "registry-mirrors", "http://h:1");
        }
        let expected = json!({
            "log-driver": "journald", "registry-mirrors": ["http://h:1", "https://other"]
        });
        assert_eq!(Value::Object(settings), expected);
    }
}
