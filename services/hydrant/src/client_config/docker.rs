//! Docker: a mirror of Docker Hub in `daemon.json`, beside what stands there.

use super::{
    ConfigError, Plan,
    mirror::Mirror,
    output::{Document, below},
};
use serde_json::{Map, Value, json};
use std::{fs, path::Path};

const FILE: &str = "/etc/docker/daemon.json";

pub fn plan(mirror: &Mirror, root: &Path) -> Result<Plan, ConfigError> {
    let others = mirror.upstreams.iter().filter(|upstream| upstream.name != "docker.io");
    let others: Vec<_> = others.map(|upstream| upstream.name.as_str()).collect();
    let mut settings = present(&below(root, Path::new(FILE)))?;
    add(&mut settings, "registry-mirrors", &mirror.url);
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
