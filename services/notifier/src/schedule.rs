//! When a failed delivery is tried again. Pure: JetStream keeps the time and the delivery log the
//! number of attempts, so a schedule survives restarts without a state of its own.

use jiff::{Timestamp, fmt::rfc2822};
use std::time::Duration;

const SECOND: u64 = 1;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// The pauses the Standard Webhooks specification suggests ("Deliverability and reliability");
/// the first attempt is at once. About 75 hours in all, well inside the week that events are kept.
const STANDARD: [u64; 9] = [
    5 * SECOND,
    5 * MINUTE,
    30 * MINUTE,
    2 * HOUR,
    5 * HOUR,
    10 * HOUR,
    14 * HOUR,
    20 * HOUR,
    24 * HOUR,
];

/// Most a pause is lengthened, as a fraction of it, so that events which failed together do not
/// come back together.
const JITTER: f64 = 0.1;
/// Longest `Retry-After` obeyed; what asks for more gets this.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(24 * HOUR);

/// What to do after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Again(Duration),
    /// The schedule is used up.
    Never,
}

/// The pauses between attempts.
#[derive(Clone, Debug)]
pub struct Schedule {
    pauses: Vec<Duration>,
    jitter: f64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { pauses: STANDARD.map(Duration::from_secs).to_vec(), jitter: JITTER }
    }
}

impl Schedule {
    /// A schedule with just these pauses, without jitter.
    pub fn exactly(pauses: impl IntoIterator<Item = Duration>) -> Self {
        Self { pauses: pauses.into_iter().collect(), jitter: 0.0 }
    }

    /// What follows the failed `attempt` (the first is 1). The endpoint's `retry_after` may
    /// lengthen the pause, never shorten it, and adds no attempt.
    pub fn after(&self, attempt: u64, retry_after: Option<Duration>) -> Next {
        let index = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
        let Some(pause) = self.pauses.get(index) else { return Next::Never };
        let wished = retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER);
        let stretch = 1.0 + self.jitter * rand::random::<f64>();
        Next::Again((*pause).max(wished).mul_f64(stretch))
    }
}

/// Reads `Retry-After`: seconds or an HTTP date. Junk and times past count as absent.
pub fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit are just a very long time.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let until = rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
    Duration::try_from(until.duration_since(now)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_schedule_has_ten_attempts() {
        let schedule = Schedule { jitter: 0.0, ..Schedule::default() };
        let pauses: Vec<_> = (1..=10).map(|attempt| schedule.after(attempt, None)).collect();
        let expected: Vec<_> = STANDARD
            .map(|s| Next::Again(Duration::from_secs(s)))
            .into_iter()
            .chain([Next::Never])
            .collect();
        assert_eq!(pauses, expected);
        assert_eq!(schedule.after(u64::MAX, None), Next::Never);
    }

    #[test]
    fn jitter_only_lengthens_and_by_a_tenth_at_most() {
        for _ in 0..1_000 {
            let Next::Again(pause) = Schedule::default().after(2, None) else { panic!("no pause") };
            let range = Duration::from_secs(5 * MINUTE)..=Duration::from_secs_f64(330.0);
            assert!(range.contains(&pause), "{pause:?}");
        }
    }

    #[test]
    fn retry_after_lengthens_and_is_clamped() {
        let schedule = Schedule::exactly([Duration::from_secs(5)]);
        let after = |wished: u64| schedule.after(1, Some(Duration::from_secs(wished)));
        assert_eq!(after(1), Next::Again(Duration::from_secs(5)));
        assert_eq!(after(90), Next::Again(Duration::from_secs(90)));
        assert_eq!(after(1_000_000_000_000), Next::Again(LONGEST_RETRY_AFTER));
        assert_eq!(after(u64::MAX), Next::Again(LONGEST_RETRY_AFTER));
        assert_eq!(schedule.after(2, Some(Duration::from_secs(90))), Next::Never);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "1994-11-06T08:48:37Z".parse().unwrap();
        let table = [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("1000000000000", Some(1_000_000_000_000)),
            ("99999999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:40:37 GMT", None),
            ("-5", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(retry_after(text, now), expected.map(Duration::from_secs), "{text}");
        }
    }
}
