//! A blob passed straight from the upstream to one client, when there is no room to spool it:
//! verified on the way like a flight, but neither shared nor kept.

use crate::{error::FlightError, flights::Source};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use hydrant_proto::Hasher;
use hydrant_upstream::BlobBody;

/// An open upstream body, to be relayed.
pub struct Passthrough {
    source: Source,
    body: BlobBody,
    size: u64,
}

/// Opens `source` from its first byte.
pub async fn pass_through(source: Source) -> Result<Passthrough, FlightError> {
    let body = source.open(0).await?;
    let size = source.bound(body.size).await?;
    Ok(Passthrough { source, body, size })
}

impl Passthrough {
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The bytes; the newest chunk is withheld until the next arrives or the digest is confirmed,
    /// so the stream ends cleanly only with the right bytes.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, FlightError>> + Send + use<> {
        let hasher = Some(Hasher::new(self.source.digest.algorithm()));
        let Self { source, body, size: left } = self;
        let relay = Relay { source, body, left, hasher, held: Bytes::new() };
        stream::try_unfold(relay, |mut relay| async move {
            Ok(relay.next().await?.map(|chunk| (chunk, relay)))
        })
    }
}

struct Relay {
    source: Source,
    body: BlobBody,
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
        if digest != self.source.digest {
            return Err(FlightError::Integrity(format!("it hashes to {digest}")));
        }
        let last = std::mem::take(&mut self.held);
        Ok((!last.is_empty()).then_some(last))
    }
}
