//! Who is flying in this process: at most one flight per digest.

use crate::{
    error::FlightError,
    fetch::fetch,
    flight::{Flight, Grant, Stage},
    keep::Keeper,
    spool::Spool,
};
use hydrant_proto::{Digest, RepositoryName};
use hydrant_store::Store;
use hydrant_telemetry::metrics;
use hydrant_upstream::{BlobBody, Client, Priority, UpstreamError};
use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

/// Tries to write a verified blob to storage before it is left to the next flight.
const STORE_TRIES: u32 = 3;

/// Where a blob can be had.
#[derive(Clone, Debug)]
pub struct Source {
    pub client: Arc<Client>,
    pub upstream_repository: RepositoryName,
    pub digest: Digest,
    /// Size in bytes by the manifest's descriptor, where the caller knows it.
    pub size: Option<u64>,
    pub priority: Priority,
}

impl Source {
    pub(crate) async fn open(&self, from: u64) -> Result<BlobBody, UpstreamError> {
        self.client.blob(&self.upstream_repository, &self.digest, from, self.priority).await
    }

    /// The size of the blob in bytes. One whose size nobody tells might never end, so that of a
    /// body sent in chunks is asked for.
    pub(crate) async fn bound(&self, stated: Option<u64>) -> Result<u64, FlightError> {
        if let Some(size) = stated.or(self.size) {
            return Ok(size);
        }
        let (repository, digest) = (&self.upstream_repository, &self.digest);
        let told = self.client.head_blob(repository, digest, self.priority).await?;
        told.ok_or_else(|| FlightError::Integrity("the upstream tells no size".to_owned()))
    }
}

/// Where a flight looks for its blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    StorageFirst,
    /// Nobody has said yet that who began it may read the blob.
    Upstream,
}

/// The flights of one process. Cheap to clone; every role of the process shares it.
#[derive(Clone, Debug)]
pub struct Flights(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    keeper: Keeper,
    spool: Arc<Spool>,
    flying: Mutex<HashMap<Digest, Flight>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Flights {
    /// Spools in `spool_dir`, of which it uses `budget` bytes at most.
    pub fn new(store: Store, spool_dir: PathBuf, budget: u64) -> io::Result<Self> {
        Ok(Self(Arc::new(Inner {
            keeper: Keeper::new(store),
            spool: Spool::new(spool_dir, budget)?,
            flying: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })))
    }

    /// The flight of `digest`, if there is one under way. Whether the caller may read along is the
    /// caller's to decide: see [`Flight::grants`].
    pub fn get(&self, digest: &Digest) -> Option<Flight> {
        self.flying().get(digest).cloned()
    }

    /// Joins the flight of a blob or begins it. The repository of `to` must have been found
    /// entitled to the blob; it is linked when the blob is stored.
    ///
    /// The flight belongs to nobody: it goes on when the caller leaves.
    pub async fn join_or_start(&self, source: Source, to: &Grant) -> Result<Flight, FlightError> {
        let (flight, started) = self.enter(&source)?;
        if !flight.grant(to) {
            self.0.keeper.link_for(to, &source.digest).await?;
        }
        if started {
            self.start(flight.clone(), source, Look::StorageFirst);
        } else {
            metrics().flights.joined();
        }
        Ok(flight)
    }

    /// Begins the flight of a blob whose bytes the repository has not been found entitled to yet: that
    /// its own upstream repository delivers them is what entitles it, so storage is not looked at.
    /// `None` when a flight is under way already, which may be somebody else's.
    pub fn begin(&self, source: Source, to: &Grant) -> Result<Option<Flight>, FlightError> {
        let (flight, started) = self.enter(&source)?;
        if !started {
            return Ok(None);
        }
        flight.grant(to);
        self.start(flight.clone(), source, Look::Upstream);
        Ok(Some(flight))
    }

    /// Lets flights under way finish until the caller stops waiting; [`Flights::stop`] ends them.
    pub async fn drain(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Ends all flights, their uploads aborted.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        self.drain().await;
    }

    fn flying(&self) -> MutexGuard<'_, HashMap<Digest, Flight>> {
        self.0.flying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, source: &Source) -> Result<(Flight, bool), FlightError> {
        if self.0.stop.is_cancelled() {
            return Err(FlightError::Stopping);
        }
        match self.flying().entry(source.digest.clone()) {
            Entry::Occupied(entry) => Ok((entry.get().clone(), false)),
            Entry::Vacant(entry) => {
                let flight = Flight::new(source.digest.clone(), source.size);
                Ok((entry.insert(flight).clone(), true))
            }
        }
    }

    fn start(&self, flight: Flight, source: Source, look: Look) {
        let flights = self.clone();
        let span = tracing::info_span!("flight", digest = %source.digest,
            upstream = %source.client.upstream().name, size_bytes = tracing::field::Empty);
        let task = async move {
            let active = metrics().flights.started();
            let stop = flights.0.stop.clone();
            let outcome = stop
                .run_until_cancelled(flights.fly(&flight, &source, look))
                .await
                .unwrap_or(Err(FlightError::Stopping));
            flights.land(&flight, outcome);
            drop(active);
        };
        self.0.tasks.spawn(task.instrument(span));
    }

    /// The steps of one flight.
    async fn fly(&self, flight: &Flight, source: &Source, look: Look) -> Result<(), FlightError> {
        if look == Look::StorageFirst
            && let Some(size) = self.stored(source).await
        {
            flight.0.progress.send_modify(|progress| progress.size = Some(size));
            return self.0.keeper.link(flight).await;
        }
        let body = source.open(0).await?;
        agree(source.size, body.size)?;
        let size = source.bound(body.size).await?;
        let file = self.0.spool.open(size)?;
        flight.0.spool.set(file.reader()).expect("a flight opens its spool once");
        flight.0.progress.send_modify(|progress| {
            progress.size = Some(size);
            progress.stage = Stage::Flying;
        });
        let body = BlobBody { size: Some(size), ..body };
        let (fetched, kept) =
            tokio::join!(self.fetch(flight, source, body, file), self.0.keeper.keep(flight));
        fetched?;
        self.kept(flight, kept).await
    }

    /// The size of the blob if storage has it whole. Storage that cannot tell does not keep a
    /// client waiting: the blob is fetched, and written again.
    async fn stored(&self, source: &Source) -> Option<u64> {
        let size = self.0.keeper.store().blob_size(&source.digest).await.ok().flatten();
        size.filter(|size| source.size.is_none_or(|described| described == *size))
    }

    async fn fetch(
        &self,
        flight: &Flight,
        source: &Source,
        body: BlobBody,
        file: crate::spool::SpoolFile,
    ) -> Result<(), FlightError> {
        let fetched = fetch(flight, source, body, file).await;
        if let Err(error) = &fetched {
            // The upload follows the flight, and ends by hearing of the failure.
            self.fail(flight, error.clone());
        }
        tracing::Span::current().record("size_bytes", fetched?);
        Ok(())
    }

    /// Tries again to store a blob that was fetched: the bytes are still in the spool.
    async fn kept(
        &self,
        flight: &Flight,
        mut kept: Result<(), FlightError>,
    ) -> Result<(), FlightError> {
        for attempt in 1..STORE_TRIES {
            let Err(error) = &kept else { break };
            tracing::warn!(digest = %flight.digest(), %error, attempt, "blob not stored, trying again");
            tokio::time::sleep(Duration::from_secs(u64::from(attempt))).await;
            // Another process may have stored it, and ended our write as superfluous.
            kept = match self.0.keeper.store().blob_size(flight.digest()).await {
                Ok(Some(size)) if Some(size) == flight.progress().size => {
                    self.0.keeper.link(flight).await
                }
                _ => self.0.keeper.keep(flight).await,
            };
        }
        kept
    }

    fn land(&self, flight: &Flight, outcome: Result<(), FlightError>) {
        match outcome {
            Ok(()) => {
                self.leave(flight);
                flight.0.progress.send_modify(|progress| progress.stage = Stage::Stored);
            }
            Err(error) => {
                tracing::warn!(digest = %flight.digest(), class = %error.class(), %error, "flight failed");
                self.fail(flight, error);
            }
        }
    }

    /// Leaves the map before followers hear of it, so that whoever retries begins a new flight.
    fn fail(&self, flight: &Flight, error: FlightError) {
        self.leave(flight);
        flight.0.progress.send_modify(|progress| {
            if !matches!(progress.stage, Stage::Failed(_)) {
                progress.stage = Stage::Failed(error);
            }
        });
    }

    fn leave(&self, flight: &Flight) {
        let mut flying = self.flying();
        if flying.get(flight.digest()).is_some_and(|held| Arc::ptr_eq(&held.0, &flight.0)) {
            flying.remove(flight.digest());
        }
    }
}

/// The manifest's word and the upstream's word on the size, where both gave one.
fn agree(described: Option<u64>, stated: Option<u64>) -> Result<(), FlightError> {
    match (described, stated) {
        (Some(described), Some(stated)) if described != stated => Err(FlightError::Integrity(
            format!("{stated} bytes, where the manifest says {described}"),
        )),
        _ => Ok(()),
    }
}
