//! What is kept of a delivery that was given up, for people to look at and to try again.

use crate::{
    delivery::{Answer, Unsent},
    endpoint::Attempt,
    settle,
};
use hydrant_bus::Rejected;
use hydrant_store::{DeadLetter, DeadLetterId, GivenUp, Store, StoreError};
use jiff::Timestamp;

/// Records that `webhook` did not take the event of `attempt`. Told twice, it is one record.
pub async fn keep(
    store: &Store,
    webhook: &str,
    attempt: &Attempt,
    result: &Result<Answer, Unsent>,
    at: Timestamp,
) -> Result<(), StoreError> {
    let event = attempt.delivery.message.clone();
    let letter = DeadLetter {
        id: DeadLetterId::of_delivery(webhook, &event.id),
        given_up: GivenUp::Delivery { webhook: webhook.to_owned(), event },
        class: Some(settle::class(result)),
        reason: settle::complaint(result).unwrap_or_default(),
        attempts: attempt.number,
        at,
    };
    store.put_dead_letter(&letter).await
}

/// Records a message on the events stream that is no event. Every webhook meets it; it is one
/// record all the same.
pub async fn keep_malformed(store: &Store, rejected: Rejected) -> Result<(), StoreError> {
    let letter = DeadLetter {
        id: DeadLetterId::of_malformed(&rejected.subject, &rejected.payload),
        given_up: GivenUp::malformed(&rejected.subject, &rejected.payload),
        class: None,
        reason: rejected.reason,
        attempts: rejected.deliveries,
        at: Timestamp::now(),
    };
    store.put_dead_letter(&letter).await
}
