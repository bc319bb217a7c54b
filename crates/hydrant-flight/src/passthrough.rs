//! A blob passed straight to one client, when there is no room to spool it: from the process that
//! leads its flight, else from the upstream. Verified on the way like a flight, but neither shared
//! nor kept. It holds a slot at the upstream for as long as the client takes, so one that hardly reads
//! is cut off.

use crate::{
    error::FlightError,
    flight::Grant,
    flights::{Flights, Source},
    load::Body,
    peers::{Along, Answer},
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use hydrant_proto::{Digest, Hasher};
use hydrant_telemetry::metrics::{FlightPart, metrics};
use std::{mem, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;

/// Longest wait for another process that leads: then the upstream is asked.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// How long nothing may come from it.
const IDLE: Duration = Duration::from_secs(60);
/// A client that is waited for as long as this has to have taken [`LEAST_BYTES`] meanwhile.
const READS_WITHIN: Duration = Duration::from_secs(60);
const LEAST_BYTES: usize = 1024 * 1024;

/// An open body, to be relayed.
pub struct Passthrough {
    digest: Digest,
    body: Body,
    size: u64,
}

impl Flights {
    /// Opens `source` from its first byte, for who may read along as `to`, or is to be found
    /// entitled by the upstream's delivery.
    pub async fn pass_through(
        &self,
        source: Source,
        to: &Grant,
    ) -> Result<Passthrough, FlightError> {
        metrics().flights.part(FlightPart::Pass);
        let digest = source.digest.clone();
        if let Some(Along { size, body }) = self.along(&digest, to).await {
            return Ok(Passthrough { digest, body, size });
        }
        let body = source.open(0).await?;
        let size = source.bound(body.size).await?;
        Ok(Passthrough { digest, body: body.into(), size })
    }

    /// The bytes of a flight that another process leads, or has just led to its end.
    async fn along(&self, digest: &Digest, to: &Grant) -> Option<Along> {
        let leader = self.0.turns.leader(digest).await?;
        let is_granted = leader.record.grants.contains(&to.to_string());
        if !is_granted {
            return None;
        }
        if !self.0.peers.is_worth_asking(&leader, digest).await {
            return None;
        }
        match timeout(ANSWERS_WITHIN, self.0.peers.pass(&leader, digest)).await.ok()? {
            Answer::Here(Along { size, body }) => Some(Along { size, body: body.within(IDLE) }),
            Answer::Gone | Answer::Failed(_) | Answer::Unreachable(_) => None,
        }
    }
}

impl Passthrough {
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The bytes; the newest chunk is withheld until the next arrives or the digest is confirmed,
    /// so the stream ends cleanly only with the right bytes.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, FlightError>> + Send + use<> {
        let Self { digest, body, size: left } = self;
        let hasher = Some(Hasher::new(digest.algorithm()));
        let relay = Relay { digest, body, left, hasher, held: Bytes::new() };
        // A task of its own: a client that does not read does not poll either.
        let (out, chunks) = mpsc::channel(1);
        let relaying = AbortOnDropHandle::new(tokio::spawn(relayed(relay, out)));
        stream::unfold((chunks, relaying), |(mut chunks, relaying)| async move {
            Some((chunks.recv().await?, (chunks, relaying)))
        })
    }
}

/// Relays until the end, a failure, or a client that hardly reads.
async fn relayed(mut relay: Relay, out: mpsc::Sender<Result<Bytes, FlightError>>) {
    let mut pace = Pace::default();
    let failed = loop {
        match relay.next().await {
            Ok(Some(chunk)) => {
                let (bytes, asked) = (chunk.len(), Instant::now());
                match timeout(pace.patience(), out.send(Ok(chunk))).await {
                    Ok(Ok(())) => pace.took(asked.elapsed(), bytes),
                    Ok(Err(_)) => return,
                    Err(_) => break FlightError::NoSpool("it is read too slowly".to_owned()),
                }
            }
            Ok(None) => return,
            Err(error) => break error,
        }
    };
    // The upstream's slot is free before the client hears of it.
    drop(relay);
    let _ = out.send(Err(failed)).await;
}

/// How fast a client reads, in windows of the time that is spent waiting for it.
#[derive(Default)]
struct Pace {
    waited: Duration,
    bytes: usize,
}

impl Pace {
    /// How long it may take for the next chunk.
    fn patience(&self) -> Duration {
        READS_WITHIN - self.waited
    }

    fn took(&mut self, waited: Duration, bytes: usize) {
        self.waited = (self.waited + waited).min(READS_WITHIN);
        self.bytes += bytes;
        if self.bytes >= LEAST_BYTES {
            *self = Self::default();
        }
    }
}

struct Relay {
    digest: Digest,
    body: Body,
    /// Bytes still to come.
    left: u64,
    /// `None` once the last chunk has been let go.
    hasher: Option<Hasher>,
    held: Bytes,
}

impl Relay {
    async fn next(&mut self) -> Result<Option<Bytes>, FlightError> {
        let Some(hasher) = &mut self.hasher else { return Ok(None) };
        loop {
            let Some(chunk) = self.body.stream.next().await.transpose()? else { break };
            self.left = self.left.checked_sub(chunk.len() as u64).ok_or_else(|| {
                FlightError::Integrity("it is longer than the upstream says".to_owned())
            })?;
            hasher.update(&chunk);
            let released = mem::replace(&mut self.held, chunk);
            if !released.is_empty() {
                return Ok(Some(released));
            }
        }
        let digest = self.hasher.take().expect("checked above").finish();
        if digest != self.digest {
            return Err(FlightError::Integrity(format!("it hashes to {digest}")));
        }
        let last = mem::take(&mut self.held);
        Ok((!last.is_empty()).then_some(last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::TryStreamExt;
    use hydrant_proto::Digest;

    const CHUNK: usize = 64 * 1024;

    fn passed(chunks: usize) -> Passthrough {
        let whole = vec![7; chunks * CHUNK];
        let pieces = (0..chunks).map(|_| Ok(Bytes::from(vec![7; CHUNK])));
        let body = Body { offset: 0, stream: stream::iter(pieces).boxed() };
        Passthrough { digest: Digest::of(&whole), body, size: whole.len() as u64 }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_hardly_reads_is_cut_off_and_a_slow_one_is_not() {
        let read = async |pause: Duration| {
            let chunks = passed(64).into_stream().and_then(async |chunk| {
                tokio::time::sleep(pause).await;
                Ok(chunk.len())
            });
            chunks.try_fold(0, async |sum, length| Ok(sum + length)).await
        };
        assert_eq!(read(Duration::from_secs(3)).await.unwrap(), 64 * CHUNK);
        let cut = read(Duration::from_secs(5)).await;
        assert!(matches!(cut, Err(FlightError::NoSpool(_))), "{cut:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_slot_of_a_client_that_stands_still_is_free_in_time() {
        let (open, mut closed) = mpsc::channel::<()>(1);
        let mut passed = passed(64);
        passed.body.stream = passed
            .body
            .stream
            .chain(stream::once(async move {
                let _until_dropped = open;
                std::future::pending().await
            }))
            .boxed();
        let _unread = passed.into_stream();
        let began = Instant::now();
        assert!(closed.recv().await.is_none());
        assert!(began.elapsed() <= READS_WITHIN + Duration::from_secs(1));
    }
}
