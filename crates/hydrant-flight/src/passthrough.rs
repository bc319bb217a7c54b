//! A blob passed straight to one client, when there is no room to spool it: from the process that
//! leads its flight, else from the upstream. Verified on the way like a flight, but neither shared
//! nor kept.

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
use hydrant_upstream::Priority;
use std::time::Duration;
use tokio::time::timeout;

/// Longest wait for another process that leads: then the upstream is asked.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// How long nothing may come from it.
const IDLE: Duration = Duration::from_secs(60);

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
        let read = self.0.peers.read(&leader, digest, 0, None, Priority::Interactive);
        match timeout(ANSWERS_WITHIN, read).await.ok()? {
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
        stream::try_unfold(relay, |mut relay| async move {
            Ok(relay.next().await?.map(|chunk| (chunk, relay)))
        })
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
            let released = std::mem::replace(&mut self.held, chunk);
            if !released.is_empty() {
                return Ok(Some(released));
            }
        }
        let digest = self.hasher.take().expect("checked above").finish();
        if digest != self.digest {
            return Err(FlightError::Integrity(format!("it hashes to {digest}")));
        }
        let last = std::mem::take(&mut self.held);
        Ok((!last.is_empty()).then_some(last))
    }
}
