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
}

/// Opens `source` from its first byte.
pub async fn pass_through(source: Source) -> Result<Passthrough, FlightError> {
    let body = source.open(0).await?;
    Ok(Passthrough { source, body })
}

impl Passthrough {
    /// Size in bytes, when the upstream told.
    pub fn size(&self) -> Option<u64> {
        self.body.size.or(self.source.size)
    }

    /// The bytes; the newest chunk is withheld until the next arrives or the digest is confirmed,
    /// so the stream ends cleanly only with the right bytes.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, FlightError>> + Send + use<> {
        let hasher = Some(Hasher::new(self.source.digest.algorithm()));
        let relay = Relay { source: self.source, body: self.body, hasher, held: Bytes::new() };
        stream::try_unfold(relay, |mut relay| async move {
            Ok(relay.next().await?.map(|chunk| (chunk, relay)))
        })
    }
}

struct Relay {
    source: Source,
    body: BlobBody,
    /// `None` once the last chunk has been let go.
    hasher: Option<Hasher>,
    held: Bytes,
}

impl Relay {
    async fn next(&mut self) -> Result<Option<Bytes>, FlightError> {
        let Some(hasher) = &mut self.hasher else { return Ok(None) };
        loop {
            let Some(chunk) = self.body.stream.next().await.transpose()? else { break };
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
