//! An event as CloudEvents 1.0 in structured JSON: the body of a delivery.
//!
//! The bytes are a function of the event and of the trace it was published in, so every attempt
//! sends the same body.

use crate::{
    event::{Event, EventData},
    image::Image,
};
use serde::Serialize;

/// The media type of the body.
pub const CONTENT_TYPE: &str = "application/cloudevents+json; charset=utf-8";

const SPEC_VERSION: &str = "1.0";
const DATA_CONTENT_TYPE: &str = "application/json";

/// Context attributes and data, in the order they are written.
#[derive(Serialize)]
struct CloudEvent<'e> {
    specversion: &'static str,
    id: &'e str,
    source: String,
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    time: String,
    datacontenttype: &'static str,
    /// Distributed tracing extension: the trace in which the event came about. The HTTP header of
    /// the same name is the delivery's own hop.
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'e str>,
    data: &'e EventData,
}

/// The body that tells of `event`, which came about in the trace `traceparent`.
pub fn body(event: &Event, traceparent: Option<&str>) -> Vec<u8> {
    let cloud_event = CloudEvent {
        specversion: SPEC_VERSION,
        id: &event.id,
        source: source(&event.data),
        r#type: event.kind.as_str(),
        subject: subject(event),
        time: event.time.to_string(),
        datacontenttype: DATA_CONTENT_TYPE,
        traceparent,
        data: &event.data,
    };
    serde_json::to_vec(&cloud_event).expect("an event holds only strings, numbers, lists and maps")
}

/// A URI reference: `/hydrant/<rule>`, or the upstream when no rule is concerned. Both are names
/// of resources, so nothing needs escaping.
fn source(data: &EventData) -> String {
    match data.rule.as_deref().or(data.upstream.as_deref()) {
        Some(name) => format!("/hydrant/{name}"),
        None => "/hydrant".to_owned(),
    }
}

/// What the event is about: the image, else the repository, the upstream or the tested webhook.
fn subject(event: &Event) -> Option<String> {
    let data = &event.data;
    match (&data.repository, &data.reference) {
        (Some(repository), Some(reference)) => {
            let image = Image { repository: repository.clone(), reference: reference.clone() };
            Some(image.to_string())
        }
        (Some(repository), None) => Some(repository.to_string()),
        (None, _) => data.upstream.clone().or_else(|| event.webhook.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Digest, EventKind};

    fn event(reference: &str) -> Event {
        let data = EventData {
            rule: Some("lab".into()),
            repository: Some("lab/team/app".parse().unwrap()),
            reference: Some(reference.parse().unwrap()),
            ..EventData::default()
        };
        Event::new(EventKind::ImageHydrated, "2026-11-23T12:07:41Z".parse().unwrap(), data)
    }

    #[test]
    fn a_digest_is_written_with_an_at_sign() {
        let digest = Digest::of(b"x").to_string();
        assert_eq!(subject(&event(&digest)), Some(format!("lab/team/app@{digest}")));
        assert_eq!(subject(&event("1.2")).as_deref(), Some("lab/team/app:1.2"));
    }

    #[test]
    fn required_attributes_are_there_and_absent_ones_are_left_out() {
        let body: serde_json::Value = serde_json::from_slice(&body(&event("1"), None)).unwrap();
        for attribute in ["specversion", "id", "source", "type"] {
            assert!(body[attribute].is_string(), "{attribute}");
        }
        assert_eq!(body["source"], "/hydrant/lab");
        assert!(body.get("traceparent").is_none());
    }
}
