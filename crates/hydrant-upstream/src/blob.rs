//! Blobs: a stream of bytes from some offset, unverified, with a limit on how long it may stall.
//!
//! The digest is the flight's to check. Here it is made sure that the bytes start where they were
//! asked to, and that a body which breaks, stalls or crawls ends in an error and never cleanly.

use crate::{
    error::UpstreamError,
    exchange::{Ask, Exchange, Reply},
    guard::Guard,
    pace::Pace as Caps,
    permits::{Permit, Priority},
    urgency::Urgency,
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_RANGE};
use hydrant_egress::Body;
use hydrant_telemetry::{metrics, metrics::RequestKind};
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, timeout};

/// Which bytes of a blob are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// The first byte.
    pub from: u64,
    /// The byte after the last; `None` is the end of the blob.
    pub until: Option<u64>,
    /// Size of the whole blob, when it is known: an answer that names another is refused.
    pub of: Option<u64>,
}

impl From<u64> for Part {
    fn from(from: u64) -> Self {
        Self { from, ..Self::default() }
    }
}

/// A blob, or the rest of it, on its way.
#[derive(Debug)]
pub struct BlobBody {
    /// Size of the whole blob by the upstream's word; a body sent in chunks has none.
    pub size: Option<u64>,
    /// Where the first byte of `stream` is in the blob: what was asked for.
    pub offset: u64,
    pub stream: BodyStream,
}

/// The bytes. Ends with the first error; dropping it closes the connection and frees its slot.
pub struct BodyStream(Pin<Box<dyn Stream<Item = Result<Bytes, UpstreamError>> + Send>>);

/// Fewer bytes than this in a whole idle timeout of waiting are no progress.
const LEAST_BYTES: u64 = 16 * 1024;
/// An upstream whose body breaks after so many bytes does deliver, if not in one piece.
const DELIVERED: u64 = 4 * 1024 * 1024;
/// Bytes counted before they are added to the metrics.
const TALLY: u64 = 4 * 1024 * 1024;

impl Part {
    /// The `Range` header of a request for this part; the whole blob needs none.
    pub fn range(&self) -> Option<HeaderValue> {
        let text = match (self.from, self.until) {
            (0, None) => return None,
            (from, None) => format!("bytes={from}-"),
            (from, Some(until)) => format!("bytes={from}-{}", until.saturating_sub(1)),
        };
        Some(HeaderValue::from_str(&text).expect("digits and dashes are a valid header value"))
    }

    /// The size of the whole blob, if the answer is to this question; else what is wrong with it.
    fn agrees(&self, status: StatusCode, headers: &HeaderMap) -> Result<Option<u64>, String> {
        let length = length(headers);
        match status {
            StatusCode::OK if self.range().is_none() => self.same_size(length),
            StatusCode::OK => Err("it answered the whole blob".to_owned()),
            StatusCode::PARTIAL_CONTENT if self.range().is_some() => {
                let told = headers.get(CONTENT_RANGE);
                let told = told.and_then(|value| value.to_str().ok()).and_then(ContentRange::parse);
                let told = told.ok_or("it answered 206 without a range")?;
                self.same_range(told, length)
            }
            status => Err(format!("it answered {}", status.as_u16())),
        }
    }

    fn same_range(&self, told: ContentRange, length: Option<u64>) -> Result<Option<u64>, String> {
        let ContentRange { first, last, size } = told;
        let count = last.checked_sub(first).and_then(|rest| rest.checked_add(1));
        let until = self.until.or(size).or(self.of);
        let fits = first == self.from
            && count.is_some_and(|count| length.is_none_or(|length| length == count))
            && until.is_none_or(|until| last.checked_add(1) == Some(until));
        match fits {
            true => self.same_size(size),
            false => Err(format!("it answered bytes {first} to {last} of {size:?}")),
        }
    }

    fn same_size(&self, told: Option<u64>) -> Result<Option<u64>, String> {
        match (self.of, told) {
            // A whole body of another size is the flight's to find wrong; a part of one is useless.
            (Some(wanted), Some(told)) if wanted != told && self.from > 0 => {
                Err(format!("it is part of {told} bytes, not of {wanted}"))
            }
            _ => Ok(told),
        }
    }
}

/// `Content-Range: bytes <first>-<last>/<size or *>` (RFC 9110, section 14.4).
struct ContentRange {
    first: u64,
    last: u64,
    size: Option<u64>,
}

impl ContentRange {
    fn parse(text: &str) -> Option<Self> {
        let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let size = match size {
            "*" => None,
            size => Some(size.parse().ok()?),
        };
        Some(Self { first: first.parse().ok()?, last: last.parse().ok()?, size })
    }
}

/// `Content-Length`, which for a HEAD is not the length of a body.
pub fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get("content-length")?.to_str().ok()?.parse().ok()
}

impl BlobBody {
    pub fn new(
        reply: Reply,
        part: Part,
        ask: &Ask,
        upstream: &str,
        exchange: &Exchange,
        idle: Duration,
    ) -> Result<Self, UpstreamError> {
        let (upstream, what) = (upstream.to_owned(), ask.what.clone());
        let (parts, body) = reply.response.into_parts();
        let size = match part.agrees(parts.status, &parts.headers) {
            Ok(size) => size,
            Err(detail) => return Err(UpstreamError::RangeNotHonoured { upstream, what, detail }),
        };
        let source = Source {
            body,
            permit: reply.permit,
            guard: exchange.guard.clone(),
            caps: exchange.pace.clone(),
            urgency: ask.urgency.clone(),
            pace: Pace::new(idle),
            delivered: 0,
            tally: Tally { upstream: upstream.clone(), bytes: 0 },
            upstream,
            what,
        };
        Ok(Self { size, offset: part.from, stream: BodyStream::new(source) })
    }
}

impl BodyStream {
    fn new(source: Source) -> Self {
        let bytes = stream::unfold(Some(source), async |source| {
            let mut source = source?;
            match source.next().await {
                Ok(None) => None,
                Ok(Some(chunk)) => Some((Ok(chunk), Some(source))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Self(Box::pin(bytes))
    }
}

impl Stream for BodyStream {
    type Item = Result<Bytes, UpstreamError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

impl fmt::Debug for BodyStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BodyStream")
    }
}

/// A body being read, with all that has to live as long as it.
struct Source {
    body: Body,
    permit: Permit,
    guard: Guard,
    caps: Arc<Caps>,
    urgency: Urgency,
    pace: Pace,
    /// Bytes so far.
    delivered: u64,
    tally: Tally,
    upstream: String,
    what: String,
}

impl Source {
    async fn next(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let asked = Instant::now();
        let chunk = match timeout(self.pace.window, self.body.chunk()).await {
            Ok(Ok(None)) => return Ok(None),
            Ok(Ok(Some(chunk))) => chunk,
            Ok(Err(error)) => return Err(self.broke(error.to_string())),
            Err(_) => return Err(self.broke(format!("stalled for {:?}", self.pace.window))),
        };
        self.tally.add(chunk.len() as u64);
        self.delivered += chunk.len() as u64;
        let waited = asked.elapsed();
        if self.urgency.now() == Priority::Interactive {
            self.permit.raise();
        }
        self.caps.read(chunk.len(), &self.urgency, self.guard.sharers()).await;
        match self.pace.keeps_up(waited, chunk.len() as u64) {
            true => Ok(Some(chunk)),
            false => Err(self.broke("crawls".to_owned())),
        }
    }

    /// A body that breaks is a failure, though its headers counted as an answer: but for one that
    /// delivered, and for all that break with another, since a single connection may be behind them.
    fn broke(&self, detail: String) -> UpstreamError {
        if self.delivered < DELIVERED
            && self.guard.breaks(Instant::now())
            && let Ok(pass) = self.guard.breaker().admit()
        {
            pass.failed();
        }
        let (upstream, what) = (self.upstream.clone(), self.what.clone());
        UpstreamError::Down { upstream, what, detail: format!("the body broke off: {detail}") }
    }
}

/// Whether bytes keep coming. Only time spent waiting for the upstream counts, so a slow reader is
/// not taken for a slow upstream.
struct Pace {
    window: Duration,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    fn new(window: Duration) -> Self {
        Self { window, waited: Duration::ZERO, bytes: 0 }
    }

    fn keeps_up(&mut self, waited: Duration, bytes: u64) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited < self.window {
            return true;
        }
        let enough = self.bytes >= LEAST_BYTES;
        *self = Self::new(self.window);
        enough
    }
}

/// Adds up bytes for the metrics, which would be slow to touch for every chunk.
struct Tally {
    upstream: String,
    bytes: u64,
}

impl Tally {
    fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.bytes >= TALLY {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        metrics().upstreams.fetched(&self.upstream, RequestKind::Blob, bytes);
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(from: u64, until: Option<u64>, of: Option<u64>) -> Part {
        Part { from, until, of }
    }

    #[test]
    fn ranges_are_written_only_when_needed() {
        for (wanted, header) in [
            (part(0, None, None), None),
            (part(7, None, Some(9)), Some("bytes=7-")),
            (part(0, Some(5), None), Some("bytes=0-4")),
            (part(5, Some(9), None), Some("bytes=5-8")),
        ] {
            assert_eq!(wanted.range().as_ref().map(|value| value.to_str().unwrap()), header);
        }
    }

    #[test]
    fn only_the_range_asked_for_is_taken() {
        for (wanted, status, range, length, size) in [
            (part(0, None, None), 200, "", "10", Some(Some(10))),
            (part(0, None, None), 200, "", "", Some(None)),
            (part(0, None, Some(9)), 200, "", "10", Some(Some(10))),
            (part(0, None, None), 206, "bytes 0-9/10", "10", None),
            (part(0, None, None), 204, "", "", None),
            (part(4, None, None), 206, "bytes 4-9/10", "6", Some(Some(10))),
            (part(4, None, Some(10)), 206, "bytes 4-9/*", "", Some(None)),
            (part(4, Some(6), None), 206, "bytes 4-5/10", "2", Some(Some(10))),
            (part(4, None, None), 200, "", "10", None),
            (part(4, None, None), 206, "", "6", None),
            (part(4, None, None), 206, "bytes 3-9/10", "7", None),
            (part(4, None, None), 206, "bytes 5-9/10", "5", None),
            (part(4, None, None), 206, "bytes 4-8/10", "5", None),
            (part(4, None, None), 206, "bytes 4-9/10", "7", None),
            (part(4, None, None), 206, "bytes 9-4/10", "", None),
            (part(4, None, None), 206, "bytes 4-18446744073709551615/10", "", None),
            (part(4, None, Some(11)), 206, "bytes 4-9/10", "6", None),
            (part(4, None, Some(11)), 206, "bytes 4-9/*", "6", None),
            (part(4, None, None), 206, "bytes */10", "6", None),
            (part(4, None, None), 206, "items 4-9/10", "6", None),
        ] {
            let headers = [("content-range", range), ("content-length", length)];
            let headers = headers.into_iter().filter(|(_, value)| !value.is_empty());
            let headers: HeaderMap = headers
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect();
            let found = wanted.agrees(StatusCode::from_u16(status).unwrap(), &headers);
            assert_eq!(found.ok(), size, "{wanted:?} {status} {range} {length}");
        }
    }

    #[test]
    fn a_crawl_is_noticed_but_a_slow_reader_is_not() {
        let second = Duration::from_secs(1);
        let mut crawl = Pace::new(60 * second);
        assert!((0..59).all(|_| crawl.keeps_up(second, 1)));
        assert!(!crawl.keeps_up(second, 1));
        let mut reader = Pace::new(60 * second);
        assert!((0..1000).all(|_| reader.keeps_up(Duration::ZERO, 1)));
        let mut slow = Pace::new(60 * second);
        assert!((0..1000).all(|_| slow.keeps_up(second, 1024)));
    }
}
