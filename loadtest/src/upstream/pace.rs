//! Bodies that keep to a rate: of their connection, and of the whole upstream.

use super::counters::Tally;
use bytes::Bytes;
use futures::{Stream, stream};
use hyper::body::Frame;
use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::{Instant, sleep_until};

/// Paced bodies are cut into pieces that take this long.
const BEAT: Duration = Duration::from_millis(5);

/// The rate that all connections share.
#[derive(Debug)]
pub(super) struct Shared(Mutex<Instant>);

impl Shared {
    pub fn new() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    /// When `bytes` more may have been sent.
    fn reserve(&self, bytes: usize, rate: u64) -> Instant {
        let mut free_at = self.0.lock().expect("no holder panics");
        *free_at = (*free_at).max(Instant::now()) + time_for(bytes as u64, rate);
        *free_at
    }
}

pub(super) struct Pace {
    /// Most bytes per second of this body.
    pub own: Option<u64>,
    pub shared: Option<(u64, Arc<Shared>)>,
}

impl Pace {
    /// Most bytes that go out at once.
    fn piece(&self) -> usize {
        let slowest = self.own.into_iter().chain(self.shared.as_ref().map(|(rate, _)| *rate)).min();
        let beats = 1_000 / BEAT.as_millis() as u64;
        slowest.map_or(usize::MAX, |rate| usize::try_from((rate / beats).max(1)).unwrap_or(1))
    }
}

/// Counts an answer as under way until it is dropped.
pub(super) struct Open(Arc<Tally>);

impl Open {
    pub fn new(tally: &Arc<Tally>) -> Self {
        tally.opened();
        Self(tally.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.closed();
    }
}

struct Sending<I> {
    chunks: I,
    ready: Bytes,
    pace: Pace,
    sent: u64,
    since: Option<Instant>,
    open: Open,
}

/// The chunks as a body, at the pace; bytes are counted as they go.
pub(super) fn body(
    chunks: impl Iterator<Item = Bytes> + Send + 'static,
    pace: Pace,
    open: Open,
) -> impl Stream<Item = io::Result<Frame<Bytes>>> + Send + 'static {
    let sending = Sending { chunks, ready: Bytes::new(), pace, sent: 0, since: None, open };
    stream::unfold(sending, |mut sending| async move {
        let chunk = sending.next().await?;
        Some((Ok(Frame::data(chunk)), sending))
    })
}

impl<I: Iterator<Item = Bytes>> Sending<I> {
    async fn next(&mut self) -> Option<Bytes> {
        if self.ready.is_empty() {
            self.ready = self.chunks.next()?;
        }
        let chunk = self.ready.split_to(self.pace.piece().min(self.ready.len()));
        self.sent += chunk.len() as u64;
        if let Some(rate) = self.pace.own {
            let since = *self.since.get_or_insert_with(Instant::now);
            sleep_until(since + time_for(self.sent, rate)).await;
        }
        if let Some((rate, shared)) = &self.pace.shared {
            sleep_until(shared.reserve(chunk.len(), *rate)).await;
        }
        self.open.0.sent(chunk.len() as u64);
        Some(chunk)
    }
}

fn time_for(bytes: u64, rate: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64)
}
