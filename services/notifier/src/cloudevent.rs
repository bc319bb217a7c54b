//! The body of a delivery: an event as CloudEvents 1.0. Receivers parse these bytes, so they are
//! kept as fixtures here.

pub use hydrant_proto::cloudevent::{CONTENT_TYPE, body};

#[cfg(test)]
mod tests {
    use super::*;
    use hydrant_proto::{Digest, Event, EventData, EventKind, FailureClass};

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
}
