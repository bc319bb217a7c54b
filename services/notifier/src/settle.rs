//! What follows an attempt: the table from judgement and attempt number to the next step. Pure.

use crate::{
    delivery::{Answer, Judgement, Unsent},
    schedule::{Next, Schedule},
};
use hydrant_egress::EgressError;
use hydrant_proto::FailureClass;
use jiff::SignedDuration;
use std::time::Duration;

/// The next step of one delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Delivered.
    Done,
    /// Put back for so long.
    Again(Duration),
    /// The schedule is used up: dead letter.
    GiveUp,
    /// The endpoint is gone: disable it, dead letter.
    Disable,
}

/// Which attempt a delivery is, after the `last` that failed. Where none is known there was none, or
/// the bus has lost its memory: what is older than `patience` is then counted by its deliveries, so
/// that it comes to an end before the bus forgets it.
pub fn number(
    deliveries: u64,
    last: Option<u64>,
    age: SignedDuration,
    patience: SignedDuration,
) -> u64 {
    match last {
        Some(last) => (last + 1).min(deliveries),
        None if age > patience => deliveries,
        None => 1,
    }
}

pub fn step(judgement: Judgement, attempt: u64, schedule: &Schedule) -> Step {
    match judgement {
        Judgement::Delivered => Step::Done,
        Judgement::Gone => Step::Disable,
        Judgement::Failed { retry_after } => match schedule.after(attempt, retry_after) {
            Next::Again(pause) => Step::Again(pause),
            Next::Never => Step::GiveUp,
        },
    }
}

/// The class a dead letter carries. Classes were made for upstreams; for an endpoint they read:
/// denied (by us, or it said no), auth (our secret is unusable), limit (429), down (the rest).
pub fn class(result: &Result<Answer, Unsent>) -> FailureClass {
    match result {
        Ok(answer) if answer.status.as_u16() == 429 => FailureClass::UpstreamLimit,
        Ok(answer) if answer.status.is_client_error() => FailureClass::Denied,
        Ok(_) | Err(Unsent::Timeout(_) | Unsent::Transport(_)) => FailureClass::UpstreamDown,
        Err(Unsent::Egress(EgressError::Unresolved { .. })) => FailureClass::UpstreamDown,
        Err(Unsent::Egress(_)) => FailureClass::Denied,
        Err(Unsent::Secret(_)) => FailureClass::UpstreamAuth,
        Err(Unsent::Id) => FailureClass::Unsupported,
    }
}

/// Why the attempt failed, for people; `None` when it did not.
pub fn complaint(result: &Result<Answer, Unsent>) -> Option<String> {
    match result {
        Ok(answer) if answer.status.is_success() => None,
        Ok(answer) => Some(answer.complaint()),
        Err(unsent) => Some(unsent.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    fn answered(status: u16) -> Result<Answer, Unsent> {
        Ok(Answer { status: StatusCode::from_u16(status).unwrap(), retry_after: None })
    }

    #[test]
    fn the_last_failure_of_the_schedule_is_given_up() {
        let pause = Duration::from_secs(5);
        let schedule = Schedule::exactly([pause]);
        let failed = Judgement::Failed { retry_after: None };
        let table = [
            (Judgement::Delivered, 1, Step::Done),
            (Judgement::Delivered, 99, Step::Done),
            (failed, 1, Step::Again(pause)),
            (failed, 2, Step::GiveUp),
            (failed, 99, Step::GiveUp),
            (Judgement::Gone, 1, Step::Disable),
        ];
        for (judgement, attempt, expected) in table {
            assert_eq!(step(judgement, attempt, &schedule), expected, "{judgement:?} {attempt}");
        }
    }

    #[test]
    fn what_was_given_back_is_no_attempt_and_nothing_is_tried_for_ever() {
        let patience = SignedDuration::from_secs(5);
        let (young, old) = (SignedDuration::from_secs(4), SignedDuration::from_secs(6));
        let table = [
            (3, None, young, 1),
            (3, Some(1), young, 2),
            (3, Some(1), old, 2),
            // Of an earlier time that the same event was given up.
            (2, Some(9), young, 2),
            (3, None, old, 3),
        ];
        for (deliveries, last, age, expected) in table {
            assert_eq!(number(deliveries, last, age, patience), expected, "{last:?} {age}");
        }
    }

    #[test]
    fn every_failure_has_a_class_and_a_reason() {
        let timeout = || Err(Unsent::Timeout(Duration::from_secs(30)));
        assert_eq!(complaint(&answered(204)), None);
        for (result, expected, text) in [
            (answered(302), FailureClass::UpstreamDown, "not followed"),
            (answered(404), FailureClass::Denied, "404"),
            (answered(429), FailureClass::UpstreamLimit, "429"),
            (answered(503), FailureClass::UpstreamDown, "503"),
            (timeout(), FailureClass::UpstreamDown, "no answer within 30 s"),
        ] {
            assert_eq!(class(&result), expected, "{result:?}");
            let reason = complaint(&result).unwrap();
            assert!(reason.contains(text), "{reason}");
        }
    }
}
