//! The log of webhook attempts: the last thousand of each webhook, in memory on the bus. And what is
//! to be tried again, by its event, so that the attempts at it are counted.

use crate::{
    Bus, BusError,
    kv::last_on,
    publish::is_token,
    source::{Source, read_all},
};
use async_nats::jetstream::consumer::DeliverPolicy;
use hydrant_proto::{DeliveryAttempt, DeliveryOutcome, codec, subject};

impl Bus {
    /// Appends to the log of the attempt's webhook, without waiting for it to be stored: the log is
    /// for looking at.
    pub async fn log_delivery(&self, attempt: &DeliveryAttempt) -> Result<(), BusError> {
        const WHAT: &str = "log a delivery";
        if !is_token(&attempt.webhook) {
            let reason = "the webhook's name is not one word of a subject".to_owned();
            return Err(BusError::Refused { what: WHAT, reason });
        }
        let bytes = codec::encode(attempt);
        if let DeliveryOutcome::Retry { .. } = attempt.outcome
            && is_token(&attempt.event_id)
        {
            let counted = subject::delivery(&attempt.webhook, &attempt.event_id);
            self.send(counted, bytes.clone().into()).await?;
        }
        self.send(subject::deliveries(&attempt.webhook), bytes.into()).await
    }

    /// The number of the last attempt at an event that is to be tried again; `None` when there was
    /// none, or the bus has lost its memory since.
    pub async fn last_attempt(
        &self,
        webhook: &str,
        event_id: &str,
    ) -> Result<Option<u64>, BusError> {
        if !is_token(webhook) || !is_token(event_id) {
            return Ok(None);
        }
        let last = last_on(self, subject::DELIVERIES_STREAM, &subject::delivery(webhook, event_id))
            .await?;
        let attempt = last.entry.and_then(|entry| codec::decode(&entry.value).ok());
        Ok(attempt.map(|attempt: DeliveryAttempt| attempt.attempt))
    }

    /// The latest `limit` attempts of a webhook, newest first.
    pub async fn delivery_log(
        &self,
        webhook: &str,
        limit: usize,
    ) -> Result<Vec<DeliveryAttempt>, BusError> {
        if !is_token(webhook) {
            return Ok(Vec::new());
        }
        let filter = subject::deliveries(webhook);
        let mut source =
            Source::reader(self, subject::DELIVERIES_STREAM, filter, DeliverPolicy::All);
        let messages = read_all(&mut source).await?;
        let attempts = messages.iter().rev().filter_map(|m| codec::decode(&m.payload).ok());
        Ok(attempts.take(limit).collect())
    }
}
