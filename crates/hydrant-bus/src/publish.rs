//! Publishing: jobs guarded by their subject's expected sequence, events by their id.

use crate::{Bus, BusError, headers};
use async_nats::jetstream::{
    context::{PublishError, PublishErrorKind},
    message::PublishMessage,
};
use hydrant_proto::{Event, HydrationRequested, codec, subject};
use hydrant_telemetry::{
    metrics::{PublishOutcome, metrics},
    spans,
};
use tracing::Instrument;

/// What became of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    Queued,
    /// The same job is on the queue or running; it will see the miss log.
    AlreadyQueued,
}

impl Bus {
    /// Queues a job unless the same one is outstanding. Meant to be called off the response path:
    /// it takes up to 5 s when NATS does not answer, and fails at once while disconnected.
    ///
    /// [`BusError::Unknown`] means it may be queued or not; queueing it again is harmless.
    pub async fn publish_job(&self, job: &HydrationRequested) -> Result<Published, BusError> {
        const WHAT: &str = "queue a job";
        if !is_token(&job.upstream) {
            let reason = format!("upstream name {:?} is not one word of a subject", job.upstream);
            return Err(BusError::Refused { what: WHAT, reason });
        }
        let message = PublishMessage::build()
            .headers(headers::of_current_trace())
            .payload(codec::encode(job).into())
            .expected_stream(subject::JOBS_STREAM)
            .expected_last_subject_sequence(0);
        match self.publish(WHAT, subject::JOBS_STREAM, subject::job(job), message).await {
            Ok(_) => Ok(Published::Queued),
            Err(BusError::Conflict { .. }) => Ok(Published::AlreadyQueued),
            Err(error) => Err(error),
        }
    }

    /// Publishes an event and waits until it is stored. The same event published twice within an
    /// hour is stored once; one addressed to a single webhook is stored each time.
    pub async fn publish_event(&self, event: &Event) -> Result<(), BusError> {
        const WHAT: &str = "publish an event";
        if !is_token(&event.id) {
            let reason = "the event's id is not one word".to_owned();
            return Err(BusError::Refused { what: WHAT, reason });
        }
        let span = spans::published(subject::EVENTS_STREAM);
        let headers = match span.is_none() {
            true => headers::of_current_trace(),
            false => span.in_scope(headers::of_current_trace),
        };
        let message = PublishMessage::build()
            .headers(headers)
            .payload(codec::encode(event).into())
            .expected_stream(subject::EVENTS_STREAM);
        let message = match event.webhook {
            None => message.message_id(&event.id),
            Some(_) => message,
        };
        let subject = subject::event(event.kind);
        let published = self.publish(WHAT, subject::EVENTS_STREAM, subject, message);
        published.instrument(span).await.map(drop)
    }

    /// Publishes and waits for the stream's answer, which is the message's sequence. A missing
    /// stream is made and tried once more.
    pub(crate) async fn publish(
        &self,
        what: &'static str,
        stream: &'static str,
        subject: String,
        message: PublishMessage,
    ) -> Result<u64, BusError> {
        let published = async {
            self.reachable()?;
            let outcome = match self.publish_once(&subject, message.clone()).await {
                Err(error) if error.kind() == PublishErrorKind::StreamNotFound => {
                    self.ensure_topology().await?;
                    self.publish_once(&subject, message).await
                }
                outcome => outcome,
            };
            outcome.map_err(|error| BusError::from_publish(what, error))
        };
        let outcome = published.await;
        metrics().bus.published(stream, label(&outcome));
        outcome
    }

    async fn publish_once(
        &self,
        subject: &str,
        message: PublishMessage,
    ) -> Result<u64, PublishError> {
        let answer = self.jetstream().send_publish(subject.to_owned(), message).await?;
        Ok(answer.await?.sequence)
    }
}

fn label(outcome: &Result<u64, BusError>) -> PublishOutcome {
    match outcome {
        Ok(_) => PublishOutcome::Sent,
        Err(BusError::Conflict { .. }) => PublishOutcome::Duplicate,
        Err(BusError::Full { .. }) => PublishOutcome::Full,
        Err(BusError::Unknown { .. }) => PublishOutcome::Unknown,
        Err(BusError::Disconnected(_) | BusError::Refused { .. } | BusError::Malformed { .. }) => {
            PublishOutcome::Refused
        }
    }
}

/// Whether `text` can be one token of a subject, and of a header.
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_hold_nothing_the_protocol_reads() {
        assert!(is_token("docker-hub"));
        for bad in ["", "a.b", "*", ">", "a b", "a\r\nb", "é"] {
            assert!(!is_token(bad), "{bad:?}");
        }
    }
}
