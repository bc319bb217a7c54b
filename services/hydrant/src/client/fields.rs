//! Fields of a resource from the command line (`key=value`) or from a TOML file, as JSON.

use super::failure::Failure;
use hydrant_rules::Kind;
use serde_json::{Map, Value};
use std::path::Path;

/// Fields that may hold `{ file = "…" }`.
const SECRETS: [&str; 3] = ["username", "password", "secret"];

/// Lays `key=value` fields over `object`. A dotted key reaches inside: `username.env=LAB_USER`.
/// Nothing behind the `=` takes the field away, so that its default holds.
pub fn lay(object: &mut Map<String, Value>, fields: &[String]) -> Result<(), Failure> {
    for field in fields {
        let Some((key, value)) = field.split_once('=') else {
            return Err(Failure::Usage(format!("`{field}` is not key=value")));
        };
        match value.trim() {
            "" => unset(object, key),
            value => set(object, key, parse(value)),
        }
    }
    Ok(())
}

fn set(object: &mut Map<String, Value>, key: &str, value: Value) {
    let Some((outer, inner)) = key.split_once('.') else {
        object.insert(key.to_owned(), value);
        return;
    };
    // A secret is in one place: `password.file=…` replaces `password.env`, so begin anew.
    let held = object.remove(outer).filter(|_| !SECRETS.contains(&outer));
    let mut below = match held {
        Some(Value::Object(held)) => held,
        _ => Map::new(),
    };
    set(&mut below, inner, value);
    object.insert(outer.to_owned(), Value::Object(below));
}

fn unset(object: &mut Map<String, Value>, key: &str) {
    match key.split_once('.') {
        // Half a secret is none: `password.env=` takes `password` away.
        Some((outer, inner)) if !SECRETS.contains(&outer) => {
            if let Some(Value::Object(held)) = object.get_mut(outer) {
                unset(held, inner);
            }
        }
        split => drop(object.remove(split.map_or(key, |(outer, _)| outer))),
    }
}

/// A TOML value, or the text itself where it is none: `lab/*` needs no quotes.
fn parse(text: &str) -> Value {
    let document = toml::from_str::<Map<String, Value>>(&format!("value = {text}"));
    let value = document.ok().and_then(|mut document| document.remove("value"));
    value.unwrap_or_else(|| Value::String(text.to_owned()))
}

/// The resources of `kind` in a TOML file: either the fields of one, or `[[kind]]` tables.
pub fn read(kind: Kind, file: &Path) -> Result<Vec<Map<String, Value>>, Failure> {
    let (text, base) = text(file)?;
    let wrong = |why: String| Failure::Usage(format!("{}: {why}", file.display()));
    let mut document: Map<String, Value> =
        toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let mut found = match document.remove(kind.as_str()) {
        Some(Value::Array(list)) if list.iter().all(Value::is_object) => list
            .into_iter()
            .filter_map(|value| match value {
                Value::Object(object) => Some(object),
                _ => None,
            })
            .collect(),
        Some(_) => {
            let why = format!("`{kind}` must be written as [[{kind}]] tables");
            return Err(wrong(why));
        }
        None => vec![document],
    };
    found.iter_mut().for_each(|object| make_absolute(object, &base));
    Ok(found)
}

/// The text of a file, `-` being standard input, and the directory its relative paths start from.
pub fn text(file: &Path) -> Result<(String, std::path::PathBuf), Failure> {
    let unreadable = |error| Failure::Usage(format!("cannot read {}: {error}", file.display()));
    if file == Path::new("-") {
        let text = std::io::read_to_string(std::io::stdin()).map_err(unreadable)?;
        return Ok((text, std::env::current_dir().map_err(unreadable)?));
    }
    let text = std::fs::read_to_string(file).map_err(unreadable)?;
    let absolute = std::path::absolute(file).map_err(unreadable)?;
    Ok((text, absolute.parent().unwrap_or(Path::new("/")).to_owned()))
}

/// Makes relative files of secrets absolute: the server does not know our directory.
pub fn make_absolute(object: &mut Map<String, Value>, base: &Path) {
    for field in SECRETS {
        if let Some(Value::String(file)) = object.get_mut(field).and_then(|v| v.get_mut("file")) {
            *file = base.join(&*file).to_string_lossy().into_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_toml_or_plain_text() {
        let mut object =
            json!({"username": {"file": "/x"}, "kept": 1}).as_object().unwrap().clone();
        let fields = [
            "downstream=lab/*",
            "allow_private=true",
            "concurrency=8",
            "platforms=[\"linux/amd64\"]",
            "username.env=LAB_USER",
            "endpoint=http://127.0.0.1:5100",
            "fresh_for=5m",
            "reason=a=b",
        ];
        lay(&mut object, &fields.map(str::to_owned)).unwrap();
        assert_eq!(
            Value::Object(object),
            json!({"downstream": "lab/*", "allow_private": true, "concurrency": 8,
                "platforms": ["linux/amd64"], "username": {"env": "LAB_USER"}, "kept": 1,
                "endpoint": "http://127.0.0.1:5100", "fresh_for": "5m", "reason": "a=b"})
        );
        assert!(matches!(lay(&mut Map::new(), &["x".into()]), Err(Failure::Usage(_))));
    }

    #[test]
    fn nothing_behind_the_sign_takes_the_field_away() {
        let held = json!({"disabled": "410", "secret": {"env": "S"}, "url": "https://x", "n": 1});
        let mut object = held.as_object().unwrap().clone();
        let fields = ["disabled=", "secret.env=", "url= ", "absent="];
        lay(&mut object, &fields.map(str::to_owned)).unwrap();
        assert_eq!(Value::Object(object), json!({"n": 1}));
    }

    #[test]
    fn fields_inside_a_table_change_one_by_one() {
        let held = json!({"parallel": {"from": "64MiB", "ranges": 4}});
        let mut object = held.as_object().unwrap().clone();
        lay(&mut object, &["parallel.ranges=8", "parallel.from="].map(str::to_owned)).unwrap();
        assert_eq!(Value::Object(object.clone()), json!({"parallel": {"ranges": 8}}));
        lay(&mut object, &["parallel=".to_owned()]).unwrap();
        assert!(object.is_empty());
    }

    #[test]
    fn a_file_holds_one_resource_or_tables_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("one.toml");
        std::fs::write(&file, "name = 'lab'\npassword = { file = 'secret' }\n").unwrap();
        let one = read(Kind::Credential, &file).unwrap();
        let secret = dir.path().join("secret");
        assert_eq!(one[0]["password"]["file"], secret.to_str().unwrap());
        std::fs::write(&file, "[[rule]]\nname = 'a'\n[[rule]]\nname = 'b'\n").unwrap();
        assert_eq!(read(Kind::Rule, &file).unwrap().len(), 2);
        std::fs::write(&file, "rule = 7").unwrap();
        assert!(read(Kind::Rule, &file).is_err());
    }
}
