//! A part of a blob for a client: with the flight where that comes soon, else fetched ahead of it.

use crate::{
    error::FlightError,
    flight::{Flight, Progress, Stage},
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use std::{ops::Range, pin::pin, time::Duration};
use tokio::time::timeout;

/// A part that begins so far beyond what has arrived is not waited for at all.
const FAR: u64 = 16 * 1024 * 1024;
/// How long any other is waited for, before it is fetched by itself.
const PATIENCE: Duration = Duration::from_secs(1);

impl Flight {
    /// The bytes of `part`, which lies inside the blob: as they arrive, or sooner. They are
    /// unverified, as every part of a blob is, unless the flight is whole; who wants to read the
    /// blob from its beginning uses [`Flight::read`].
    pub fn part(
        &self,
        part: Range<u64>,
    ) -> impl Stream<Item = Result<Bytes, FlightError>> + Send + use<> {
        let flight = self.clone();
        let bytes = async move {
            match flight.ahead(&part).await {
                Some(bytes) => stream::once(async { Ok(bytes) }).left_stream(),
                None => flight.read(part.start, Some(part.end)).right_stream(),
            }
        };
        stream::once(bytes).flatten()
    }

    /// What was fetched ahead of the flight; `None` when that is or comes where the part begins.
    async fn ahead(&self, part: &Range<u64>) -> Option<Bytes> {
        // The whole goes out as verified as any.
        let size = self.progress().size.filter(|size| *part != (0..*size))?;
        let mut arriving = pin!(self.arrives(part.start));
        let soon = self.progress().readable_at(part.start) + FAR >= part.start;
        if soon && timeout(PATIENCE, &mut arriving).await.is_ok() {
            return None;
        }
        let mut ways = self.0.far.ways();
        loop {
            let fetched = async {
                match self.0.far.fetch(part, size).await {
                    Some(bytes) => bytes,
                    // It comes with the flight, unless another way is found.
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = &mut arriving => return None,
                Ok(()) = ways.changed() => {}
                bytes = fetched => return Some(bytes),
            }
        }
    }

    /// Ends when the byte at `at` can be read, or is not going to come.
    async fn arrives(&self, at: u64) {
        let mut progress = self.0.progress.subscribe();
        let is_there = |now: &Progress| {
            self.wants(now, at);
            now.readable_at(at) > at || matches!(now.stage, Stage::Stored | Stage::Failed(_))
        };
        // An error means that the flight is over.
        let _ = progress.wait_for(is_there).await;
    }
}
