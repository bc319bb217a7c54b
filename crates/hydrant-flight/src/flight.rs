//! One blob on its way: what its followers see of it, and how they read along.

use crate::{
    aside::Aside,
    error::FlightError,
    far::Far,
    insurance::Followers,
    offers,
    peers::Offer,
    recent::{Budget, Recent},
    spool::SpoolReader,
};
use bytes::Bytes;
use futures::{Stream, stream};
use hydrant_proto::{Digest, RepositoryName, state::MAX_GRANTS};
use hydrant_store::Sealed;
use hydrant_upstream::Urgency;
use std::{
    collections::BTreeSet,
    fmt,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};
use tokio::sync::{Notify, watch};

/// Bytes a reader takes from the spool at a time.
const BLOCK: u64 = 128 * 1024;
/// Most followers whose offers are kept in mind.
const MAX_OFFERS: usize = 64;

/// Who may read a flight along: a repository, as long as its content comes from this origin.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    /// The downstream repository.
    pub repository: RepositoryName,
    /// Fingerprint of where the rule leads (`Route::origin`).
    pub origin: Arc<str>,
}

/// As it is told to other processes.
impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.repository, self.origin)
    }
}

/// A blob being fetched, shared by everybody who needs it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Flight(pub(crate) Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    pub digest: Digest,
    /// Opens the flight to other processes.
    key: String,
    pub progress: watch::Sender<Progress>,
    pub spool: OnceLock<SpoolReader>,
    /// The spool, once its bytes were confirmed.
    pub sealed: OnceLock<Sealed>,
    pub recent: Recent,
    pub far: Far,
    grants: Mutex<Grants>,
    /// Told of each new grant.
    more: Notify,
    pub followers: Followers,
    /// What followers have of the blob.
    offers: Mutex<Vec<Offer>>,
    /// Told of each offer.
    offered: Notify,
    /// Told when a reader wants bytes that are missing.
    missed: Notify,
    urgency: Urgency,
}

/// Repositories that may read a flight, and are linked to the blob when it is stored.
#[derive(Debug, Default)]
struct Grants {
    all: BTreeSet<Grant>,
    /// All of them are linked, and no more can be granted.
    closed: bool,
}

/// How far a flight is.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Size in bytes, once known.
    pub size: Option<u64>,
    /// Bytes spooled, or missing before those.
    pub spooled: u64,
    /// Bytes that a dead process stored as parts of an upload, where nobody can read them.
    pub(crate) missing: Range<u64>,
    /// All bytes are here and hash to the digest, whatever becomes of them in storage.
    pub whole: bool,
    pub stage: Stage,
}

#[derive(Clone, Debug)]
pub enum Stage {
    /// Asking storage, then the upstream.
    Opening,
    /// Bytes are arriving.
    Flying,
    /// Storage is catching up, here or at the process that leads.
    Storing,
    /// Durable in storage, and linked to every repository that was granted it.
    Stored,
    Failed(FlightError),
}

/// What a caller may send its status line for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// It was in storage all along (size in bytes); read it there.
    Stored { size: u64 },
    /// It can be read from the flight (size in bytes; told for every flight that opened, since a
    /// blob whose size nobody tells is not flown).
    Flying { size: Option<u64> },
}

impl Flight {
    pub(crate) fn new(
        digest: Digest,
        size: Option<u64>,
        urgency: Urgency,
        budget: &Budget,
        aside: &Aside,
    ) -> Self {
        let (missing, stage) = (0..0, Stage::Opening);
        let progress = Progress { size, spooled: 0, missing, whole: false, stage };
        let far = Far::new(&digest, aside);
        Self(Arc::new(Shared {
            digest,
            key: format!("{:032x}", rand::random::<u128>()),
            progress: watch::Sender::new(progress),
            spool: OnceLock::new(),
            sealed: OnceLock::new(),
            recent: Recent::new(budget),
            far,
            grants: Mutex::default(),
            more: Notify::new(),
            followers: Followers::default(),
            offers: Mutex::default(),
            offered: Notify::new(),
            missed: Notify::new(),
            urgency,
        }))
    }

    pub fn digest(&self) -> &Digest {
        &self.0.digest
    }

    pub fn progress(&self) -> Progress {
        self.0.progress.borrow().clone()
    }

    /// Whether this flight has been granted, so that reading along needs no question to the
    /// repository's upstream.
    pub fn grants(&self, grant: &Grant) -> bool {
        let grants = self.granting();
        !grants.closed && grants.all.contains(grant)
    }

    /// A client waits for it: from now on it goes before background work, wherever it waits and
    /// whoever leads it.
    pub fn urge(&self) {
        self.0.urgency.raise();
    }

    pub(crate) fn urgency(&self) -> &Urgency {
        &self.0.urgency
    }

    /// Lets the repository read along and links it when the blob is stored. False when that is past:
    /// the blob is stored, and the caller links it.
    pub(crate) fn grant(&self, grant: &Grant) -> bool {
        let mut grants = self.granting();
        if !grants.closed && grants.all.insert(grant.clone()) {
            self.0.more.notify_one();
        }
        !grants.closed
    }

    /// Whether the repository was granted this flight, which may have landed since.
    pub fn has_granted(&self, grant: &Grant) -> bool {
        self.granting().all.contains(grant)
    }

    /// Whether its bytes are in the spool.
    pub(crate) fn is_spooled(&self) -> bool {
        self.0.spool.get().is_some()
    }

    pub(crate) fn key(&self) -> &str {
        &self.0.key
    }

    /// The grants to tell other processes of.
    pub(crate) fn granted(&self) -> Vec<String> {
        self.granting().all.iter().take(MAX_GRANTS).map(ToString::to_string).collect()
    }

    /// The repositories granted until now.
    pub(crate) fn grants_so_far(&self) -> BTreeSet<Grant> {
        self.granting().all.clone()
    }

    /// Keeps in mind what a follower has.
    pub(crate) fn offered(&self, offer: Offer) {
        let mut offers = self.offers();
        offers.retain(|known| known.address != offer.address);
        if offers.len() < MAX_OFFERS {
            offers.push(offer);
        }
        self.0.offered.notify_one();
    }

    /// The most that a follower has, beyond what is here. Whether it comes is known only once.
    pub(crate) fn take_offer(&self, here: u64) -> Option<Offer> {
        let mut offers = self.offers();
        let best = offers::best(&offers, here)?;
        Some(offers.swap_remove(best))
    }

    /// Whether a follower has more than `here`.
    pub(crate) fn has_offer(&self, here: u64) -> bool {
        self.offers().iter().any(|offer| offer.upto > here)
    }

    /// Ends when a follower told what it has.
    pub(crate) async fn offered_more(&self) {
        self.0.offered.notified().await;
    }

    /// Whether it goes on with an upload of a dead process.
    pub(crate) fn is_of_an_upload(&self) -> bool {
        self.0.spool.get().is_some_and(|spool| spool.file.refill().is_some())
    }

    /// Ends when a reader wants bytes that are missing.
    pub(crate) async fn missed(&self) {
        self.0.missed.notified().await;
    }

    /// A reader wants the byte at `at`.
    pub(crate) fn wants(&self, now: &Progress, at: u64) {
        if now.missing.contains(&at) {
            self.0.missed.notify_one();
        }
    }

    /// What is missing still; `None` when nothing is, and the rest was found right. The last byte is
    /// withheld until then.
    pub(crate) fn refilled(&self, missing: Option<Range<u64>>) {
        let missing = missing.map_or(0..0, |still| still.start.min(still.end - 1)..still.end);
        self.0.progress.send_modify(|progress| progress.missing = missing);
    }

    fn offers(&self) -> MutexGuard<'_, Vec<Offer>> {
        self.0.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends when there are more grants to tell of.
    pub(crate) async fn granted_more(&self) {
        self.0.more.notified().await;
    }

    /// The next repository to link; after the last no more can be granted, and later ones link
    /// themselves.
    pub(crate) fn next_grant(&self, done: &mut BTreeSet<Grant>) -> Option<Grant> {
        let mut grants = self.granting();
        let next = grants.all.difference(done).next().cloned();
        match &next {
            Some(grant) => drop(done.insert(grant.clone())),
            None => grants.closed = true,
        }
        next
    }

    fn granting(&self) -> MutexGuard<'_, Grants> {
        self.0.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a status line can be sent: the upstream answered, or the blob is stored.
    pub async fn opened(&self) -> Result<Opened, FlightError> {
        let mut progress = self.0.progress.subscribe();
        loop {
            {
                let now = progress.borrow_and_update();
                match (&now.stage, now.size) {
                    (Stage::Failed(error), _) if !now.whole => return Err(error.clone()),
                    (Stage::Stored, Some(size)) if !self.is_spooled() || now.is_missing_any() => {
                        return Ok(Opened::Stored { size });
                    }
                    (Stage::Opening, _) => {}
                    (_, size) => return Ok(Opened::Flying { size }),
                }
            }
            progress.changed().await.map_err(|_| FlightError::Stopping)?;
        }
    }

    /// Waits until the blob is durable in storage.
    pub async fn stored(&self) -> Result<u64, FlightError> {
        let mut progress = self.0.progress.subscribe();
        let settled = progress
            .wait_for(|now| matches!(now.stage, Stage::Stored | Stage::Failed(_)))
            .await
            .map_err(|_| FlightError::Stopping)?;
        match &settled.stage {
            Stage::Failed(error) => Err(error.clone()),
            _ => Ok(settled.size.unwrap_or(settled.spooled)),
        }
    }

    /// Waits for the next step of the flight, for progress displays.
    pub async fn changed(&self) -> Progress {
        let mut progress = self.0.progress.subscribe();
        progress.mark_unchanged();
        // An error means that the flight is over; its last progress says how.
        progress.changed().await.ok();
        progress.borrow().clone()
    }

    /// The bytes from `start` up to `end` (to the end of the blob when `None`), as they arrive.
    ///
    /// What is read is always a prefix of what the flight received. The last byte of the blob is
    /// withheld until the digest is confirmed, and a failed flight ends the stream with an error,
    /// so a reader that sees a clean end of the whole blob has the right bytes. A slow reader slows
    /// nobody.
    pub fn read(
        &self,
        start: u64,
        end: Option<u64>,
    ) -> impl Stream<Item = Result<Bytes, FlightError>> + Send + use<> {
        let reading = Reading::new(self);
        stream::try_unfold((reading, start), move |(mut reading, at)| async move {
            let Some(bytes) = reading.next(at, end).await? else { return Ok(None) };
            let next = at + bytes.len() as u64;
            Ok(Some((bytes, (reading, next))))
        })
    }

    /// Waits until `length` bytes at `at` are spooled, or all there are; `None` at the end.
    pub(crate) async fn next_part(
        &self,
        at: u64,
        length: u64,
    ) -> Result<Option<Range<u64>>, FlightError> {
        let mut progress = self.0.progress.subscribe();
        let ready = |now: &Progress| {
            now.whole || now.spooled >= at + length || matches!(now.stage, Stage::Failed(_))
        };
        let now = progress.wait_for(ready).await.map_err(|_| FlightError::Stopping)?;
        match &now.stage {
            Stage::Failed(error) if !now.whole => Err(error.clone()),
            _ if at == now.spooled => Ok(None),
            _ => Ok(Some(at..now.spooled.min(at + length))),
        }
    }

    /// Waits until the digest is confirmed.
    pub(crate) async fn sealed(&self) -> Result<&Sealed, FlightError> {
        let mut progress = self.0.progress.subscribe();
        let over = |now: &Progress| now.whole || matches!(now.stage, Stage::Failed(_));
        let now = progress.wait_for(over).await.map_err(|_| FlightError::Stopping)?.clone();
        match now.stage {
            Stage::Failed(error) if !now.whole => Err(error),
            _ => self.0.sealed.get().ok_or(FlightError::Stopping),
        }
    }

    pub(crate) fn spool(&self) -> Result<&SpoolReader, FlightError> {
        self.0.spool.get().ok_or(FlightError::Stopping)
    }
}

/// A reader, until it is dropped.
struct Reading {
    flight: Flight,
    progress: watch::Receiver<Progress>,
}

impl Reading {
    fn new(flight: &Flight) -> Self {
        flight.0.recent.reader();
        Self { flight: flight.clone(), progress: flight.0.progress.subscribe() }
    }

    /// The bytes at `at`, from memory if they are still there; `None` at the clean end.
    async fn next(&mut self, at: u64, end: Option<u64>) -> Result<Option<Bytes>, FlightError> {
        let Some(block) = self.available(at, end).await? else { return Ok(None) };
        if let Some(bytes) = self.flight.0.recent.read(block.start, block.end) {
            return Ok(Some(bytes));
        }
        self.flight.spool()?.read(block).await.map(Some)
    }

    /// Waits for bytes at `at`; `None` at the clean end.
    async fn available(
        &mut self,
        at: u64,
        end: Option<u64>,
    ) -> Result<Option<Range<u64>>, FlightError> {
        loop {
            {
                let now = self.progress.borrow_and_update();
                let upto = now.readable_at(at).min(end.unwrap_or(u64::MAX));
                if at < upto {
                    return Ok(Some(at..upto.min(at + BLOCK)));
                }
                if end.is_some_and(|end| at >= end) || (now.whole && at >= now.spooled) {
                    return Ok(None);
                }
                self.flight.wants(&now, at);
                match &now.stage {
                    Stage::Failed(error) => return Err(error.clone()),
                    // It is in storage, and comes from there only: see `Flight::opened`.
                    Stage::Stored => return Err(FlightError::Stopping),
                    Stage::Opening | Stage::Flying | Stage::Storing => {}
                }
            }
            self.progress.changed().await.map_err(|_| FlightError::Stopping)?;
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.flight.0.recent.reader_left();
    }
}

impl Progress {
    /// Up to where readers may read: short of the last byte until the digest is confirmed.
    pub(crate) fn readable(&self) -> u64 {
        self.readable_at(0)
    }

    /// The same for who has the bytes before `at`.
    pub(crate) fn readable_at(&self, at: u64) -> u64 {
        if at < self.missing.end {
            return self.missing.start;
        }
        if self.whole {
            return self.spooled;
        }
        let last = self.size.unwrap_or(self.spooled);
        self.spooled.min(last.saturating_sub(1))
    }

    pub(crate) fn is_missing_any(&self) -> bool {
        !self.missing.is_empty()
    }
}
