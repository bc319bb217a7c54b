//! What happened: the events that subscribers hear of. On the bus they travel as messages of this
//! crate; towards webhooks the notifier writes them as CloudEvents 1.0.

use crate::{
    class::FailureClass,
    codec::Message,
    digest::Digest,
    image::{Platform, Reference, RepositoryName},
    job::identity,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The kinds of event. The text is the CloudEvents `type` and what a webhook's `events` filter names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EventKind {
    #[serde(rename = "image.hydrated")]
    ImageHydrated,
    #[serde(rename = "hydration.failed")]
    HydrationFailed,
    #[serde(rename = "hydration.deadlettered")]
    HydrationDeadLettered,
    #[serde(rename = "tag.moved")]
    TagMoved,
    #[serde(rename = "served.stale")]
    ServedStale,
    #[serde(rename = "upstream.breaker.opened")]
    BreakerOpened,
    #[serde(rename = "upstream.breaker.closed")]
    BreakerClosed,
    #[serde(rename = "credential.rejected")]
    CredentialRejected,
    /// What is left of an upstream's budget is kept for interactive pulls.
    #[serde(rename = "quota.low")]
    QuotaLow,
    /// Sent on request only, to try an endpoint.
    #[serde(rename = "webhook.test")]
    WebhookTest,
}

impl EventKind {
    pub const ALL: [Self; 10] = [
        Self::ImageHydrated,
        Self::HydrationFailed,
        Self::HydrationDeadLettered,
        Self::TagMoved,
        Self::ServedStale,
        Self::BreakerOpened,
        Self::BreakerClosed,
        Self::CredentialRejected,
        Self::QuotaLow,
        Self::WebhookTest,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ImageHydrated => "image.hydrated",
            Self::HydrationFailed => "hydration.failed",
            Self::HydrationDeadLettered => "hydration.deadlettered",
            Self::TagMoved => "tag.moved",
            Self::ServedStale => "served.stale",
            Self::BreakerOpened => "upstream.breaker.opened",
            Self::BreakerClosed => "upstream.breaker.closed",
            Self::CredentialRejected => "credential.rejected",
            Self::QuotaLow => "quota.low",
            Self::WebhookTest => "webhook.test",
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One event. Its id is a function of what happened, so that telling it twice, by whichever
/// process, is seen as the same event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// 32 hex digits; also the `Nats-Msg-Id` and the `webhook-id`.
    pub id: String,
    pub kind: EventKind,
    pub time: Timestamp,
    pub data: EventData,
    /// The one webhook this is for: a test, or a dead letter tried again. Everybody else passes
    /// over it. Absent, it is for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<String>,
}

/// What the event is about; fields that do not apply are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventData {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<String>,
    /// The downstream repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<RepositoryName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The digest the tag named before (`tag.moved`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_digest: Option<Digest>,
    /// Platforms that are local (`image.hydrated` of an index).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<Platform>,
    /// Bytes of the whole closure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Blobs of the whole closure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blobs: Option<u64>,
    /// Raised by each change of the thing the event is about.
    #[serde(default)]
    pub seq: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<FailureClass>,
    /// For people; no credentials, tokens or bodies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Event {
    /// An event with its id made from (kind, upstream, rule, generation, repository, reference,
    /// digest, seq).
    pub fn new(kind: EventKind, time: Timestamp, data: EventData) -> Self {
        let text =
            |value: Option<&dyn ToString>| value.map(ToString::to_string).unwrap_or_default();
        let id = identity(&[
            kind.as_str(),
            data.upstream.as_deref().unwrap_or_default(),
            data.rule.as_deref().unwrap_or_default(),
            data.generation.as_deref().unwrap_or_default(),
            &text(data.repository.as_ref().map(|x| x as _)),
            &text(data.reference.as_ref().map(|x| x as _)),
            &text(data.digest.as_ref().map(|x| x as _)),
            &data.seq.to_string(),
        ]);
        Self { id: id.into(), kind, time, data, webhook: None }
    }

    /// A `webhook.test` for one webhook. Each asking is an event of its own, told apart by `time`.
    pub fn test(webhook: &str, time: Timestamp) -> Self {
        let id = identity(&[EventKind::WebhookTest.as_str(), webhook, &time.to_string()]);
        let reason = Some(format!("test delivery to webhook {webhook}"));
        let data = EventData { reason, ..EventData::default() };
        Self { id: id.into(), kind: EventKind::WebhookTest, time, data, webhook: None }
            .addressed_to(webhook)
    }

    /// The same event, with the same id, for one webhook only.
    pub fn addressed_to(mut self, webhook: &str) -> Self {
        self.webhook = Some(webhook.to_owned());
        self
    }
}

impl Message for Event {
    const KIND: &'static str = "event";
    const VERSION: u16 = 1;
}
