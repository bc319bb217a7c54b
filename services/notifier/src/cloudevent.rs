//! An event as CloudEvents 1.0 in structured JSON: the body of a delivery.
//!
//! The bytes are a function of the event and of the trace it was published in, so every attempt
//! sends the same body.

use hydrant_proto::{Event, EventData, Image};
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
    use hydrant_proto::{Digest, EventKind, FailureClass};

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn hydrated() -> Event {
        let data = EventData {
            upstream: Some("lab".into()),
            rule: Some("lab-rule".into()),
            generation: Some("9f2c".into()),
            repository: Some("lab/team/app".parse().unwrap()),
            reference: Some("1.2".parse().unwrap()),
            digest: Some(Digest::of(b"manifest")),
            media_type: Some("application/vnd.oci.image.index.v1+json".into()),
            platforms: vec!["linux/amd64".parse().unwrap(), "linux/arm/v7".parse().unwrap()],
            size_bytes: Some(123_456),
            blobs: Some(3),
            seq: 7,
            ..EventData::default()
        };
        Event::new(EventKind::ImageHydrated, "2026-11-23T12:07:41Z".parse().unwrap(), data)
    }

    fn broken() -> Event {
        let data = EventData {
            upstream: Some("hub".into()),
            class: Some(FailureClass::UpstreamDown),
            reason: Some("10 of 10 requests failed".into()),
            ..EventData::default()
        };
        Event::new(EventKind::BreakerOpened, "2026-11-23T12:07:41.25Z".parse().unwrap(), data)
    }

    /// Compares with a kept file; receivers parse these bytes, so a change must be meant.
    fn is_as_kept(body: &[u8], file: &str) {
        let pretty: serde_json::Value = serde_json::from_slice(body).unwrap();
        let pretty = serde_json::to_string_pretty(&pretty).unwrap();
        let path = format!("{}/tests/fixtures/{file}", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("HYDRANT_KEEP_FIXTURES").is_some() {
            std::fs::write(&path, format!("{pretty}\n")).unwrap();
        }
        assert_eq!(pretty, std::fs::read_to_string(path).unwrap().trim_end());
    }

    #[test]
    fn the_json_of_every_shape_of_event_is_as_kept() {
        is_as_kept(&body(&hydrated(), Some(TRACE)), "image.hydrated.json");
        is_as_kept(&body(&broken(), None), "upstream.breaker.opened.json");
        let test = Event::test("ci", "2026-11-23T12:07:41Z".parse().unwrap());
        is_as_kept(&body(&test, None), "webhook.test.json");
    }

    #[test]
    fn the_bytes_are_the_same_at_every_attempt_and_for_one_webhook_alone() {
        let event = hydrated();
        let first = body(&event, Some(TRACE));
        assert_eq!(first, body(&event, Some(TRACE)));
        assert_eq!(first, body(&event.addressed_to("ci"), Some(TRACE)));
        assert!(first.starts_with(br#"{"specversion":"1.0","id":""#));
    }

    #[test]
    fn a_digest_is_written_with_an_at_sign() {
        let mut event = hydrated();
        event.data.reference = Some(Digest::of(b"x").to_string().parse().unwrap());
        assert_eq!(subject(&event), Some(format!("lab/team/app@{}", Digest::of(b"x"))));
    }
}
