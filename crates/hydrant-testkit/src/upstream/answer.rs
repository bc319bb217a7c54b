//! An answer of the fake upstream before it is sent, and the sending of it, pace and breaks
//! included.

use super::gate::Gate;
use crate::{
    Content,
    request::{Ending, Entry},
    server::{Answer, full, streamed},
};
use bytes::Bytes;
use futures::{future, stream};
use hyper::{
    HeaderMap, Method, Response, StatusCode,
    header::{self, HeaderName, HeaderValue},
    http::request::Parts,
};
use serde_json::json;
use std::{io, ops::Range, time::Duration};
use tokio::time::{Instant, sleep, sleep_until};

/// Longest time between two pieces of a paced body, unless one byte takes longer.
const BEAT: Duration = Duration::from_millis(50);

/// What will be answered. Faults change it before it is sent.
pub(super) struct Draft {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub content: Content,
    /// The part of the content that is sent.
    pub range: Range<u64>,
    /// The answer to a HEAD: headers as if the body followed.
    pub bodiless: bool,
    pub script: Script,
}

/// How it is sent.
#[derive(Default)]
pub(super) struct Script {
    /// Before the status line.
    pub delay: Duration,
    pub opening: Opening,
    /// Between the headers and the first byte of the body.
    pub late_body: Duration,
    /// Most body bytes per second.
    pub pace: Option<u64>,
    /// One byte in the middle is changed.
    pub wrong: bool,
    pub ending: BodyEnd,
    /// After so many bytes it waits.
    pub hold: Option<(u64, Gate)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Opening {
    #[default]
    Answer,
    /// Nothing is ever answered.
    Silence,
    /// The connection is closed.
    Close,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum BodyEnd {
    #[default]
    Whole,
    /// The connection is closed after this many bytes.
    CutAfter(u64),
    /// Nothing follows these bytes, and the connection stays open.
    StallAfter(u64),
    /// Bytes follow for ever, without a Content-Length.
    Never,
}

impl Draft {
    pub fn ok(parts: &Parts, content: Content) -> Self {
        let range = 0..content.length();
        Self {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            content,
            range,
            bodiless: parts.method == Method::HEAD,
            script: Script::default(),
        }
    }

    pub fn partial(parts: &Parts, content: Content, range: Range<u64>) -> Self {
        let mut draft = Self { range, ..Self::ok(parts, content) };
        draft.status = StatusCode::PARTIAL_CONTENT;
        draft.tell_range();
        draft
    }

    /// An error with the distribution spec's body. To a HEAD it is sent without the body.
    pub fn error(status: u16, code: &str) -> Self {
        let body = json!({ "errors": [{ "code": code, "message": "by the testkit" }] });
        let content = Content::from(body.to_string().into_bytes());
        let mut draft = Self {
            status: StatusCode::from_u16(status).expect("a valid status"),
            headers: HeaderMap::new(),
            range: 0..content.length(),
            content,
            bodiless: false,
            script: Script::default(),
        };
        draft.set_header("content-type", "application/json");
        draft
    }

    pub fn redirect(status: u16, location: &str) -> Self {
        let mut draft = Self::error(status, "REDIRECT");
        draft.set_header("location", location);
        draft
    }

    pub fn set_header(&mut self, name: &str, value: &str) {
        let name: HeaderName = name.parse().expect("a valid header name");
        self.headers.insert(name, HeaderValue::from_str(value).expect("a valid header value"));
    }

    /// States the range in `Content-Range`.
    pub fn tell_range(&mut self) {
        let (range, length) = (&self.range, self.content.length());
        let value = format!("bytes {}-{}/{length}", range.start, range.end.saturating_sub(1));
        self.set_header("content-range", &value);
    }

    /// Sends it; `entry` is its line in the log.
    pub async fn send(self, entry: Entry) -> Answer {
        let ending = entry.until_dropped();
        sleep(self.script.delay).await;
        match self.script.opening {
            Opening::Answer => {}
            Opening::Silence => future::pending().await,
            Opening::Close => return Err(io::ErrorKind::ConnectionAborted.into()),
        }
        entry.answered(self.status.as_u16());
        let mut response = Response::new(full(""));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.clone();
        self.state_length(response.headers_mut());
        if !self.bodiless {
            *response.body_mut() = self.body(entry, ending);
        }
        Ok(response)
    }

    fn state_length(&self, headers: &mut HeaderMap) {
        let endless = self.script.ending == BodyEnd::Never;
        let stated = headers.contains_key(header::CONTENT_LENGTH);
        let chunked = headers.remove(header::TRANSFER_ENCODING).is_some();
        if !endless && !stated && !chunked {
            let length = self.range.end - self.range.start;
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
    }

    fn body(self, entry: Entry, ending: Ending) -> crate::server::Body {
        let length = self.range.end - self.range.start;
        let chunks = Box::new(self.content.chunks(self.range));
        let script = self.script;
        let wrong_at = script.wrong.then_some(length / 2);
        let sending = Sending {
            chunks,
            ready: Bytes::new(),
            wrong_at,
            script,
            sent: 0,
            since: None,
            entry,
            _ending: ending,
        };
        streamed(stream::unfold(sending, |mut sending| async move {
            sending.next().await.map(|chunk| (chunk, sending))
        }))
    }
}

/// A body on its way.
struct Sending {
    chunks: Box<dyn Iterator<Item = Bytes> + Send>,
    /// What was read from `chunks` and not yet sent.
    ready: Bytes,
    wrong_at: Option<u64>,
    script: Script,
    sent: u64,
    /// When the first byte went out.
    since: Option<Instant>,
    entry: Entry,
    _ending: Ending,
}

impl Sending {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.since.is_none() {
            sleep(self.script.late_body).await;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        let limit = match self.script.ending {
            BodyEnd::Whole | BodyEnd::Never => u64::MAX,
            BodyEnd::CutAfter(end) if self.sent >= end => {
                // The connection sends what it buffers while the body has nothing new.
                sleep(BEAT).await;
                return Some(Err(io::ErrorKind::ConnectionAborted.into()));
            }
            BodyEnd::StallAfter(end) if self.sent >= end => future::pending().await,
            BodyEnd::CutAfter(end) | BodyEnd::StallAfter(end) => end - self.sent,
        };
        let limit = limit.min(held(self.script.hold.as_ref(), self.sent).await);
        let chunk = self.take(limit)?;
        self.sent += chunk.len() as u64;
        if let Some(pace) = self.script.pace {
            sleep_until(since + time_for(self.sent, pace)).await;
        }
        self.entry.sent(chunk.len());
        Some(Ok(chunk))
    }

    /// The next piece, of at most `limit` bytes and one beat of the pace.
    fn take(&mut self, limit: u64) -> Option<Bytes> {
        if self.ready.is_empty() {
            self.ready = match self.chunks.next() {
                None if self.script.ending == BodyEnd::Never => Bytes::from_static(&[0; 16_384]),
                chunk => chunk?,
            };
        }
        let beats_per_second = 1_000 / BEAT.as_millis() as u64;
        let beat = self.script.pace.map_or(u64::MAX, |pace| (pace / beats_per_second).max(1));
        let most = usize::try_from(limit.min(beat)).unwrap_or(usize::MAX);
        let chunk = self.ready.split_to(most.min(self.ready.len()));
        Some(self.spoil(chunk))
    }

    fn spoil(&self, chunk: Bytes) -> Bytes {
        let position = self.wrong_at.and_then(|at| at.checked_sub(self.sent));
        let position = position.and_then(|at| usize::try_from(at).ok());
        match position.filter(|at| *at < chunk.len()) {
            None => chunk,
            Some(at) => {
                let mut bytes = chunk.to_vec();
                bytes[at] ^= 1;
                bytes.into()
            }
        }
    }
}

/// How many bytes may go out after those `sent`; waits while there are none.
async fn held(hold: Option<&(u64, Gate)>, sent: u64) -> u64 {
    match hold {
        Some((after, gate)) if sent >= *after => gate.opened().await,
        Some((after, gate)) if gate.is_closed() => return after - sent,
        Some(_) | None => {}
    }
    u64::MAX
}

fn time_for(bytes: u64, per_second: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / per_second as f64)
}
