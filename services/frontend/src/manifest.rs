//! Manifests by digest: storage, else what was relayed a moment ago, else the upstream. How a tag
//! becomes a digest is in `tag.rs`; what becomes of a miss in `misses.rs`.

use crate::{
    answer::{Answer, Facts},
    asking::Asking,
    coalesce::Part,
    error::Failure,
    family::Family,
    heard::due,
    held::Held,
    memory::{Memory, Observation},
    misses::{Miss, Misses, Publish},
    origin::Origins,
    place::{Place, Spot},
    request::Read,
    shelf::Shelf,
};
use hydrant_proto::{Digest, HydrationRequested, Lane, Manifest, Reference};
use hydrant_rules::{Due, Platforms};
use hydrant_store::Wanted;
use hydrant_telemetry::metrics::{PullKind, PullOutcome};
use hydrant_upstream::Head;
use jiff::Timestamp;
use std::{sync::Arc, time::Duration};

/// Longest wait for the upstream's word on a digest that is not here.
const HEAD_BUDGET: Duration = Duration::from_secs(2);

/// What manifests are served from. Cheap to clone.
#[derive(Clone)]
pub struct Manifests {
    pub shelf: Shelf,
    pub memory: Arc<Memory>,
    pub family: Arc<Family>,
    pub asking: Arc<Asking>,
    pub origins: Arc<Origins>,
    pub misses: Arc<Misses>,
}

/// A manifest that was found, or what a HEAD says of it.
pub struct Found {
    pub facts: Facts,
    pub held: Option<Arc<Held>>,
    pub outcome: PullOutcome,
}

impl Manifests {
    pub async fn by_digest(
        &self,
        place: &Place,
        digest: &Digest,
        read: Read,
    ) -> Result<Answer, Failure> {
        let found = self.find(place, digest, read).await?;
        if found.outcome != PullOutcome::Hit
            && let Some(held) = &found.held
        {
            let (reference, wanted) = self.family.root(&place.spot(digest));
            self.missed(place, reference, wanted, held);
        }
        Ok(found.answer(false))
    }

    /// The manifest at `digest` in this repository, wherever it can be had.
    pub async fn find(&self, place: &Place, digest: &Digest, read: Read) -> Result<Found, Failure> {
        let spot = place.spot(digest);
        let local = self.local(place, &spot).await;
        if let Ok(Some(held)) = local {
            return Ok(Found::of(held, PullOutcome::Hit));
        }
        if let Some(remembered) = self.memory.manifest(&spot) {
            return Ok(Found::of(remembered.held, PullOutcome::Joined));
        }
        let reference = Reference::Digest(digest.clone());
        let asked = match read {
            Read::Head => {
                let told = self.asking.head(place, &reference, HEAD_BUDGET).await;
                told.map(|told| Found::told(told.head))
            }
            Read::Get => self.fetch(place, &reference).await,
        };
        asked.map_err(|failure| certain(failure, local.err()))
    }

    /// What storage has visible in this repository.
    pub async fn local(
        &self,
        place: &Place,
        spot: &Spot<Digest>,
    ) -> Result<Option<Arc<Held>>, Failure> {
        if let Some(remembered) = self.memory.manifest(spot).filter(|found| found.is_local) {
            return Ok(Some(remembered.held));
        }
        if !self.origins.are_own(place).await? {
            return Ok(None);
        }
        let read = self.shelf.store.manifest(place.repository(), &spot.what);
        let bytes = self.shelf.ask(read).await?;
        let found = bytes.and_then(|bytes| Held::local(spot.what.clone(), bytes));
        Ok(found.map(|(held, manifest)| self.keep(spot, Arc::new(held), &manifest, true)))
    }

    /// The manifest from the upstream, fetched once however many ask.
    pub async fn fetch(&self, place: &Place, reference: &Reference) -> Result<Found, Failure> {
        let (before, after) = (self.clone(), self.clone());
        let (place_before, place_after) = (place.clone(), place.clone());
        let (wanted, had) = (reference.clone(), reference.clone());
        let look = move || before.brought(&place_before, &wanted);
        // The upstream's word is from when it was asked, here or by another process.
        let keep = move |held: &Arc<Held>, asked_at| {
            after.brings(&place_after, &had, held, asked_at);
        };
        let (held, part) = self.asking.manifest(place, reference, look, keep).await?;
        let outcome = match part {
            Part::Began => PullOutcome::Miss,
            Part::Joined => PullOutcome::Joined,
        };
        Ok(Found::of(held, outcome))
    }

    /// What a request that ended a moment ago has brought.
    fn brought(&self, place: &Place, reference: &Reference) -> Option<Arc<Held>> {
        let digest = match reference {
            Reference::Digest(digest) => digest.clone(),
            Reference::Tag(tag) => {
                let observed = self.memory.observation(&place.spot(tag))?;
                let freshness = place.route.rule.freshness(tag);
                let is_fresh = due(freshness, observed.at, Timestamp::now()) == Due::No;
                is_fresh.then(|| observed.digest.clone())?
            }
        };
        self.memory.manifest(&place.spot(&digest)).map(|remembered| remembered.held)
    }

    fn brings(&self, place: &Place, reference: &Reference, held: &Arc<Held>, at: Timestamp) {
        if let Reference::Tag(tag) = reference {
            self.memory.observe(place.spot(tag), Observation::of(held, at));
        }
        if let Ok(manifest) = Manifest::parse(&held.bytes) {
            self.keep(&place.spot(&held.digest), held.clone(), &manifest, false);
        }
    }

    fn keep(
        &self,
        spot: &Spot<Digest>,
        held: Arc<Held>,
        manifest: &Manifest,
        is_local: bool,
    ) -> Arc<Held> {
        self.family.shown(spot, manifest);
        self.memory.keep_manifest(spot.clone(), held.clone(), is_local);
        held
    }

    /// Writes down that `held` was relayed, as a miss of `wanted` of `reference`.
    pub fn missed(&self, place: &Place, reference: Reference, wanted: Wanted, held: &Arc<Held>) {
        let platforms = match &wanted {
            Wanted::Platform(platform) => vec![platform.clone()],
            Wanted::Whole | Wanted::All | Wanted::Child(_) | Wanted::Refresh => Vec::new(),
        };
        let waits_for_child = wanted == Wanted::Whole
            && held.media_type.is_index()
            && place.route.rule.platforms == Platforms::Pulled;
        let request = HydrationRequested {
            rule: place.route.rule.name.to_string(),
            generation: place.route.generation.to_string(),
            upstream: place.route.upstream.name.to_string(),
            repository: place.repository().clone(),
            reference,
            lane: Lane::Interactive,
            platforms,
            requested_at: Timestamp::now(),
        };
        let publish = if waits_for_child { Publish::AfterGrace } else { Publish::Now };
        let (held, origin) = (Some(held.clone()), place.route.origin.clone());
        self.misses.push(Miss { request, wanted, held, origin, publish });
    }
}

impl Found {
    pub fn of(held: Arc<Held>, outcome: PullOutcome) -> Self {
        Self { facts: held.facts(), held: Some(held), outcome }
    }

    /// Only heard of.
    pub fn told(head: Head) -> Self {
        let Head { digest, media_type, size } = head;
        let facts = Facts { digest, media_type, size };
        Self { facts, held: None, outcome: PullOutcome::Miss }
    }

    pub fn answer(&self, by_tag: bool) -> Answer {
        let bytes = self.held.as_ref().map(|held| held.bytes.clone());
        Answer::manifest(&self.facts, bytes, by_tag).served(PullKind::Manifest, self.outcome)
    }
}

/// "Unknown upstream" settles nothing while our own storage cannot tell what it has.
pub fn certain(failure: Failure, storage: Option<Failure>) -> Failure {
    match storage {
        Some(storage) if failure.is_unknown() => storage,
        _ => failure,
    }
}
