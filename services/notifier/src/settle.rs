//! What follows an attempt: the table from judgement and attempt number to the next step. Pure.

use crate::{
    delivery::{Answer, Judgement, Unsent},
    schedule::{Next, Schedule},
};
use hydrant_egress::EgressError;
use hydrant_proto::FailureClass;
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
