//! Asking upstreams: each thing once at a time for the whole process, and not too many things at
//! once. What the upstream calls themselves are limited to (slots, breaker, negative answers) is
//! the upstream client's business.

use crate::{
    coalesce::{Coalesced, Part},
    error::{Failure, What},
    held::Held,
    place::{Place, Spot},
    request::Page,
};
use bytes::Bytes;
use hydrant_flight::{FlightError, Flights, ManifestSource};
use hydrant_proto::{Digest, Reference, Tag, Via};
use hydrant_rules::Freshness;
use hydrant_upstream::{Head, Priority, TagPage, UpstreamError};
use jiff::Timestamp;
use moka::sync::Cache;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::task::TaskTracker;

/// Longest wait for a list of tags or referrers.
const LIST_BUDGET: Duration = Duration::from_secs(5);
/// Questions for referrers under way at once: the digests in them are the clients' own, and no
/// upstream counts those that it does not know.
const REFERRERS_AT_ONCE: usize = 64;
/// How long an answer to one is good for, and how many bytes of answers are remembered.
const REFERRERS_FOR: Duration = Duration::from_secs(10);
const REFERRERS_BYTES: u64 = 16 * 1024 * 1024;

/// What a HEAD told, and from when its word is.
#[derive(Clone, Debug)]
pub struct Told {
    pub head: Head,
    /// Before the upstream was asked: what it says may be that old when the answer comes.
    pub at: Timestamp,
}

/// The upstream's index, if there is one.
type Referrers = Result<Option<Bytes>, Failure>;

pub struct Asking {
    /// Short questions are shared only by those who came the same way: in a circle of hydrants
    /// they find it by going on.
    heads: Coalesced<(Spot<Reference>, Via), Result<Told, Failure>>,
    manifests: Coalesced<Spot<Reference>, Result<Arc<Held>, Failure>>,
    blobs: Coalesced<(Spot<Digest>, Via), Result<Option<u64>, Failure>>,
    referrers: Coalesced<(Spot<Digest>, Via), Referrers>,
    known_referrers: Cache<(Spot<Digest>, Via), Referrers>,
    referrers_at_once: Arc<Semaphore>,
    flights: Flights,
    permits: Arc<Semaphore>,
}

impl Asking {
    /// At most `at_once` requests of clients wait for upstreams; those beyond are turned away.
    pub fn new(at_once: usize, flights: Flights, tasks: &TaskTracker) -> Self {
        Self {
            heads: Coalesced::new(tasks.clone()),
            manifests: Coalesced::new(tasks.clone()),
            blobs: Coalesced::new(tasks.clone()),
            referrers: Coalesced::new(tasks.clone()),
            known_referrers: Cache::builder()
                .max_capacity(REFERRERS_BYTES)
                .weigher(|_, index| 1024 + weight(index))
                .time_to_live(REFERRERS_FOR)
                .build(),
            referrers_at_once: Arc::new(Semaphore::new(REFERRERS_AT_ONCE)),
            flights,
            permits: Arc::new(Semaphore::new(at_once)),
        }
    }

    /// The right to have an upstream asked; held until the answer is through.
    pub fn permit(&self) -> Result<OwnedSemaphorePermit, Failure> {
        self.permits.clone().try_acquire_owned().map_err(|_| Failure::Overloaded)
    }

    /// What a HEAD says of a manifest, if the upstream answers within `budget`. Never a GET.
    pub async fn head(
        &self,
        place: &Place,
        reference: &Reference,
        budget: Duration,
    ) -> Result<Told, Failure> {
        let _permit = self.permit()?;
        let (client, reference) = (place.client.clone(), reference.clone());
        let repository = place.route.upstream_repository.clone();
        let key = (place.spot(&reference), client.via().clone());
        let work = || async move {
            let priority = Priority::Interactive;
            let at = Timestamp::now();
            let head = client.head_manifest(&repository, &reference, priority, budget).await;
            let head = head.map_err(|error| upstream(What::Manifest, error))?;
            Ok(Told { head, at })
        };
        self.heads.get(key, work).await.0.unwrap_or(Err(Failure::Abandoned))
    }

    /// The manifest itself. `before` looks whether an earlier request has just brought it, and
    /// `after` keeps what is brought, with when the upstream was asked; both run in the shared task.
    pub async fn manifest(
        &self,
        place: &Place,
        reference: &Reference,
        before: impl FnOnce() -> Option<Arc<Held>> + Send + 'static,
        after: impl FnOnce(&Arc<Held>, Timestamp) + Send + 'static,
    ) -> Result<(Arc<Held>, Part), Failure> {
        let _permit = self.permit()?;
        let key = place.spot(reference);
        let (flights, source) = (self.flights.clone(), source(place, reference));
        let work = || async move {
            if let Some(held) = before() {
                return Ok(held);
            }
            let found = flights.manifest(&source).await.map_err(of_manifest)?;
            let held = Arc::new(Held::from(found.manifest));
            after(&held, found.asked_at);
            Ok(held)
        };
        let (outcome, part) = self.manifests.get(key, work).await;
        outcome.unwrap_or(Err(Failure::Abandoned)).map(|held| (held, part))
    }

    /// The size of a blob, if the place's upstream repository has it.
    pub async fn blob(&self, place: &Place, digest: &Digest) -> Result<Option<u64>, Failure> {
        let (client, digest) = (place.client.clone(), digest.clone());
        let repository = place.route.upstream_repository.clone();
        let key = (place.spot(&digest), client.via().clone());
        let work = || async move {
            let head = client.head_blob(&repository, &digest, Priority::Interactive).await;
            head.map_err(|error| upstream(What::Blob, error))
        };
        self.blobs.get(key, work).await.0.unwrap_or(Err(Failure::Abandoned))
    }

    /// A page of the upstream's tags, if it comes soon.
    pub async fn tags(&self, place: &Place, page: &Page<Tag>) -> Result<TagPage, Failure> {
        let _permit = self.permit()?;
        let repository = &place.route.upstream_repository;
        let (n, last) = (u32::try_from(page.n).ok(), page.last.as_ref().map(Tag::as_str));
        let asked = place.client.tags(repository, n, last, Priority::Interactive);
        let found = timeout(LIST_BUDGET, asked).await;
        let found = found.unwrap_or_else(|_| Err(late(place, format!("the tags of {repository}"))));
        found.map_err(|error| upstream(What::Repository, error))
    }

    /// The upstream's index of what refers to `digest`, if it comes soon; `None` when nothing does.
    pub async fn referrers(
        &self,
        place: &Place,
        digest: &Digest,
    ) -> Result<Option<Bytes>, Failure> {
        let _permit = self.permit()?;
        let key = (place.spot(digest), place.client.via().clone());
        if let Some(known) = self.known_referrers.get(&key) {
            return known;
        }
        let (place, of, turns) = (place.clone(), digest.clone(), self.referrers_at_once.clone());
        let (known, at) = (self.known_referrers.clone(), key.clone());
        let work = || async move {
            let _turn = turns.try_acquire().map_err(|_| Failure::Overloaded)?;
            let repository = &place.route.upstream_repository;
            let asked = place.client.referrers(repository, &of, Priority::Interactive);
            let found = timeout(LIST_BUDGET, asked).await;
            let found = found.unwrap_or_else(|_| Err(late(&place, format!("what refers to {of}"))));
            let found = found.map_err(|error| upstream(What::Manifest, error));
            known.insert(at, found.clone());
            found
        };
        self.referrers.get(key, work).await.0.unwrap_or(Err(Failure::Abandoned))
    }
}

/// Bytes of an index that is remembered.
fn weight(index: &Referrers) -> u32 {
    let bytes = index.as_ref().ok().and_then(Option::as_ref).map_or(0, Bytes::len);
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn late(place: &Place, what: String) -> UpstreamError {
    let detail = format!("no answer within {LIST_BUDGET:?}");
    UpstreamError::Down { upstream: place.route.upstream.name.to_string(), what, detail }
}

fn upstream(what: What, error: UpstreamError) -> Failure {
    Failure::Upstream { what, error }
}

fn of_manifest(error: FlightError) -> Failure {
    match error {
        FlightError::Upstream(error) => upstream(What::Manifest, UpstreamError::clone(&error)),
        error => Failure::Flight(error),
    }
}

/// Where the manifest can be had. What a tag named a moment ago to somebody else is as good as an
/// answer of our own for as long as it is fresh; what a digest names never changes.
fn source(place: &Place, reference: &Reference) -> ManifestSource {
    let remember = match reference {
        Reference::Digest(_) => Duration::MAX,
        Reference::Tag(tag) => match place.route.rule.freshness(tag) {
            Freshness::Immutable => Duration::MAX,
            Freshness::Checked(checks) => checks.fresh_for,
        },
    };
    ManifestSource {
        client: place.client.clone(),
        upstream_repository: place.route.upstream_repository.clone(),
        reference: reference.clone(),
        origin: place.route.origin.clone(),
        priority: Priority::Interactive,
        remember,
    }
}

/// A tag as a reference.
pub fn by_tag(tag: &Tag) -> Reference {
    Reference::Tag(tag.clone())
}
