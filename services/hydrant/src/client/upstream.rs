//! `upstream status NAME`, and what upstreams have in common with other resources.

use super::{
    api::{Api, encoded},
    failure::Failure,
    output, resources,
};
use crate::cli::UpstreamAction;
use hydrant_rules::Kind;
use serde_json::Value;

pub async fn run(action: UpstreamAction) -> Result<(), Failure> {
    match action {
        UpstreamAction::Resource(action) => resources::run(Kind::Upstream, action).await,
        UpstreamAction::Status { name, output, server } => {
            let path = format!("/upstreams/{}/status", encoded(&name));
            let status: Value = Api::new(server)?.get(&path).await?;
            output::print(output, &status, || rows(&status))
        }
    }
}

fn rows(status: &Value) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut row = |name: &str, value: Option<String>| {
        rows.extend(value.map(|value| vec![name.to_owned(), value]));
    };
    row("upstream", status["name"].as_str().map(str::to_owned));
    row("breaker", Some(breaker(&status["breaker"])));
    row("asked by", status["processes"].as_u64().map(|n| format!("{n} processes")));
    row("at once", status["concurrency"].as_u64().map(|n| format!("{n} calls from here")));
    row("quota", quota(&status["quota"]));
    for lane in status["queue"].as_array().into_iter().flatten() {
        let name = format!("{} jobs", lane["lane"].as_str().unwrap_or_default());
        let count = |field: &str| lane[field].as_u64().unwrap_or_default();
        let text = format!("{} waiting, {} outstanding", count("waiting"), count("outstanding"));
        row(&name, Some(text));
    }
    rows
}

fn breaker(breaker: &Value) -> String {
    let state = breaker["state"].as_str().unwrap_or("not asked lately");
    match breaker["retry_after_seconds"].as_u64() {
        Some(seconds) => format!("{state}, next try in {seconds} s"),
        None => state.to_owned(),
    }
}

fn quota(quota: &Value) -> Option<String> {
    let left = quota["remaining"].as_u64()?;
    let of = quota["limit"].as_u64().map(|limit| format!(" of {limit}")).unwrap_or_default();
    let kept = quota["reserve"].as_u64().map(|n| format!(", {n} kept for clients"));
    let reset = quota["reset_seconds"].as_u64().unwrap_or_default();
    Some(format!("{left}{of} left{}, whole in {reset} s", kept.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_known_is_told_and_the_rest_left_out() {
        let status = json!({"name": "hub", "breaker": {"state": "open", "retry_after_seconds": 7},
            "processes": 3, "concurrency": null, "queue": null,
            "quota": {"limit": 100, "remaining": 12, "reserve": 20, "reset_seconds": 60}});
        let told: Vec<_> = rows(&status).into_iter().map(|row| row[1].clone()).collect();
        let quota = "12 of 100 left, 20 kept for clients, whole in 60 s";
        assert_eq!(told, ["hub", "open, next try in 7 s", "3 processes", quota]);
        let unknown = json!({"name": "hub", "breaker": null, "quota": null});
        assert_eq!(rows(&unknown)[1][1], "not asked lately");
    }
}
