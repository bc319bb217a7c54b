//! What a handler is given, and what it may answer.

use bytes::Bytes;
use hydrant_proto::{Event, HydrationRequested, JobId, Message, subject};
use hydrant_telemetry::metrics::{JobVerdict, metrics};
use jiff::Timestamp;
use std::time::Duration;
use tracing::Span;

/// A message handed to a handler.
#[derive(Clone, Debug)]
pub struct Received<M> {
    pub message: M,
    /// How often the server has delivered it, this time included: 1 for the first. Not a count of
    /// attempts: a worker that was killed or cut off raises it too, and so does a paused upstream.
    pub deliveries: u64,
    /// When it was stored on the bus for the first time.
    pub published: Timestamp,
    /// W3C `traceparent` it was published under, the same at every delivery. The handler runs in a
    /// span of that trace already; this is for who has to pass it on as data.
    pub traceparent: Option<String>,
}

/// A hydration to do.
pub type Job = Received<HydrationRequested>;
/// An event to deliver to one webhook.
pub type Delivery = Received<Event>;

impl Job {
    pub fn id(&self) -> JobId {
        self.message.id()
    }
}

/// What the consume loop does with a message after its handler returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The postcondition was seen in storage (or the delivery accepted). Removes the message.
    Done,
    /// Not wanted any more, such as a job of an old generation. Removes the message.
    Obsolete,
    /// Give it back, to be delivered again after this long at the earliest.
    Later(Duration),
    /// Given up, and the dead letter is written. Removes the message.
    Dead,
}

/// A message that cannot be handled: it does not decode, came on a subject of something else, or its handler panicked again and again.
#[derive(Clone, Debug)]
pub struct Rejected {
    /// The subject it came on; for a job that names lane, upstream and job id.
    pub subject: String,
    pub payload: Bytes,
    /// For people.
    pub reason: String,
    pub deliveries: u64,
    pub published: Timestamp,
}

/// A message the consume loop can carry.
pub trait Consumed: Message + Clone + Send + Sync + 'static {
    /// The stream it is on.
    const STREAM: &'static str;

    /// Where such a message is published. One found elsewhere is refused: its key would guard
    /// something else.
    fn subject(&self) -> String;

    /// The span its handler runs in; `owner` is the upstream or webhook it is for.
    fn span(&self, owner: &str) -> Span;

    /// Counts a message that a handler begins to work on.
    fn began(owner: &str);

    /// Counts a message that was settled.
    fn settled(owner: &str, verdict: JobVerdict, took: Duration);
}

impl Consumed for HydrationRequested {
    const STREAM: &'static str = subject::JOBS_STREAM;

    fn subject(&self) -> String {
        subject::job(self)
    }

    fn span(&self, owner: &str) -> Span {
        tracing::info_span!(
            "hydration",
            otel.name = "process HYDRANT_JOBS",
            otel.kind = "consumer",
            messaging.system = "nats",
            messaging.operation.name = "process",
            messaging.operation.type = "process",
            messaging.destination.name = subject::JOBS_STREAM,
            upstream = owner,
            job.id = %self.id(),
            rule = self.rule,
            image.repository = %self.repository,
            image.reference = %self.reference,
        )
    }

    fn began(owner: &str) {
        metrics().hydrations.attempted(owner);
    }

    fn settled(owner: &str, verdict: JobVerdict, took: Duration) {
        metrics().hydrations.settled(owner, verdict, took);
    }
}

impl Consumed for Event {
    const STREAM: &'static str = subject::EVENTS_STREAM;

    fn subject(&self) -> String {
        subject::event(self.kind)
    }

    fn span(&self, owner: &str) -> Span {
        tracing::info_span!(
            "delivery",
            otel.name = "process HYDRANT_EVENTS",
            otel.kind = "consumer",
            messaging.system = "nats",
            messaging.operation.name = "process",
            messaging.operation.type = "process",
            messaging.destination.name = subject::EVENTS_STREAM,
            webhook = owner,
            event.id = self.id,
            event.kind = %self.kind,
        )
    }

    /// Deliveries are counted where the endpoint's answer is known.
    fn began(_: &str) {}

    fn settled(_: &str, _: JobVerdict, _: Duration) {}
}
