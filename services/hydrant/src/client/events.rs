//! `events`: what happened, and what happens.

use super::{
    api::{Api, encoded},
    failure::Failure,
    output,
};
use crate::cli::{Events, Output};
use hydrant_boot::Schedule;
use serde_json::Value;
use std::{collections::VecDeque, time::Duration};

const AGAIN: Schedule = Schedule::doubling(Duration::from_millis(500), Duration::from_secs(10));
/// Ids remembered, so that an event at the seam of two connections is shown once.
const REMEMBERED: usize = 256;
/// Longest line of a stream: an event is far below.
const MAX_LINE: usize = 1024 * 1024;

pub async fn run(flags: Events) -> Result<(), Failure> {
    let api = Api::new(flags.server.clone())?;
    let mut shown = Shown { output: flags.output, since: since(&flags), seen: VecDeque::new() };
    let mut failures = 0;
    loop {
        let before = shown.seen.back().cloned();
        let ended = shown.stream(&api, flags.follow).await;
        match ended {
            Err(failure) if !(flags.follow && failure.may_pass()) => return Err(failure),
            Ok(()) if !flags.follow => return Ok(()),
            _ => {}
        }
        failures = if shown.seen.back() == before.as_ref() { failures + 1 } else { 1 };
        tokio::time::sleep(AGAIN.delay(failures)).await;
    }
}

fn since(flags: &Events) -> Option<String> {
    flags.since.clone().or_else(|| (!flags.follow).then(|| "1h".to_owned()))
}

struct Shown {
    output: Output,
    since: Option<String>,
    seen: VecDeque<String>,
}

impl Shown {
    /// Shows one connection's events, until it ends.
    async fn stream(&mut self, api: &Api, follow: bool) -> Result<(), Failure> {
        let since = self.since.as_deref().map(|since| format!("&since={}", encoded(since)));
        let path = format!("/events?follow={follow}{}", since.unwrap_or_default());
        let mut response = api.stream(&path).await?;
        let mut rest = Vec::new();
        // A broken connection is the end of this one.
        while let Ok(Some(bytes)) = response.chunk().await {
            rest.extend_from_slice(&bytes);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                self.show(&line)?;
            }
            if rest.len() > MAX_LINE {
                return Err(Failure::Failed("the server sends no events but noise".to_owned()));
            }
        }
        Ok(())
    }

    fn show(&mut self, line: &[u8]) -> Result<(), Failure> {
        let Ok(event) = serde_json::from_slice::<Value>(line) else { return Ok(()) };
        let id = event["id"].as_str().unwrap_or_default().to_owned();
        if self.seen.contains(&id) {
            return Ok(());
        }
        self.seen.push_back(id);
        if self.seen.len() > REMEMBERED {
            self.seen.pop_front();
        }
        self.since = event["time"].as_str().map(str::to_owned).or(self.since.take());
        match self.output {
            Output::Table => output::line(&format!("{}\n", sentence(&event))),
            Output::Json => output::line(&format!("{event}\n")),
            Output::Toml => output::print(Output::Toml, &event, Vec::new),
        }
    }
}

/// One event as one line for people.
fn sentence(event: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let data = &event["data"];
    let mut line = format!(
        "{}  {:<24} {}",
        text(&event["time"]),
        text(&event["type"]),
        text(&event["subject"])
    );
    if let Some(size) = data["size_bytes"].as_u64() {
        line.push_str(&format!("  {}", output::size(size)));
    }
    for field in ["digest", "class", "reason"] {
        if let Some(value) = data[field].as_str() {
            line.push_str(&format!("  {value}"));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_is_shown_once_and_moves_the_mark() {
        let mut shown = Shown { output: Output::Json, since: None, seen: VecDeque::new() };
        let event = json!({"id": "a", "time": "2026-11-23T12:00:00Z", "type": "tag.moved"});
        shown.show(event.to_string().as_bytes()).unwrap();
        shown.show(event.to_string().as_bytes()).unwrap();
        shown.show(b"\n").unwrap();
        assert_eq!(shown.seen.len(), 1);
        assert_eq!(shown.since.as_deref(), Some("2026-11-23T12:00:00Z"));
    }

    #[test]
    fn a_line_for_people_names_what_happened_to_what() {
        let line = sentence(&json!({"time": "T", "type": "image.hydrated", "subject": "lab/app:1",
            "data": {"size_bytes": 2048, "digest": "sha256:1"}}));
        assert!(line.contains("image.hydrated") && line.contains("lab/app:1  2.00 KiB"), "{line}");
    }
}
