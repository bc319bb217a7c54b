//! The webhook of the demo: its secret, and what is to be thought of what arrives.

use hydrant_notifier::verify;
use hydrant_testkit::{WebhookRequest, WebhookSink};
use std::time::Duration;
use tokio::time::sleep;

/// A Standard Webhooks secret that guards nothing but this demo.
pub const SECRET: &str = "whsec_aHlkcmFudC1kZW1vLXNlY3JldC0zMi1ieXRlcy1sb25n";
const KIND: &str = "image.hydrated";
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// An `image.hydrated` that arrived.
#[derive(Clone, Debug)]
pub struct Announced {
    /// As the event has it.
    pub digest: String,
    pub platforms: usize,
    /// Why it is not to be trusted, if so.
    pub signature: Result<(), String>,
}

/// Waits for the announcement; other events are passed over.
pub async fn announcement(sink: &WebhookSink) -> Announced {
    loop {
        let received = sink.received();
        if let Some(request) = received.iter().find(|request| request.kind() == KIND) {
            return read(request);
        }
        sleep(LOOK_AGAIN).await;
    }
}

fn read(request: &WebhookRequest) -> Announced {
    let data = &request.json()["data"];
    let signature = verify(SECRET, &request.headers, &request.body);
    Announced {
        digest: data["digest"].as_str().unwrap_or_default().to_owned(),
        platforms: data["platforms"].as_array().map_or(0, Vec::len),
        signature: signature.map_err(|error| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Instant, SystemTime};

    #[test]
    fn what_nobody_signed_is_not_trusted() {
        let request = WebhookRequest {
            at: Instant::now(),
            time: SystemTime::now(),
            method: "POST".to_owned(),
            path: "/hook".to_owned(),
            headers: Default::default(),
            body: r#"{"data":{"digest":"sha256:0","platforms":["a","b"]}}"#.into(),
        };
        let announced = read(&request);
        assert_eq!((announced.digest.as_str(), announced.platforms), ("sha256:0", 2));
        assert!(announced.signature.unwrap_err().contains("webhook-id"));
    }
}
