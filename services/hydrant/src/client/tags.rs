//! `tag refresh/history/freeze/unfreeze/rollback`.

use super::{
    api::{Api, encoded},
    failure::Failure,
    hydrate::{Order, place},
    output,
};
use crate::cli::{Output, Steer, TagAction};
use serde_json::{Value, json};

pub async fn run(action: TagAction) -> Result<(), Failure> {
    match action {
        TagAction::Refresh { image, reason, wait, timeout, server } => {
            let body = json!({ "image": image, "reason": reason });
            let wait = wait.then_some(timeout);
            place(&Api::new(server)?, &Order { path: "/tags/refresh", body, wait }).await
        }
        TagAction::History { image, output, server } => {
            let path = format!("/tags/history?image={}", encoded(&image));
            let found: Value = Api::new(server)?.get(&path).await?;
            output::print(output, &found, || lines(&found))
        }
        TagAction::Freeze(steer) => {
            let body = json!({ "image": steer.image, "reason": steer.reason });
            change("freeze", body, steer).await
        }
        TagAction::Unfreeze(steer) => {
            let body = json!({ "image": steer.image, "reason": steer.reason });
            change("unfreeze", body, steer).await
        }
        TagAction::Rollback { to, steer } => {
            let body = json!({ "image": steer.image, "reason": steer.reason, "digest": to });
            change("rollback", body, steer).await
        }
    }
}

async fn change(act: &str, body: Value, steer: Steer) -> Result<(), Failure> {
    let changed: Value = Api::new(steer.server)?.post(&format!("/tags/{act}"), &body).await?;
    match steer.output {
        Output::Table => output::line(&format!("{}\n", told(&changed))),
        other => output::print(other, &changed, Vec::new),
    }
}

/// What the tag does now, and how that is ended.
fn told(tag: &Value) -> String {
    let (image, digest) = (text(&tag["image"]), text(&tag["digest"]));
    match tag["frozen"].is_object() {
        true => format!(
            "{image} stays at {digest}, whatever the upstream says; let it go on with: \
             hydrant tag unfreeze {image}"
        ),
        false => format!("{image} is at {digest} and follows the upstream again"),
    }
}

fn lines(found: &Value) -> Vec<Vec<String>> {
    let head = ["AT", "WHAT", "BY", "ACTOR", "DIGEST", "REASON"].map(str::to_owned).to_vec();
    let row = |line: &Value| {
        let given = |field: &str| line[field].as_str().unwrap_or("-").to_owned();
        vec![
            text(&line["at"]),
            text(&line["act"]),
            text(&line["by"]),
            given("actor"),
            text(&line["digest"]),
            given("reason"),
        ]
    };
    let items = found["items"].as_array().map_or(&[][..], Vec::as_slice);
    std::iter::once(head).chain(items.iter().map(row)).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
