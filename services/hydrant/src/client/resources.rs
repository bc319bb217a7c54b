//! `rule|upstream|credential|webhook list/get/set/delete`.

use super::{
    api::{Api, encoded},
    failure::Failure,
    fields, output,
};
use crate::cli::Action;
use hydrant_rules::Kind;
use serde::Deserialize;
use serde_json::{Map, Value};

pub async fn run(kind: Kind, action: Action) -> Result<(), Failure> {
    match action {
        Action::List { output, server } => {
            let found: Items = Api::new(server)?.get(&format!("/{kind}s")).await?;
            let value = Value::Array(found.items);
            let rows = || rows(kind, value.as_array().map_or(&[][..], Vec::as_slice));
            match output {
                // A TOML document has a name for its list, the one `apply` reads.
                crate::cli::Output::Toml => {
                    let named = Map::from_iter([(kind.to_string(), value.clone())]);
                    output::print(output, &Value::Object(named), rows)
                }
                _ => output::print(output, &value, rows),
            }
        }
        Action::Get { name, output, server } => {
            let value: Value = Api::new(server)?.get(&path(kind, &name)).await?;
            output::print(output, &value, || rows(kind, std::slice::from_ref(&value)))
        }
        Action::Set { name, fields, file, server } => {
            let api = Api::new(server)?;
            match (file, name) {
                (Some(file), name) => set_from_file(&api, kind, name, &file).await,
                (None, Some(name)) => set_fields(&api, kind, &name, &fields).await,
                (None, None) => Err(Failure::Usage("give a name, or a file with -f".to_owned())),
            }
        }
        Action::Delete { name, server } => {
            Api::new(server)?.delete(&path(kind, &name)).await?;
            output::line(&format!("deleted {kind} {name}\n"))
        }
    }
}

#[derive(Deserialize)]
struct Items {
    items: Vec<Value>,
}

fn path(kind: Kind, name: &str) -> String {
    format!("/{kind}s/{}", encoded(name))
}

async fn set_from_file(
    api: &Api,
    kind: Kind,
    name: Option<String>,
    file: &std::path::Path,
) -> Result<(), Failure> {
    let found = fields::read(kind, file)?;
    if name.is_some() && found.len() != 1 {
        let count = found.len();
        let why = format!("{} holds {count} resources; leave the name out", file.display());
        return Err(Failure::Usage(why));
    }
    for object in found {
        let own = object.get("name").and_then(Value::as_str).map(str::to_owned);
        let Some(name) = name.clone().or(own) else {
            let why = format!("{}: a {kind} has no name", file.display());
            return Err(Failure::Usage(why));
        };
        let created = api.put(&path(kind, &name), &Value::Object(object), None).await?;
        told(kind, &name, created)?;
    }
    Ok(())
}

/// Changes the named fields of what is there; the rest stays, and nobody's change is overwritten.
async fn set_fields(api: &Api, kind: Kind, name: &str, given: &[String]) -> Result<(), Failure> {
    let path = path(kind, name);
    let (mut object, tag) = match api.get_tagged(&path).await {
        Ok((Value::Object(object), tag)) => (object, tag),
        Ok(_) => (Map::new(), None),
        Err(failure) if failure.is_missing() => (Map::new(), None),
        Err(failure) => return Err(failure),
    };
    fields::lay(&mut object, given)?;
    let base = std::env::current_dir()?;
    fields::make_absolute(&mut object, &base);
    let created = api.put(&path, &Value::Object(object), tag.as_deref()).await?;
    told(kind, name, created)
}

fn told(kind: Kind, name: &str, created: bool) -> Result<(), Failure> {
    let done = if created { "created" } else { "changed" };
    output::line(&format!("{done} {kind} {name}\n"))
}

/// The columns people want to see of each kind.
fn rows(kind: Kind, items: &[Value]) -> Vec<Vec<String>> {
    let columns: &[&str] = match kind {
        Kind::Upstream => &["name", "endpoint", "namespace", "credential", "allow_private"],
        Kind::Credential => &["name", "username", "password"],
        Kind::Rule => {
            &["name", "downstream", "upstream", "repository", "platforms", "fresh_for", "delivery"]
        }
        Kind::Webhook => &["name", "url", "events", "repositories", "disabled"],
    };
    let head = columns.iter().map(|column| column.to_uppercase()).collect();
    let row = |item: &Value| columns.iter().map(|column| cell(&item[*column])).collect();
    std::iter::once(head).chain(items.iter().map(row)).collect()
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(cell).collect::<Vec<_>>().join(","),
        // Where a secret lives: env:NAME, file:/path.
        Value::Object(object) => {
            let parts = object.iter().map(|(key, value)| format!("{key}:{}", cell(value)));
            parts.collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    }
}
