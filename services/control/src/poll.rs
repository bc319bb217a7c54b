//! Waiting for news: `?wait=30s&after=<revision>`.

use crate::failure::Failure;
use futures::{Stream, StreamExt as _};
use hydrant_proto::JobState;
use hydrant_rules::Span;
use serde::Deserialize;
use std::{pin::pin, time::Duration};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// Longest wait for news, below what proxies on the way are patient for.
const LONGEST: Duration = Duration::from_secs(60);

/// How long a caller is willing to wait, and for what.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wait {
    /// Such as `30s`; longer than a minute counts as a minute. Absent: no wait.
    wait: Option<String>,
    /// The revision the caller has; absent: any news will do.
    after: Option<u64>,
}

impl Wait {
    /// When to answer without news; `None` to answer at once.
    pub fn deadline(&self) -> Result<Option<Instant>, Failure> {
        let Some(text) = &self.wait else { return Ok(None) };
        let span: Span =
            text.parse().map_err(|why: String| Failure::invalid("wait", why, "write 30s"))?;
        Ok(Some(Instant::now() + span.0.min(LONGEST)))
    }

    fn is_news(&self, state: &JobState) -> bool {
        self.after.is_none_or(|after| revision(state) != after)
    }
}

/// Changes whenever the state does: microseconds of its last change, which JSON carries exactly.
pub(crate) fn revision(state: &JobState) -> u64 {
    u64::try_from(state.updated_at.as_microsecond()).unwrap_or_default()
}

/// The first state that is news, or the last one seen before the deadline or the stop.
pub(crate) async fn news(
    states: impl Stream<Item = JobState>,
    wait: &Wait,
    deadline: Instant,
    stopping: &CancellationToken,
) -> Option<JobState> {
    let mut states = pin!(states);
    let mut last = None;
    let waiting = async {
        while let Some(state) = states.next().await {
            let is_news = wait.is_news(&state);
            last = Some(state);
            if is_news {
                break;
            }
        }
    };
    // However the wait ended, the answer is what was seen last.
    let _ = timeout_at(deadline, stopping.run_until_cancelled(waiting)).await;
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;
    use hydrant_proto::{HydrationRequested, Lane};

    fn state(microsecond: i64) -> JobState {
        let at = jiff::Timestamp::from_microsecond(microsecond).unwrap();
        let job = HydrationRequested {
            rule: "lab".into(),
            generation: "1".into(),
            upstream: "lab".into(),
            repository: "lab/app".parse().unwrap(),
            reference: "1".parse().unwrap(),
            lane: Lane::Background,
            platforms: Vec::new(),
            requested_at: at,
        };
        JobState::queued(job, at)
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_ends_with_news_or_with_what_was_known() {
        let stop = CancellationToken::new();
        let after = |after| Wait { wait: Some("30s".into()), after };
        let states = || stream::iter([state(1), state(2)]).chain(stream::pending());
        for (known, expected) in [(None, 1), (Some(1), 2), (Some(2), 1), (Some(9), 1)] {
            let wait = after(known);
            let deadline = wait.deadline().unwrap().unwrap();
            let found = news(states(), &wait, deadline, &stop).await.unwrap();
            assert_eq!(revision(&found), expected, "{known:?}");
        }
        let only = stream::iter([state(1)]).chain(stream::pending());
        let wait = after(Some(1));
        let deadline = wait.deadline().unwrap().unwrap();
        assert_eq!(news(only, &wait, deadline, &stop).await, Some(state(1)));
        let nothing = stream::pending::<JobState>();
        stop.cancel();
        assert_eq!(news(nothing, &wait, deadline, &stop).await, None);
    }

    #[test]
    fn a_wait_that_is_no_duration_is_refused() {
        let wait = Wait { wait: Some("-1s".into()), after: None };
        assert!(matches!(wait.deadline(), Err(Failure::Invalid(_))));
        assert_eq!(Wait::default().deadline().unwrap(), None);
    }
}
