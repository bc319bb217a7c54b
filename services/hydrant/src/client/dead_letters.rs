//! `dead-letter list/retry/drop`.

use super::{
    api::{Api, encoded},
    failure::Failure,
    output,
};
use crate::cli::{DeadLetterAction, Letters};
use serde::Deserialize;
use serde_json::Value;

/// Letters of one page.
const PAGE: usize = 1_000;

pub async fn run(action: DeadLetterAction) -> Result<(), Failure> {
    match action {
        DeadLetterAction::List { limit, output, server } => {
            let value = Value::Array(list(&Api::new(server)?, limit).await?);
            let value = match output {
                crate::cli::Output::Toml => serde_json::json!({ "dead_letter": value }),
                _ => value,
            };
            output::print(output, &value, || rows(value.as_array().map_or(&[], Vec::as_slice)))
        }
        DeadLetterAction::Retry(letters) => {
            let api = Api::new(letters.server.clone())?;
            if letters.ids.is_empty() {
                return many(&api, &letters, "retry", "tried again").await;
            }
            for_each(letters.ids, "tried again", async |id| {
                let path = format!("/dead-letters/{}/retry", encoded(id));
                api.post::<Value>(&path, &Value::Null).await.map(drop)
            })
            .await
        }
        DeadLetterAction::Drop(letters) => {
            let api = Api::new(letters.server.clone())?;
            if letters.ids.is_empty() {
                return many(&api, &letters, "drop", "dropped").await;
            }
            for_each(letters.ids, "dropped", async |id| {
                api.delete(&format!("/dead-letters/{}", encoded(id))).await
            })
            .await
        }
    }
}

#[derive(Deserialize)]
struct Page {
    items: Vec<Value>,
    #[serde(default)]
    next: Option<String>,
}

/// How far a request about many has come.
#[derive(Deserialize)]
struct Progress {
    done: usize,
    failed: Vec<Failed>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct Failed {
    id: String,
    message: String,
}

async fn list(api: &Api, limit: usize) -> Result<Vec<Value>, Failure> {
    let (mut items, mut next) = (Vec::new(), Some(String::new()));
    while let Some(after) = next.filter(|_| items.len() < limit) {
        let after = if after.is_empty() { after } else { format!("&after={}", encoded(&after)) };
        let page = format!("/dead-letters?limit={}{after}", PAGE.min(limit - items.len()));
        let page: Page = api.get(&page).await?;
        items.extend(page.items);
        next = page.next;
    }
    Ok(items)
}

/// Does `action` to those of a rule or class, or all, and tells how far that is.
async fn many(api: &Api, letters: &Letters, action: &str, done: &str) -> Result<(), Failure> {
    let Letters { rule, class, all, yes, .. } = letters;
    let mut body = serde_json::json!({ "all": all, "confirm": yes });
    for (name, value) in [("rule", rule), ("class", class)] {
        if let Some(value) = value {
            body[name] = value.clone().into();
        }
    }
    let (mut count, mut failed) = (0, Vec::new());
    loop {
        let path = format!("/dead-letters/{action}");
        let progress: Progress = api.post(&path, &body).await?;
        count += progress.done;
        failed
            .extend(progress.failed.into_iter().map(|one| format!("{}: {}", one.id, one.message)));
        output::line(&format!("{done}: {count}\n"))?;
        match progress.next {
            Some(next) => body["after"] = next.into(),
            None => return outcome(&failed),
        }
    }
}

/// Does `action` to each letter; one that fails does not keep the others from it.
async fn for_each(
    ids: Vec<String>,
    done: &str,
    action: impl AsyncFn(&str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut failed = Vec::new();
    for id in ids {
        match action(&id).await {
            Ok(()) => output::line(&format!("{done}: {id}\n"))?,
            Err(failure) => failed.push(format!("{id}: {failure}")),
        }
    }
    outcome(&failed)
}

fn outcome(failed: &[String]) -> Result<(), Failure> {
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Failure::Failed(failed.join("\n       "))),
    }
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
