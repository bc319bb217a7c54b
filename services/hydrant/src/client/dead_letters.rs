//! `dead-letter list/retry/drop`.

use super::{
    api::{Api, encoded},
    failure::Failure,
    output,
};
use crate::cli::{DeadLetterAction, Letters};
use serde::Deserialize;
use serde_json::Value;

pub async fn run(action: DeadLetterAction) -> Result<(), Failure> {
    match action {
        DeadLetterAction::List { output, server } => {
            let found = list(&Api::new(server)?).await?;
            let value = Value::Array(found.items);
            let value = match output {
                crate::cli::Output::Toml => serde_json::json!({ "dead_letter": value }),
                _ => value,
            };
            output::print(output, &value, || rows(value.as_array().map_or(&[], Vec::as_slice)))
        }
        DeadLetterAction::Retry(letters) => {
            for_each(letters, async |api, id| {
                let path = format!("/dead-letters/{}/retry", encoded(id));
                api.post::<Value>(&path, &Value::Null).await.map(|_| "tried again")
            })
            .await
        }
        DeadLetterAction::Drop(letters) => {
            for_each(letters, async |api, id| {
                api.delete(&format!("/dead-letters/{}", encoded(id))).await.map(|()| "dropped")
            })
            .await
        }
    }
}

#[derive(Deserialize)]
struct Items {
    items: Vec<Value>,
}

async fn list(api: &Api) -> Result<Items, Failure> {
    api.get("/dead-letters?limit=1000").await
}

/// Does `action` to each letter; one that fails does not keep the others from it.
async fn for_each(
    letters: Letters,
    action: impl AsyncFn(&Api, &str) -> Result<&'static str, Failure>,
) -> Result<(), Failure> {
    let api = Api::new(letters.server)?;
    let ids = match letters.all {
        true => list(&api).await?.items.iter().map(|letter| text(&letter["id"])).collect(),
        false => letters.ids,
    };
    let mut failed = Vec::new();
    for id in ids {
        match action(&api, &id).await {
            Ok(done) => output::line(&format!("{done}: {id}\n"))?,
            Err(failure) => failed.push(format!("{id}: {failure}")),
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Failure::Failed(failed.join("\n       "))) }
}

fn rows(items: &[Value]) -> Vec<Vec<String>> {
    let head = ["ID", "AT", "WHAT", "CLASS", "TRIES", "REASON"].map(str::to_owned).to_vec();
    let row = |letter: &Value| {
        vec![
            text(&letter["id"]),
            text(&letter["at"]),
            what(letter),
            letter["class"].as_str().unwrap_or("-").to_owned(),
            letter["attempts"].to_string(),
            text(&letter["reason"]),
        ]
    };
    std::iter::once(head).chain(items.iter().map(row)).collect()
}

fn what(letter: &Value) -> String {
    let request = &letter["request"];
    match letter["kind"].as_str() {
        Some("job") => {
            let reference = text(&request["reference"]);
            let separator = if reference.contains(':') { '@' } else { ':' };
            format!("{}{separator}{reference}", text(&request["repository"]))
        }
        Some("delivery") => format!("webhook {}", text(&letter["webhook"])),
        _ => format!("message on {}", text(&letter["subject"])),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
