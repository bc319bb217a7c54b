//! Blobs: from storage, from a flight under way, or from a new flight.
//!
//! That a digest is stored, or flying, never makes it readable: the blob must be linked in this
//! repository, or the rule's upstream must say that its repository has it. What is not readable is
//! answered like what does not exist.

use crate::{
    answer::{Answer, wanted_part},
    asking::Asking,
    body::{Broken, ByteStream, Content},
    error::{Failure, What},
    manifest::certain,
    memory::Memory,
    place::Place,
    range::Part,
    request::Read,
};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::HeaderMap;
use hydrant_flight::{Flight, FlightError, Flights, Opened, Passthrough, Source, pass_through};
use hydrant_proto::Digest;
use hydrant_rules::Delivery;
use hydrant_store::Store;
use hydrant_telemetry::metrics::{PullKind, PullOutcome};
use hydrant_upstream::Priority;
use std::{fmt::Display, ops::Range, sync::Arc, time::Duration};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// How long a presigned location is good for: a slow client may begin it late, not share it.
const PRESIGNED_FOR: Duration = Duration::from_secs(15 * 60);
/// Flights tried for one request: one that was joined may have had another upstream.
const FLIGHTS: u32 = 2;

/// What blobs are served from.
pub struct Blobs {
    pub store: Store,
    pub flights: Flights,
    pub memory: Arc<Memory>,
    pub asking: Arc<Asking>,
    pub tasks: TaskTracker,
}

/// Where a readable blob is.
enum Whereabouts {
    Stored {
        size: u64,
    },
    Flying {
        flight: Flight,
        size: Option<u64>,
        outcome: PullOutcome,
    },
    /// No room to share it: straight from the upstream.
    Passing(Passthrough),
    /// Upstream, and only asked about.
    Upstream {
        size: u64,
    },
}

/// What storage has of a blob.
enum Local {
    /// Linked in this repository.
    Readable {
        size: u64,
    },
    /// Stored for somebody else.
    Unlinked {
        size: u64,
    },
    Absent,
}

impl Blobs {
    pub async fn answer(
        &self,
        place: &Place,
        digest: &Digest,
        read: Read,
        asked: &HeaderMap,
    ) -> Result<Answer, Failure> {
        let spot = place.spot(digest);
        if let Some(size) = self.memory.blobs.get(&spot) {
            if let Some(answer) = self.stored(place, digest, size, read, asked).await? {
                return Ok(answer);
            }
            self.memory.blobs.invalidate(&spot);
        }
        match self.find(place, digest, read).await? {
            Whereabouts::Stored { size } => {
                self.memory.blobs.insert(spot, size);
                let answer = self.stored(place, digest, size, read, asked).await?;
                answer.ok_or(Failure::Missing(What::Blob))
            }
            Whereabouts::Upstream { size } => Ok(Answer::blob(digest, Some(size), Content::Empty)
                .served(PullKind::Blob, PullOutcome::Miss)),
            Whereabouts::Flying { flight, size, outcome } => {
                self.flying(digest, &flight, size, outcome, read, asked)
            }
            Whereabouts::Passing(passing) => {
                let (size, permit) = (passing.size(), self.asking.permit()?);
                let content = Content::Stream(breaking(passing.into_stream()));
                let mut answer = Answer::blob(digest, size, content);
                answer.permit = Some(permit);
                Ok(answer.served(PullKind::Blob, PullOutcome::Miss))
            }
        }
    }

    /// Finds out whether this repository may read the blob, and where from.
    async fn find(
        &self,
        place: &Place,
        digest: &Digest,
        read: Read,
    ) -> Result<Whereabouts, Failure> {
        if let Some(flight) = self.flights.get(digest).filter(|f| f.grants(place.repository())) {
            return self.opened(place, flight, PullOutcome::Joined).await;
        }
        let local = self.local(place, digest).await;
        if let Ok(Local::Readable { size }) = local {
            return Ok(Whereabouts::Stored { size });
        }
        let size = match self.entitled(place, digest).await {
            Ok(size) => size,
            Err(failure) => return Err(certain(failure, local.err())),
        };
        match (local, read) {
            (Ok(Local::Unlinked { size }), _) => {
                self.link(place, digest);
                Ok(Whereabouts::Stored { size })
            }
            (_, Read::Head) => Ok(Whereabouts::Upstream { size }),
            (_, Read::Get) => self.fly(place, digest, size).await,
        }
    }

    async fn local(&self, place: &Place, digest: &Digest) -> Result<Local, Failure> {
        let (linked, size) = tokio::try_join!(
            self.store.has_link(place.repository(), digest),
            self.store.blob_size(digest)
        )?;
        Ok(match (linked, size) {
            (true, Some(size)) => Local::Readable { size },
            (false, Some(size)) => Local::Unlinked { size },
            (_, None) => Local::Absent,
        })
    }

    /// The size of the blob by the upstream's word that the rule's repository has it.
    async fn entitled(&self, place: &Place, digest: &Digest) -> Result<u64, Failure> {
        let spot = place.spot(digest);
        if let Some(size) = self.memory.entitled.get(&spot) {
            return Ok(size);
        }
        if self.memory.absent.contains_key(&spot) {
            return Err(Failure::Missing(What::Blob));
        }
        let _permit = self.asking.permit()?;
        match self.asking.blob(place, digest).await? {
            Some(size) => {
                self.memory.entitled.insert(spot, size);
                Ok(size)
            }
            None => {
                self.memory.absent.insert(spot, ());
                Err(Failure::Missing(What::Blob))
            }
        }
    }

    /// Makes a blob that is stored readable in this repository, for the next time.
    fn link(&self, place: &Place, digest: &Digest) {
        let (store, repository) = (self.store.clone(), place.repository().clone());
        let digest = digest.clone();
        let link = async move {
            if let Err(error) = store.link_blob(&repository, &digest).await {
                tracing::warn!(%error, %digest, image.repository = %repository, "blob not linked");
            }
        };
        self.tasks.spawn(link.in_current_span());
    }

    /// Joins or begins the flight.
    async fn fly(&self, place: &Place, digest: &Digest, size: u64) -> Result<Whereabouts, Failure> {
        let source = Source {
            client: place.client.clone(),
            upstream_repository: place.route.upstream_repository.clone(),
            digest: digest.clone(),
            size: Some(size),
            priority: Priority::Interactive,
        };
        let mut failed = Failure::Abandoned;
        for _ in 0..FLIGHTS {
            let joined = self.flights.get(digest).is_some();
            let outcome = if joined { PullOutcome::Joined } else { PullOutcome::Miss };
            let flight = self.flights.join_or_start(source.clone(), place.repository()).await?;
            match self.opened(place, flight, outcome).await {
                Err(Failure::Flight(FlightError::NoSpool(reason))) => {
                    tracing::warn!(%digest, reason, "blob passed through");
                    return Ok(Whereabouts::Passing(pass_through(source).await?));
                }
                Err(failure) if joined => failed = failure,
                other => return other,
            }
        }
        Err(failed)
    }

    /// Waits until a status line can be sent.
    async fn opened(
        &self,
        place: &Place,
        flight: Flight,
        outcome: PullOutcome,
    ) -> Result<Whereabouts, Failure> {
        match flight.opened().await? {
            Opened::Stored { size } => {
                self.memory.blobs.insert(place.spot(flight.digest()), size);
                Ok(Whereabouts::Stored { size })
            }
            Opened::Flying { size } => Ok(Whereabouts::Flying { flight, size, outcome }),
        }
    }

    fn flying(
        &self,
        digest: &Digest,
        flight: &Flight,
        size: Option<u64>,
        outcome: PullOutcome,
        read: Read,
        asked: &HeaderMap,
    ) -> Result<Answer, Failure> {
        let part = match size {
            Some(size) if read == Read::Get => wanted_part(asked, digest, size)?,
            _ => Part::Whole,
        };
        let mut answer = match (part, size) {
            (Part::Bytes(range), Some(size)) => {
                let stream = breaking(flight.read(range.start, Some(range.end)));
                Answer::partial_blob(digest, &range, size, stream)
            }
            _ => Answer::blob(digest, size, Content::Stream(breaking(flight.read(0, None)))),
        };
        answer.permit = Some(self.asking.permit()?);
        Ok(answer.served(PullKind::Blob, outcome))
    }

    /// The blob from storage; `None` when it is not there after all, or is damaged.
    async fn stored(
        &self,
        place: &Place,
        digest: &Digest,
        size: u64,
        read: Read,
        asked: &HeaderMap,
    ) -> Result<Option<Answer>, Failure> {
        let hit = |answer: Answer| Ok(Some(answer.served(PullKind::Blob, PullOutcome::Hit)));
        if read == Read::Head {
            return hit(Answer::blob(digest, Some(size), Content::Empty));
        }
        let range = match wanted_part(asked, digest, size)? {
            Part::Bytes(range) => Some(range),
            Part::Whole | Part::Unsatisfiable => None,
        };
        if place.route.rule.delivery == Delivery::Redirect
            && let Ok(Some(location)) = self.store.presign(digest, PRESIGNED_FOR).await
        {
            return hit(Answer::redirect(digest, location.as_str()));
        }
        let Some(stream) = self.read(digest, size, range.clone()).await? else {
            return Ok(None);
        };
        hit(match range {
            Some(range) => Answer::partial_blob(digest, &range, size, stream),
            None => Answer::blob(digest, Some(size), Content::Stream(stream)),
        })
    }

    /// The stored bytes; storage verifies a whole blob on its way. `None` when it is not there, or
    /// of another size than a moment ago.
    async fn read(
        &self,
        digest: &Digest,
        size: u64,
        range: Option<Range<u64>>,
    ) -> Result<Option<ByteStream>, Failure> {
        let found = self.store.read_blob(digest, range).await?;
        Ok(found.filter(|found| found.size == size).map(|found| breaking(found.stream)))
    }
}

/// A body that cuts the connection where `stream` fails.
fn breaking<E: Display>(
    stream: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> ByteStream {
    Box::pin(stream.map(|next| next.map_err(|error| Broken(error.to_string()))))
}
