//! Who is flying in this process: at most one flight per digest, of which the process is leader or
//! follower.

use crate::{
    aside::Aside,
    crowd::Crowd,
    error::FlightError,
    flight::{Flight, Grant, Stage},
    keep::Keeper,
    kept::Kept,
    lead::Start,
    leftovers::Leftovers,
    load::{Load, Room},
    peers::Peers,
    question::Questions,
    ranges::Lanes,
    recent::Budget,
    spool::Spool,
    turn::{Cluster, Leader, Turn, Turns},
};
use futures::FutureExt;
use hydrant_proto::{Digest, RepositoryName};
use hydrant_store::Store;
use hydrant_telemetry::metrics;
use hydrant_upstream::{BlobBody, Client, Part, Priority, UpstreamError, Urgency};
use moka::future::Cache;
use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    panic::AssertUnwindSafe,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

/// How long it stays known that a flight of this process landed, and for whom. Who looked into
/// storage just before has not seen the blob there.
const LANDED_FOR: Duration = Duration::from_secs(60);
/// The part of the spool that blobs may take which landed.
const KEPT_SHARE: u64 = 4;
/// Longest wait for storage to tell whether it has a blob that a client waits for.
const STORE_PATIENCE: Duration = Duration::from_secs(3);
/// Most landings known.
const MAX_LANDED: u64 = 16_384;

/// Where a blob can be had.
#[derive(Clone, Debug)]
pub struct Source {
    pub client: Arc<Client>,
    pub upstream_repository: RepositoryName,
    pub digest: Digest,
    /// Size in bytes by the manifest's descriptor, where the caller knows it.
    pub size: Option<u64>,
    /// Rises when a client joins the flight that was begun with it.
    pub urgency: Urgency,
}

impl Source {
    pub(crate) async fn open(&self, from: u64) -> Result<BlobBody, UpstreamError> {
        self.client.blob(&self.upstream_repository, &self.digest, from, self.urgency.clone()).await
    }

    pub(crate) async fn part(&self, part: Part) -> Result<BlobBody, UpstreamError> {
        self.client.blob(&self.upstream_repository, &self.digest, part, self.urgency.clone()).await
    }

    /// The size of the blob in bytes. One whose size nobody tells might never end, so that of a
    /// body sent in chunks is asked for.
    pub(crate) async fn bound(&self, stated: Option<u64>) -> Result<u64, FlightError> {
        if let Some(size) = stated.or(self.size) {
            return Ok(size);
        }
        let (repository, digest) = (&self.upstream_repository, &self.digest);
        let told = self.client.head_blob(repository, digest, self.urgency.clone()).await?;
        told.ok_or_else(|| FlightError::Integrity("the upstream tells no size".to_owned()))
    }
}

/// Where a flight looks for its blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    StorageFirst,
    /// Nobody has said yet that who began it may read the blob. That others may who joined it
    /// meanwhile says nothing of the one.
    Upstream(Grant),
    /// The same, and storage was just seen not to deliver.
    PastStorage(Grant),
}

/// The flights of one process. Cheap to clone; every role of the process shares it.
#[derive(Clone, Debug)]
pub struct Flights(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub keeper: Keeper,
    room: Room,
    pub turns: Turns,
    pub peers: Arc<Peers>,
    pub lanes: Lanes,
    recent: Budget,
    aside: Aside,
    pub questions: Questions,
    flying: Mutex<HashMap<Digest, Flight>>,
    landed: Cache<Digest, Vec<String>>,
    pub tasks: TaskTracker,
    stop: CancellationToken,
}

impl Flights {
    /// Spools in `spool_dir`, of which it uses `budget` bytes at most. One read per blob and
    /// process; with a cluster, one in all of it.
    pub fn new(
        store: Store,
        spool_dir: PathBuf,
        budget: u64,
        cluster: Option<Cluster>,
    ) -> io::Result<Self> {
        std::fs::create_dir_all(&spool_dir)?;
        let lasting = store.lasting_spool(&spool_dir);
        let spool = Spool::new(spool_dir, lasting.clone(), budget)?;
        let leftovers = Leftovers::new(lasting, &spool)?;
        leftovers.look_regularly();
        let (kept, crowd) = (Kept::new(budget / KEPT_SHARE), Crowd::default());
        let room = Room { spool, kept, leftovers, crowd };
        Ok(Self(Arc::new(Inner {
            keeper: Keeper::new(store),
            room,
            turns: Turns::new(cluster),
            peers: Arc::new(Peers::new().map_err(io::Error::other)?),
            lanes: Lanes::default(),
            recent: Budget::default(),
            aside: Aside::new(),
            questions: Questions::default(),
            flying: Mutex::default(),
            landed: Cache::builder().max_capacity(MAX_LANDED).time_to_live(LANDED_FOR).build(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })))
    }

    /// The flight of `digest`, if there is one under way. Whether the caller may read along is the
    /// caller's to decide: see [`Flight::grants`].
    pub fn get(&self, digest: &Digest) -> Option<Flight> {
        self.flying().get(digest).cloned()
    }

    /// The flight of `digest` that landed a moment ago, if its bytes are still here. Who may read it
    /// is the caller's to decide: see [`Flight::has_granted`].
    pub fn landed(&self, digest: &Digest) -> Option<Flight> {
        self.0.room.kept.get(digest)
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
        self.begin_with(source, to, Look::Upstream(to.clone()))
    }

    /// The same, when storage was just seen not to deliver what it may have: another process that
    /// has the bytes is asked before the upstream, and storage not at all.
    pub fn begin_past_storage(
        &self,
        source: Source,
        to: &Grant,
    ) -> Result<Option<Flight>, FlightError> {
        self.begin_with(source, to, Look::PastStorage(to.clone()))
    }

    fn begin_with(
        &self,
        source: Source,
        to: &Grant,
        look: Look,
    ) -> Result<Option<Flight>, FlightError> {
        let (flight, started) = self.enter(&source)?;
        if !started {
            return Ok(None);
        }
        flight.grant(to);
        self.start(flight.clone(), source, look);
        Ok(Some(flight))
    }

    /// Lets flights under way finish until the caller stops waiting; [`Flights::stop`] ends them.
    pub async fn drain(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
        while self.0.room.kept.let_oldest_go() {}
    }

    /// Ends all flights; uploads are aborted that nobody is to go on with.
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
            Entry::Occupied(entry) => {
                if source.urgency.now() == Priority::Interactive {
                    entry.get().urge();
                }
                Ok((entry.get().clone(), false))
            }
            Entry::Vacant(entry) => {
                let (urgency, size) = (source.urgency.clone(), source.size);
                let digest = source.digest.clone();
                let flight = Flight::new(digest, size, urgency, &self.0.recent, &self.0.aside);
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
            // Whatever happens in it, a flight comes to an end: others wait for it.
            let flying = AssertUnwindSafe(flights.fly(&flight, &source, look)).catch_unwind();
            let flown = stop.run_until_cancelled(flying).await;
            let outcome = flown.and_then(Result::ok).unwrap_or(Err(FlightError::Stopping));
            flights.land(&flight, outcome).await;
            drop(active);
        };
        self.0.tasks.spawn(task.instrument(span));
    }

    /// The steps of one flight: this process's part in it changes as leaders come and go, what is here
    /// stays.
    async fn fly(&self, flight: &Flight, source: &Source, look: Look) -> Result<(), FlightError> {
        let look = self.known(flight.digest(), look).await;
        if look == Look::StorageFirst
            && let Some(size) = self.stored(source).await
        {
            flight.0.progress.send_modify(|progress| progress.size = Some(size));
            return self.0.keeper.link(flight).await;
        }
        let mut load = Load::new(flight, &self.0.room);
        if source.urgency.now() == Priority::Interactive {
            load.is_awaited(self.0.keeper.calm.arriving());
        }
        let over = CancellationToken::new();
        let turns = async {
            let _over = over.clone().drop_guard();
            self.take_turns(flight, source, &look, &mut load).await
        };
        let (flown, ()) = tokio::join!(turns, Box::pin(self.refill(flight, source, &over)));
        load.end(&flown);
        flown
    }

    /// Leads, follows or looks, as long as there is something to be done.
    async fn take_turns(
        &self,
        flight: &Flight,
        source: &Source,
        look: &Look,
        load: &mut Load,
    ) -> Result<(), FlightError> {
        let mut turn = self.0.turns.take(flight, upstream(source)).await;
        // Who comes before those who read along with a dead leader have claimed its place waits for
        // them as they would: what they have is not fetched again.
        let mut start = match &turn {
            Turn::Lead(tenure) if tenure.is_a_dead_ones() => Start::After,
            Turn::Lead(_) | Turn::Follow(_) | Turn::Look(_) => Start::Fresh,
        };
        loop {
            let next = match turn {
                // Boxed: each part's state would otherwise sit beside the others'.
                Turn::Lead(tenure) => {
                    if start == Start::After && self.is_over(load, source, look).await? {
                        tenure.stored(flight.progress().size.unwrap_or_default()).await;
                        return Ok(());
                    }
                    Box::pin(self.lead(flight, load, source, tenure, start)).await?
                }
                Turn::Follow(leader) => {
                    may_join(load, look, &leader)?;
                    Box::pin(self.follow(flight, load, source, leader)).await?
                }
                Turn::Look(leader) => {
                    may_join(load, look, &leader)?;
                    Box::pin(self.look(flight, load, source, look, &leader)).await?
                }
            };
            match next {
                Some(next) => (turn, start) = (next, Start::After),
                None => return Ok(()),
            }
        }
    }

    /// What a flight for the same repository that landed a moment ago has proved.
    async fn known(&self, digest: &Digest, look: Look) -> Look {
        let Look::Upstream(to) = &look else { return look };
        let landed = self.0.landed.get(digest).await.unwrap_or_default();
        if landed.contains(&to.to_string()) { Look::StorageFirst } else { look }
    }

    /// The size of the blob if storage has it whole. Storage that cannot tell does not keep a
    /// client waiting: the blob is fetched, and written again.
    pub(crate) async fn stored(&self, source: &Source) -> Option<u64> {
        let asked = self.0.keeper.store().blob_size(&source.digest);
        let told = match source.urgency.now() {
            Priority::Interactive => timeout(STORE_PATIENCE, asked).await.ok()?,
            Priority::Background => asked.await,
        };
        told.ok().flatten().filter(|size| source.size.is_none_or(|described| described == *size))
    }

    /// Whether storage has all `size` bytes of the blob.
    pub(crate) async fn is_stored(&self, source: &Source, size: u64) -> bool {
        self.0.keeper.store().has_blob(&source.digest, size).await.unwrap_or(false)
    }

    async fn land(&self, flight: &Flight, outcome: Result<(), FlightError>) {
        match outcome {
            Ok(()) => {
                // Known before the flight is gone, so that there is no moment without either.
                self.0.landed.insert(flight.digest().clone(), flight.granted()).await;
                self.0.room.kept.keep(flight);
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
    pub(crate) fn fail(&self, flight: &Flight, error: FlightError) {
        self.leave(flight);
        flight.0.progress.send_modify(|progress| {
            if !matches!(progress.stage, Stage::Failed(_)) {
                progress.stage = Stage::Failed(error);
            }
        });
    }

    fn leave(&self, flight: &Flight) {
        flight.0.far.close();
        let mut flying = self.flying();
        if flying.get(flight.digest()).is_some_and(|held| Arc::ptr_eq(&held.0, &flight.0)) {
            flying.remove(flight.digest());
        }
    }
}

/// Whether what another process brings may be read here. Bytes that are here already came by right.
fn may_join(load: &Load, look: &Look, leader: &Leader) -> Result<(), FlightError> {
    let may = match look {
        Look::StorageFirst => true,
        Look::Upstream(to) | Look::PastStorage(to) => {
            load.is_open() || leader.record.grants.contains(&to.to_string())
        }
    };
    if may { Ok(()) } else { Err(FlightError::Foreign) }
}

fn upstream(source: &Source) -> &str {
    source.client.upstream().name.as_str()
}
