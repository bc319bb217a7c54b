//! One run: a cluster is set up, the plan is carried out, and what must hold is checked.

use crate::{
    lab::{MIB, Member, client, grant, name},
    plan::{Fault, Misdeed, Plan, PlannedBlob, PlannedReader, REPOSITORIES, Trouble},
    reader::{End, Reading},
};
use futures::future::join_all;
use hydrant_flight::Source;
use hydrant_proto::{Digest, subject::StateKey};
use hydrant_store::{S3Settings, Store, StoreConfig, StoreUrl};
use hydrant_testkit::{FakeUpstream, Fault as Failing, Flow, NatsServer, until};
use hydrant_upstream::{Client, Priority};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::sleep;

const LIMIT: Duration = Duration::from_secs(30);
/// What a dead leader may cost.
const PART: u64 = 16 * MIB;

pub struct Run {
    plan: Plan,
    upstream: FakeUpstream,
    nats: NatsServer,
    members: Vec<Place>,
    shelf: tempfile::TempDir,
    storage_fails: tokio::sync::Mutex<()>,
}

/// A member, and what it reads with.
struct Place {
    member: Member,
    spool: PathBuf,
    store: Store,
    client: Arc<Client>,
    wide: Arc<Client>,
    stopped: AtomicBool,
}

impl Run {
    pub async fn start(plan: Plan) -> Self {
        let (upstream, nats) = (FakeUpstream::start().await, NatsServer::start().await);
        let shelf = tempfile::tempdir().unwrap();
        for blob in &plan.blobs {
            upstream.put_blob("app", &blob.digest, blob.content.clone());
            upstream.inject(&path(&blob.digest), Failing::slow(blob.bytes_per_second));
        }
        let mut members = Vec::new();
        for n in 0..plan.members {
            members.push(Place::new(&upstream, &nats, shelf.path(), n).await);
        }
        Self { plan, upstream, nats, members, shelf, storage_fails: tokio::sync::Mutex::default() }
    }

    pub async fn carry_out(self) {
        let readers = join_all(self.plan.readers.iter().map(|reader| self.read(reader)));
        tokio::join!(readers, self.misfortunes());
        self.heal();
        self.all_is_stored().await;
        self.upstream_was_spared();
        self.nothing_is_left().await;
    }

    async fn read(&self, plan: &PlannedReader) {
        let (place, blob) = (&self.members[plan.member], &self.plan.blobs[plan.blob]);
        let reading = Reading {
            member: &place.member,
            store: &place.store,
            source: place.source(blob),
            grant: grant(plan.repository),
            bytes: blob.content.bytes(),
        };
        if let End::Failed(why) = reading.run(plan).await {
            eprintln!("failed: {why}: {plan:?}");
            let stopped = place.stopped.load(Ordering::Relaxed);
            assert!(stopped || self.may_fail(), "{plan:?} failed: {why}");
        }
    }

    /// Whether a reader whose own process lives may be told of a failure.
    fn may_fail(&self) -> bool {
        match self.plan.trouble {
            Trouble::Nothing | Trouble::Deaths | Trouble::Links | Trouble::Bus => false,
            Trouble::Upstream | Trouble::Storage | Trouble::Everything => true,
        }
    }

    async fn misfortunes(&self) {
        let mut start = Duration::ZERO;
        let each = self.plan.faults.iter().map(|planned| {
            start += planned.pause;
            let start = match planned.fault {
                Fault::Upstream(..) => Duration::ZERO,
                _ => start,
            };
            async move {
                sleep(start).await;
                self.strike(&planned.fault).await;
            }
        });
        join_all(each).await;
    }

    async fn strike(&self, fault: &Fault) {
        let member = |member: usize| &self.members[member].member;
        match *fault {
            Fault::StopLeader => self.stop_leader().await,
            Fault::CutPeer(one) => member(one).to_peer.cut(),
            Fault::Peer(one, flow, lasting) => {
                member(one).to_peer.flow(flow);
                sleep(lasting).await;
                member(one).to_peer.flow(Flow::Pass);
            }
            Fault::Bus(one, flow, lasting) => {
                member(one).to_nats.flow(flow);
                sleep(lasting).await;
                member(one).to_nats.flow(Flow::Pass);
            }
            Fault::BusForAll(flow, lasting) => {
                self.members.iter().for_each(|place| place.member.to_nats.flow(flow));
                sleep(lasting).await;
                self.members.iter().for_each(|place| place.member.to_nats.flow(Flow::Pass));
            }
            Fault::Freeze(one, lasting) => {
                member(one).freeze();
                sleep(lasting).await;
                member(one).thaw();
            }
            Fault::Storage(lasting) => self.without_storage(lasting).await,
            Fault::Upstream(blob, misdeed) => {
                let failing = match misdeed {
                    Misdeed::Truncates(after) => Failing::truncate(after),
                    Misdeed::Answers(status) => Failing::status(status),
                    Misdeed::Hesitates(pause) => Failing::delay(pause),
                };
                self.upstream.inject(&path(&self.plan.blobs[blob].digest), failing.times(1));
            }
        }
    }

    /// Once others follow it closely, the leader of the first blob stops.
    async fn stop_leader(&self) {
        let digest = &self.plan.blobs[0].digest;
        let all_fly = until("everybody to follow", LIMIT, async || {
            let living = || self.living();
            let flights: Vec<_> =
                living().filter_map(|place| place.member.flights.get(digest)).collect();
            if flights.len() < living().count() {
                // It may be over already.
                return self.is_stored(digest).await.then_some(false);
            }
            flights.iter().all(|flight| flight.progress().spooled > MIB).then_some(true)
        })
        .await;
        if !all_fly || self.living().count() < 2 {
            return;
        }
        let state = self.living().next().unwrap().member.bus.shared_state();
        let Ok(Some(entry)) = state.get(&StateKey::Flight(digest.clone())).await else { return };
        let leads = |place: &&Place| place.member.bus.shared_state().owner() == entry.owner;
        let Some(leader) = self.living().find(leads) else { return };
        eprintln!("the leader stops");
        leader.stopped.store(true, Ordering::Relaxed);
        leader.member.flights.stop().await;
    }

    /// The directory is not there for a while, and what has its place is none.
    async fn without_storage(&self, lasting: Duration) {
        let _one = self.storage_fails.lock().await;
        let (store, away) = (self.store_path(), self.shelf.path().join("away"));
        std::fs::rename(&store, &away).unwrap();
        std::fs::write(&store, "").unwrap();
        sleep(lasting).await;
        std::fs::remove_file(&store).unwrap();
        std::fs::rename(&away, &store).unwrap();
    }

    /// What an importer does in the end.
    async fn all_is_stored(&self) {
        let place = self.living().next().unwrap();
        for blob in &self.plan.blobs {
            for repository in REPOSITORIES {
                let grant = grant(repository);
                until("the blob to be stored", LIMIT, async || {
                    let flight = place.member.flights.join_or_start(place.source(blob), &grant);
                    flight.await.ok()?.stored().await.ok()
                })
                .await;
                assert!(self.is_stored(&blob.digest).await, "{} is not stored", blob.digest);
                let linked = place.store.has_link(&name(repository), &blob.digest).await;
                assert!(linked.unwrap(), "{} is not linked in {repository}", blob.digest);
            }
        }
    }

    fn upstream_was_spared(&self) {
        let deaths = self.members.iter().filter(|place| !place.lives()).count() as u64;
        for blob in &self.plan.blobs {
            let (size, path) = (blob.content.length(), path(&blob.digest));
            let (gets, bytes) = (self.upstream.gets(&path), self.upstream.bytes(&path));
            eprintln!("{gets} GETs and {bytes} bytes of {size}");
            match self.plan.trouble {
                Trouble::Nothing => {
                    assert_eq!(bytes, size, "bytes of {blob:?}");
                    assert!(gets == 1 || blob.wide && blob.described, "{gets} GETs of {blob:?}");
                }
                Trouble::Deaths => assert!(bytes <= size + deaths * PART, "{bytes} of {blob:?}"),
                _ => {}
            }
        }
    }

    /// No flight, no task, no byte of any spool, even at members that were stopped.
    async fn nothing_is_left(self) {
        for place in &self.members {
            for blob in &self.plan.blobs {
                until("the flight to be over", LIMIT, async || {
                    place.member.flights.get(&blob.digest).is_none().then_some(())
                })
                .await;
            }
            place.member.flights.drain().await;
            until("the spool to be empty", LIMIT, async || {
                (open_files_below(&place.spool) == 0).then_some(())
            })
            .await;
        }
        drop(self.nats);
    }

    fn heal(&self) {
        self.upstream.heal();
    }

    fn living(&self) -> impl Iterator<Item = &Place> {
        self.members.iter().filter(|place| place.lives())
    }

    async fn is_stored(&self, digest: &Digest) -> bool {
        let size = self.plan.blobs.iter().find(|blob| blob.digest == *digest).unwrap();
        let place = self.living().next().unwrap();
        place.store.has_blob(digest, size.content.length()).await.unwrap_or(false)
    }

    fn store_path(&self) -> PathBuf {
        self.shelf.path().join("store")
    }
}

impl Place {
    async fn new(upstream: &FakeUpstream, nats: &NatsServer, shelf: &Path, n: usize) -> Self {
        let url = StoreUrl::Directory(shelf.join("store"));
        let config = StoreConfig { url, s3: S3Settings::default(), public_endpoint: None };
        let store = Store::open(&config).unwrap();
        let spool = shelf.join(format!("spool-{n}"));
        Self {
            member: Member::join(nats, store.clone(), spool.clone()).await,
            spool,
            store,
            client: client(upstream, ""),
            wide: client(upstream, "parallel = { from = '1MiB', ranges = 3 }"),
            stopped: AtomicBool::new(false),
        }
    }

    fn lives(&self) -> bool {
        !self.stopped.load(Ordering::Relaxed)
    }

    fn source(&self, blob: &PlannedBlob) -> Source {
        Source {
            client: if blob.wide { self.wide.clone() } else { self.client.clone() },
            upstream_repository: name("app"),
            digest: blob.digest.clone(),
            size: blob.described.then(|| blob.content.length()),
            urgency: Priority::Interactive.into(),
        }
    }
}

fn path(digest: &Digest) -> String {
    format!("/v2/app/blobs/{digest}")
}

/// Files of a spool have no name: what is open is what is there.
fn open_files_below(spool: &Path) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let below = |file: &std::fs::DirEntry| {
        std::fs::read_link(file.path()).is_ok_and(|target| target.starts_with(spool))
    };
    open.filter(below).count()
}
