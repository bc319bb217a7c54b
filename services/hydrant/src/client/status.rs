//! `status IMAGE`.

use super::{
    api::{Api, encoded},
    failure::Failure,
    output,
};
use crate::cli::Status;
use serde_json::Value;

pub async fn run(flags: Status) -> Result<(), Failure> {
    let path = format!("/status?image={}", encoded(&flags.image));
    let status: Value = Api::new(flags.server)?.get(&path).await?;
    output::print(flags.output, &status, || rows(&status))
}

fn rows(status: &Value) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut row = |name: &str, value: Option<String>| {
        rows.extend(value.map(|value| vec![name.to_owned(), value]));
    };
    row("image", text(&status["image"]));
    row("hydrated", Some(if status["hydrated"] == true { "yes" } else { "no" }.to_owned()));
    row("digest", text(&status["digest"]));
    row("tag", tag(&status["tag"]));
    row("content", content(&status["completion"]));
    row("platforms", list(&status["completion"]["platforms"]));
    let through = format!(
        "rule {}, upstream {} ({})",
        text(&status["rule"]).unwrap_or_default(),
        text(&status["upstream"]).unwrap_or_default(),
        text(&status["upstream_repository"]).unwrap_or_default()
    );
    row("through", Some(through));
    row("waiting", status["misses"].as_u64().filter(|n| *n > 0).map(|n| format!("{n} misses")));
    row("job", job(&status["hydration"]));
    row("given up", dead_letter(&status["dead_letter"]));
    rows
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn list(value: &Value) -> Option<String> {
    let names: Vec<_> = value.as_array()?.iter().filter_map(Value::as_str).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

fn tag(tag: &Value) -> Option<String> {
    let age = tag["age_seconds"].as_u64()?;
    let state = if tag["fresh"] == true { "fresh" } else { "due for a check" };
    let owner = if tag["owner"] == "push" { "pushed" } else { "cached" };
    let held = match (tag["frozen"].is_object(), tag["freshness"]["immutable"] == true) {
        (true, _) => ", frozen",
        (false, true) => ", immutable",
        (false, false) => "",
    };
    Some(format!("{owner}{held}, {state}, confirmed {age} s ago"))
}

fn content(completion: &Value) -> Option<String> {
    let (blobs, bytes) = (completion["blobs"].as_u64()?, completion["size_bytes"].as_u64()?);
    let at = text(&completion["completed_at"]).unwrap_or_default();
    Some(format!("{blobs} blobs, {}, complete since {at}", output::size(bytes)))
}

fn job(job: &Value) -> Option<String> {
    let phase = text(&job["phase"])?;
    let reason = text(&job["reason"]).map(|reason| format!(": {reason}")).unwrap_or_default();
    Some(format!("{phase}{reason} ({})", text(&job["id"]).unwrap_or_default()))
}

fn dead_letter(letter: &Value) -> Option<String> {
    let (id, reason) = (text(&letter["id"])?, text(&letter["reason"]).unwrap_or_default());
    Some(format!("{reason}; try again with: hydrant dead-letter retry {id}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_not_known_is_left_out() {
        let status = json!({"image": "lab/app:1", "hydrated": false, "rule": "lab",
            "upstream": "lab", "upstream_repository": "app", "misses": 0, "digest": null,
            "tag": null, "completion": null, "hydration": null, "dead_letter": null});
        let names: Vec<_> = rows(&status).into_iter().map(|row| row[0].clone()).collect();
        assert_eq!(names, ["image", "hydrated", "through"]);
    }
}
