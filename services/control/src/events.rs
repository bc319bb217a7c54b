//! The event stream as lines of JSON, one CloudEvent each.

use crate::{Followers, Stopping, failure::Failure, input::Params};
use axum::{
    body::{Body, Bytes},
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use futures::{Stream, StreamExt as _, stream};
use hydrant_bus::Bus;
use hydrant_proto::{Event, cloudevent};
use hydrant_rules::Span;
use jiff::Timestamp;
use serde::Deserialize;
use std::{convert::Infallible, pin::Pin, time::Duration};
use tokio::{sync::OwnedSemaphorePermit, time::timeout};
use tokio_util::sync::CancellationToken;

const NDJSON: &str = "application/x-ndjson";

/// An empty line goes out this often, so that both ends notice when the other is gone.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Without `follow`, the stored events are over when none came for so long.
const QUIET: Duration = Duration::from_millis(750);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct EventParams {
    /// RFC 3339, or how long ago, such as `1h`. Absent: from now on.
    since: Option<String>,
    /// Whether to go on with what happens from now on.
    follow: bool,
}

/// Events since a time, and, when followed, those to come. Empty lines are heartbeats.
pub(crate) async fn follow(
    State(bus): State<Bus>,
    State(followers): State<Followers>,
    State(stopping): State<Stopping>,
    Params(params): Params<EventParams>,
) -> Result<Response, Failure> {
    let now = Timestamp::now();
    let since = params.since.as_deref().map(|text| moment(text, now)).transpose()?;
    let Ok(room) = followers.0.try_acquire_owned() else {
        let message = "too many are following the events".to_owned();
        return Err(Failure::Unavailable { message, remedy: "try again later" });
    };
    if !*bus.connected().borrow() {
        let why = bus.problem().unwrap_or_else(|| "not connected".to_owned());
        let message = format!("nats: {why}");
        return Err(Failure::Unavailable { message, remedy: "try again; see /readyz?verbose" });
    }
    let until = (!params.follow).then_some(now);
    let events = bus.follow_events(since.or(Some(now)));
    let lines = Lines { events: Box::pin(events), until, stopping: stopping.0, _room: room };
    let body = Body::from_stream(stream::unfold(lines, Lines::next));
    Ok(([(CONTENT_TYPE, NDJSON)], body).into_response())
}

/// A moment as RFC 3339, or as a length of time before `now`.
fn moment(text: &str, now: Timestamp) -> Result<Timestamp, Failure> {
    let ago = |span: Span| now.checked_sub(span.0).ok();
    text.parse().ok().or_else(|| ago(text.parse().ok()?)).ok_or_else(|| {
        let message = format!("{text:?} is neither a moment nor a length of time");
        Failure::invalid("since", message, "write 2026-11-23T12:00:00Z, or 1h for an hour ago")
    })
}

struct Lines {
    events: Pin<Box<dyn Stream<Item = Event> + Send>>,
    /// Ends the stream with the events stored by then.
    until: Option<Timestamp>,
    stopping: CancellationToken,
    _room: OwnedSemaphorePermit,
}

impl Lines {
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        let limit = if self.until.is_some() { QUIET } else { HEARTBEAT };
        let event = timeout(limit, self.events.next());
        let line = match self.stopping.run_until_cancelled(event).await? {
            Ok(event) => line(&event?),
            Err(_) if self.until.is_some() => return None,
            Err(_) => Bytes::from_static(b"\n"),
        };
        Some((Ok(line), self))
    }
}

fn line(event: &Event) -> Bytes {
    let mut line = cloudevent::body(event, None);
    line.push(b'\n');
    line.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_moment_or_a_while_ago() {
        let now: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("2026-11-23T11:00:00Z", "2026-11-23T11:00:00Z"),
            ("1h", "2026-11-23T11:00:00Z"),
            ("0s", "2026-11-23T12:00:00Z"),
        ] {
            assert_eq!(moment(text, now).unwrap(), expected.parse().unwrap(), "{text}");
        }
        for bad in ["yesterday", "-1h", "", "9999999999999h"] {
            assert!(moment(bad, now).is_err(), "{bad}");
        }
    }
}
