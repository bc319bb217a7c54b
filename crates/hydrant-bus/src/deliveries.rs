//! The log of webhook attempts: the last thousand of each webhook, in memory on the bus.

use crate::{
    Bus, BusError,
    publish::is_token,
    source::{Source, read_all},
};
use async_nats::jetstream::consumer::DeliverPolicy;
use hydrant_proto::{DeliveryAttempt, codec, subject};

impl Bus {
    /// Appends to the log of the attempt's webhook, without waiting for it to be stored: the log is
    /// for looking at.
    pub async fn log_delivery(&self, attempt: &DeliveryAttempt) -> Result<(), BusError> {
        const WHAT: &str = "log a delivery";
        if !is_token(&attempt.webhook) {
            let reason = "the webhook's name is not one word of a subject".to_owned();
            return Err(BusError::Refused { what: WHAT, reason });
        }
        self.send(subject::deliveries(&attempt.webhook), codec::encode(attempt).into()).await
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
