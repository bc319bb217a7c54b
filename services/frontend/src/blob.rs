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
    family::Family,
    manifest::certain,
    memory::{Memory, Use},
    origin::Origins,
    place::Place,
    range::Part,
    request::Read,
    sent_file::SentFile,
    shelf::Shelf,
};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use http::{HeaderMap, request::Parts};
use hydrant_boot::serve::Outlet;
use hydrant_flight::{Flight, FlightError, Flights, Opened, Passthrough, Source};
use hydrant_proto::{Digest, FailureClass};
use hydrant_rules::Delivery;
use hydrant_store::StoreError;
use hydrant_telemetry::metrics::{PullKind, PullOutcome};
use hydrant_upstream::Priority;
use std::{fmt::Display, ops::Range, sync::Arc, time::Duration};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// How long a presigned location is good for: a slow client may begin it late, not share it.
const PRESIGNED_FOR: Duration = Duration::from_secs(15 * 60);
/// Flights tried for one request: one that was joined may have had another upstream, or be foreign.
const FLIGHTS: u32 = 3;

/// What blobs are served from.
pub struct Blobs {
    pub shelf: Shelf,
    pub flights: Flights,
    pub memory: Arc<Memory>,
    pub family: Arc<Family>,
    pub asking: Arc<Asking>,
    pub origins: Arc<Origins>,
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

/// How a repository is found entitled to a blob that is not linked in it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Proof {
    /// Its upstream delivers the blob, or has delivered it to another process for it.
    ByGet,
    /// Another process flies it for somebody else: the upstream is asked first.
    ByHead,
}

/// What to make of storage while a blob is fetched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Storage {
    /// It tells what it has.
    Telling,
    /// It was just seen not to deliver, and is left alone.
    Failing,
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
        asked: &Parts,
    ) -> Result<Answer, Failure> {
        let remembered = self.memory.blob(&place.spot(digest), wanted_for(place, read));
        let mut found = match remembered.filter(|size| self.is_whole(place, digest, *size)) {
            Some(size) => Whereabouts::Stored { size },
            None => Box::pin(self.find(place, digest, read)).await?,
        };
        if let Whereabouts::Stored { size } = found {
            match self.stored(place, digest, size, read, asked).await {
                Ok(Some(answer)) => return Ok(answer),
                Err(failure @ Failure::Range { .. }) => return Err(failure),
                Ok(None) => {
                    tracing::warn!(%digest, "blob is damaged or gone, asking the upstream");
                    found = self.instead_of_stored(place, digest, Storage::Telling).await?;
                }
                Err(failure) => {
                    failure.log();
                    found = self.instead_of_stored(place, digest, Storage::Failing).await?;
                }
            }
        }
        match found {
            Whereabouts::Stored { .. } => Err(Failure::Abandoned),
            Whereabouts::Upstream { size } => Ok(Answer::blob(digest, Some(size), Content::Empty)
                .served(PullKind::Blob, PullOutcome::Miss)),
            Whereabouts::Flying { flight, size, outcome } => {
                let answer = flying(digest, &flight, size, read, &asked.headers)?;
                Ok(answer.served(PullKind::Blob, outcome))
            }
            Whereabouts::Passing(passing) => {
                let size = Some(passing.size());
                let content = Content::Stream(breaking(passing.into_stream()));
                let mut answer = Answer::blob(digest, size, content);
                // Nothing lies between the upstream and the client: as long as one, so the other.
                answer.permit = Some(self.asking.permit()?);
                Ok(answer.served(PullKind::Blob, PullOutcome::Miss))
            }
        }
    }

    /// A blob that should be stored, from a flight that brought it a moment ago or from the
    /// upstream. That it is unknown there settles nothing.
    async fn instead_of_stored(
        &self,
        place: &Place,
        digest: &Digest,
        storage: Storage,
    ) -> Result<Whereabouts, Failure> {
        self.memory.forget_blob(&place.spot(digest));
        if storage == Storage::Failing
            && let Some(flight) = self.landed(place, digest)
        {
            return self.opened(flight, PullOutcome::Hit).await;
        }
        let found = match self.fly(place, digest, storage).await {
            // A flight that others began looks into storage all the same.
            Ok(Whereabouts::Stored { .. }) => self.passing(place, digest).await,
            found => found,
        };
        found.map_err(|failure| if failure.is_unknown() { Failure::Abandoned } else { failure })
    }

    /// Finds out whether this repository may read the blob, and where from.
    async fn find(
        &self,
        place: &Place,
        digest: &Digest,
        read: Read,
    ) -> Result<Whereabouts, Failure> {
        if let Some(flight) = self.granted(place, digest) {
            return self.opened(flight, PullOutcome::Joined).await;
        }
        if let Some(flight) = self.at_hand(place, digest) {
            return self.opened(flight, PullOutcome::Hit).await;
        }
        let local = self.local(place, digest).await;
        if let Ok(Local::Readable { size }) = local {
            return Ok(Whereabouts::Stored { size });
        }
        if local.is_err()
            && let Some(flight) = self.landed(place, digest)
        {
            return self.opened(flight, PullOutcome::Hit).await;
        }
        if self.memory.absent.contains_key(&place.spot(digest)) {
            return Err(Failure::Missing(What::Blob));
        }
        let storage = if local.is_err() { Storage::Failing } else { Storage::Telling };
        let found = match (&local, read) {
            (Ok(Local::Unlinked { size }), _) => self.shared(place, digest, *size, read).await,
            (_, Read::Head) => self.asked_about(place, digest).await,
            (_, Read::Get) => self.fly(place, digest, storage).await,
        };
        found.map_err(|failure| {
            if failure.is_unknown() {
                self.memory.absent.insert(place.spot(digest), ());
            }
            certain(failure, local.err())
        })
    }

    /// The flight under way that this repository may follow.
    fn granted(&self, place: &Place, digest: &Digest) -> Option<Flight> {
        let flight = self.flights.get(digest)?;
        flight.grants(&place.grant()).then_some(flight)
    }

    /// The flight that landed a moment ago for this repository, its bytes still here.
    fn landed(&self, place: &Place, digest: &Digest) -> Option<Flight> {
        self.flights.landed(digest).filter(|flight| flight.has_granted(&place.grant()))
    }

    /// The same, where that is nearer than storage: a herd that comes after it landed is spared the
    /// questions and the reads.
    fn at_hand(&self, place: &Place, digest: &Digest) -> Option<Flight> {
        let is_nearer =
            self.shelf.store.is_remote() && place.route.rule.delivery != Delivery::Redirect;
        is_nearer.then(|| self.landed(place, digest)).flatten()
    }

    async fn asked_about(&self, place: &Place, digest: &Digest) -> Result<Whereabouts, Failure> {
        Ok(Whereabouts::Upstream { size: self.entitled(place, digest).await? })
    }

    /// A blob that is stored for another repository. An upstream that refuses to tell by HEAD
    /// whether it has it here too (where HEAD is redirected to storage that refuses it) tells by
    /// GET; one that is in trouble is not asked again.
    async fn shared(
        &self,
        place: &Place,
        digest: &Digest,
        size: u64,
        read: Read,
    ) -> Result<Whereabouts, Failure> {
        match self.entitled(place, digest).await {
            Ok(_) => {
                if self.origins.claim(place).await.unwrap_or(false) {
                    self.link(place, digest);
                }
                Ok(Whereabouts::Stored { size })
            }
            Err(failure) if read == Read::Get && failure.class() == Some(FailureClass::Denied) => {
                self.fly(place, digest, Storage::Telling).await
            }
            Err(failure) => Err(failure),
        }
    }

    async fn local(&self, place: &Place, digest: &Digest) -> Result<Local, Failure> {
        let store = &self.shelf.store;
        let own = self.origins.are_own(place).await?;
        let look = async {
            tokio::try_join!(store.has_link(place.repository(), digest), store.blob_size(digest))
        };
        let (linked, size) = self.shelf.ask(look).await?;
        let size = size.filter(|size| self.is_whole(place, digest, *size));
        Ok(match (linked && own, size) {
            (true, Some(size)) => Local::Readable { size },
            (false, Some(size)) => Local::Unlinked { size },
            (_, None) => Local::Absent,
        })
    }

    /// Whether `size` is what the manifests that were shown here say of the blob. What is stored
    /// with another size was cut off.
    fn is_whole(&self, place: &Place, digest: &Digest, size: u64) -> bool {
        let described = self.family.size(&place.spot(digest));
        let is_whole = described.is_none_or(|described| described == size);
        if !is_whole {
            tracing::warn!(%digest, size_bytes = size, expected_bytes = described,
                image.repository = %place.repository(), "stored blob has the wrong size");
        }
        is_whole
    }

    /// The size of the blob by the upstream's word that the rule's repository has it.
    async fn entitled(&self, place: &Place, digest: &Digest) -> Result<u64, Failure> {
        let spot = place.spot(digest);
        if let Some(size) = self.memory.entitled.get(&spot) {
            return Ok(size);
        }
        let _permit = self.asking.permit()?;
        let size = self.asking.blob(place, digest).await?.ok_or(Failure::Missing(What::Blob))?;
        self.memory.entitled.insert(spot, size);
        Ok(size)
    }

    /// Makes a blob that is stored readable in this repository, for the next time.
    fn link(&self, place: &Place, digest: &Digest) {
        let (store, repository) = (self.shelf.store.clone(), place.repository().clone());
        let digest = digest.clone();
        let link = async move {
            if let Err(error) = store.link_blob(&repository, &digest).await {
                tracing::warn!(%error, %digest, image.repository = %repository, "blob not linked");
            }
        };
        self.tasks.spawn(link.in_current_span());
    }

    /// Begins the flight or joins the one under way, and waits until it has something to tell.
    async fn fly(
        &self,
        place: &Place,
        digest: &Digest,
        storage: Storage,
    ) -> Result<Whereabouts, Failure> {
        let _permit = self.asking.permit()?;
        let mut failed = Failure::Abandoned;
        let mut proof = Proof::ByGet;
        for _ in 0..FLIGHTS {
            let Some((flight, outcome)) = self.boarded(place, digest, proof, storage).await? else {
                return self.passing(place, digest).await;
            };
            match self.opened(flight, outcome).await {
                Err(Failure::Flight(FlightError::NoSpool(reason))) => {
                    tracing::warn!(%digest, reason, "blob passed through");
                    return self.passing(place, digest).await;
                }
                Err(failure @ Failure::Flight(FlightError::Foreign)) => {
                    (failed, proof) = (failure, Proof::ByHead);
                }
                Err(failure) if outcome == PullOutcome::Joined => failed = failure,
                other => return other,
            }
        }
        Err(failed)
    }

    /// The flight, begun or joined; `None` when there is one that this repository may not join as
    /// far as can be told. Beginning needs no question: the upstream delivers to this repository or
    /// it does not.
    async fn boarded(
        &self,
        place: &Place,
        digest: &Digest,
        proof: Proof,
        storage: Storage,
    ) -> Result<Option<(Flight, PullOutcome)>, Failure> {
        let (source, grant) = (self.source(place, digest), place.grant());
        let begun = match (proof, storage) {
            (Proof::ByHead, _) => None,
            (Proof::ByGet, Storage::Telling) => self.flights.begin(source.clone(), &grant)?,
            (Proof::ByGet, Storage::Failing) => {
                self.flights.begin_past_storage(source.clone(), &grant)?
            }
        };
        if let Some(flight) = begun {
            return Ok(Some((flight, PullOutcome::Miss)));
        }
        if let Some(flight) = self.granted(place, digest) {
            return Ok(Some((flight, PullOutcome::Joined)));
        }
        if !self.is_entitled(place, digest).await? {
            return Ok(None);
        }
        let flight = self.flights.join_or_start(source, &grant).await?;
        Ok(Some((flight, PullOutcome::Joined)))
    }

    async fn passing(&self, place: &Place, digest: &Digest) -> Result<Whereabouts, Failure> {
        let passing = self.flights.pass_through(self.source(place, digest), &place.grant()).await?;
        Ok(Whereabouts::Passing(passing))
    }

    fn source(&self, place: &Place, digest: &Digest) -> Source {
        let spot = place.spot(digest);
        Source {
            client: place.client.clone(),
            upstream_repository: place.route.upstream_repository.clone(),
            digest: digest.clone(),
            size: self.family.size(&spot).or_else(|| self.memory.entitled.get(&spot)),
            urgency: Priority::Interactive.into(),
        }
    }

    /// Whether the upstream says by HEAD that its repository has the blob; false when it cannot
    /// say, and an error when it says no.
    async fn is_entitled(&self, place: &Place, digest: &Digest) -> Result<bool, Failure> {
        match self.entitled(place, digest).await {
            Ok(_) => Ok(true),
            Err(failure) if failure.is_unknown() => Err(failure),
            Err(_) => Ok(false),
        }
    }

    /// Waits until a status line can be sent.
    async fn opened(&self, flight: Flight, outcome: PullOutcome) -> Result<Whereabouts, Failure> {
        flight.urge();
        match flight.opened().await? {
            Opened::Stored { size } => Ok(Whereabouts::Stored { size }),
            Opened::Flying { size } => Ok(Whereabouts::Flying { flight, size, outcome }),
        }
    }

    /// The blob from storage; `None` when it is not there after all, or is damaged.
    async fn stored(
        &self,
        place: &Place,
        digest: &Digest,
        size: u64,
        read: Read,
        asked: &Parts,
    ) -> Result<Option<Answer>, Failure> {
        let hit = |answer: Answer| {
            self.memory.keep_blob(place.spot(digest), size, wanted_for(place, read));
            Ok(Some(answer.served(PullKind::Blob, PullOutcome::Hit)))
        };
        if read == Read::Head {
            return hit(Answer::blob(digest, Some(size), Content::Empty));
        }
        let range = match wanted_part(&asked.headers, digest, size)? {
            Part::Bytes(range) => Some(range),
            Part::Whole | Part::Unsatisfiable => None,
        };
        if place.route.rule.delivery == Delivery::Redirect
            && let Ok(Some(location)) = self.shelf.store.presign(digest, PRESIGNED_FOR).await
        {
            return hit(Answer::redirect(digest, location.as_str()));
        }
        let outlet = asked.extensions.get::<Outlet>();
        let sent = self.sent(digest, size, range.clone().unwrap_or(0..size), outlet).await;
        let content = match sent {
            Some(file) => Content::File(file),
            None => match Box::pin(self.read(place, digest, size, range.clone())).await? {
                Some(stream) => Content::Stream(stream),
                None => return Ok(None),
            },
        };
        hit(match range {
            Some(range) => Answer::partial_blob(digest, &range, size, content),
            None => Answer::blob(digest, Some(size), content),
        })
    }

    /// The bytes as the kernel sends them, where the connection can and the file is known sound.
    async fn sent(
        &self,
        digest: &Digest,
        size: u64,
        range: Range<u64>,
        outlet: Option<&Outlet>,
    ) -> Option<SentFile> {
        let outlet = outlet?;
        let file = self.shelf.store.sound_file(digest).await?;
        (file.size() == size).then(|| SentFile::new(file, range, outlet.clone()))
    }

    /// The stored bytes; storage verifies a whole blob on its way. `None` when it is not there, or
    /// of another size than a moment ago.
    async fn read(
        &self,
        place: &Place,
        digest: &Digest,
        size: u64,
        range: Option<Range<u64>>,
    ) -> Result<Option<ByteStream>, Failure> {
        let found = self.shelf.ask(self.shelf.store.read_blob(digest, range)).await?;
        let (memory, spot) = (self.memory.clone(), place.spot(digest));
        let forget = move |_: &StoreError| memory.forget_blob(&spot);
        let found = found.filter(|found| found.size == size);
        Ok(found.map(|found| breaking(found.stream.inspect_err(forget))))
    }
}

/// What a flight has and will have, from its spool: however slowly a client takes it, no upstream
/// waits for that.
fn flying(
    digest: &Digest,
    flight: &Flight,
    size: Option<u64>,
    read: Read,
    asked: &HeaderMap,
) -> Result<Answer, Failure> {
    let part = match size {
        Some(size) if read == Read::Get => wanted_part(asked, digest, size)?,
        _ => Part::Whole,
    };
    Ok(match (part, size) {
        (Part::Bytes(range), Some(size)) => {
            let stream = breaking(flight.part(range.clone()));
            Answer::partial_blob(digest, &range, size, Content::Stream(stream))
        }
        _ => Answer::blob(digest, size, Content::Stream(breaking(flight.read(0, None)))),
    })
}

/// A blob to which the client is redirected is not read here.
fn wanted_for(place: &Place, read: Read) -> Use {
    match (read, place.route.rule.delivery == Delivery::Redirect) {
        (Read::Get, false) => Use::Reading,
        _ => Use::Telling,
    }
}

/// A body that cuts the connection where `stream` fails.
fn breaking<E: Display>(
    stream: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> ByteStream {
    Box::pin(stream.map(|next| next.map_err(|error| Broken(error.to_string()))))
}
