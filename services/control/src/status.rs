//! What is local of an image, and what is being done about the rest.

use crate::{
    budget::within_budget,
    failure::Failure,
    hydrations::{Hydration, current_job, no_rule},
    input::{Params, image},
};
use axum::{Json, extract::State};
use hydrant_boot::ResourceFeed;
use hydrant_bus::Bus;
use hydrant_proto::{Digest, Image, JobId, Lane, MediaType, Platform, Tag};
use hydrant_rules::{Due, Freshness, Route, Span, TagPattern, TagTerms, WhenGone};
use hydrant_store::{CompletionRecord, DeadLetter, DeadLetterId, Frozen, Owner, Store, TagRecord};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Which {
    image: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct ImageStatus {
    image: Image,
    rule: String,
    upstream: String,
    upstream_repository: String,
    job: JobId,
    /// Whether all that the rule's policy asks for is in storage.
    hydrated: bool,
    /// The manifest the reference names locally.
    digest: Option<Digest>,
    tag: Option<TagStatus>,
    completion: Option<Completion>,
    /// Misses that wait to be hydrated.
    misses: usize,
    hydration: Option<Hydration>,
    dead_letter: Option<DeadLetter>,
}

#[derive(Debug, Serialize)]
struct TagStatus {
    owner: Owner,
    digest: Digest,
    /// Seconds since the upstream last said so.
    age_seconds: i64,
    /// Whether it is served without asking the upstream.
    fresh: bool,
    /// Why it stays where it is.
    frozen: Option<Frozen>,
    /// How long it is fresh, under the rule as it is.
    freshness: Terms,
    previous: Option<Digest>,
    seq: u64,
}

#[derive(Debug, Serialize)]
struct Terms {
    /// The pattern of the rule that decides; none when the rule's own terms do.
    pattern: Option<TagPattern>,
    immutable: bool,
    #[serde(flatten)]
    checks: Option<Checks>,
}

/// As rules write them.
#[derive(Debug, Serialize)]
struct Checks {
    fresh_for: Span,
    revalidate_for: Span,
    check_within: Span,
    stale_for: Span,
    when_gone: WhenGone,
}

#[derive(Debug, Serialize)]
struct Completion {
    digest: Digest,
    media_type: MediaType,
    platforms: Vec<Platform>,
    size_bytes: u64,
    blobs: u64,
    completed_at: Timestamp,
}

/// Reads storage alone for what is local; what the bus knows is added when it can be asked.
pub(crate) async fn status(
    State(feed): State<ResourceFeed>,
    State(store): State<Store>,
    State(bus): State<Bus>,
    Params(which): Params<Which>,
) -> Result<Json<ImageStatus>, Failure> {
    let image = image(&which.image)?;
    let table = feed.current();
    let route = table.route(&image.repository).ok_or_else(|| no_rule(&image))?;
    let job = current_job(&table, &image, Lane::Background, Vec::new())?;
    let id = job.id();
    let image = job.image();
    let Stored { tag, completion, digest, misses, dead_letter } =
        within_budget(stored(&store, &image, &id)).await?;
    let complete =
        completion.as_ref().is_some_and(|record| Some(&record.digest) == digest.as_ref());
    Ok(Json(ImageStatus {
        rule: job.rule,
        upstream: job.upstream,
        upstream_repository: route.upstream_repository.to_string(),
        hydrated: complete && misses == 0,
        digest,
        tag: tag.zip(image.reference.tag()).map(|(record, tag)| tag_status(record, tag, &route)),
        completion: completion.map(Completion::from),
        misses,
        hydration: bus.job_states().get(&id).await.ok().flatten().map(Hydration::from),
        dead_letter,
        job: id,
        image,
    }))
}

/// What storage knows of an image.
struct Stored {
    tag: Option<TagRecord>,
    completion: Option<CompletionRecord>,
    digest: Option<Digest>,
    misses: usize,
    dead_letter: Option<DeadLetter>,
}

async fn stored(store: &Store, image: &Image, id: &JobId) -> Result<Stored, Failure> {
    let tag = tag(store, image).await?;
    let digest = match (&tag, image.reference.digest()) {
        (Some(tag), _) => Some(tag.digest.clone()),
        (None, Some(digest)) => local(store, image, digest).await?,
        (None, None) => None,
    };
    Ok(Stored {
        tag,
        completion: store.completion(id).await?,
        digest,
        misses: store.misses(id).await?.len(),
        dead_letter: store.dead_letter(&DeadLetterId::of_job(id)).await?,
    })
}

async fn tag(store: &Store, image: &Image) -> Result<Option<TagRecord>, Failure> {
    let Some(tag) = image.reference.tag() else { return Ok(None) };
    let found = store.tag(&image.repository, tag).await?;
    Ok(found.map(|(record, _)| record).filter(|record| !record.deleted))
}

async fn local(store: &Store, image: &Image, digest: &Digest) -> Result<Option<Digest>, Failure> {
    let there = store.has_manifest(&image.repository, digest).await?;
    Ok(there.then(|| digest.clone()))
}

fn tag_status(record: TagRecord, tag: &Tag, route: &Route) -> TagStatus {
    let age = Timestamp::now().duration_since(record.confirmed_at);
    let freshness = route.rule.freshness(tag);
    let is_due = freshness.due(age.try_into().unwrap_or_default()) != Due::No;
    TagStatus {
        owner: record.owner,
        digest: record.digest.clone(),
        age_seconds: age.as_secs(),
        fresh: record.owner == Owner::Push || record.frozen.is_some() || !is_due,
        previous: record.previous().cloned(),
        frozen: record.frozen,
        freshness: terms(freshness, route.rule.terms_of(tag)),
        seq: record.seq,
    }
}

fn terms(freshness: Freshness, of: Option<&TagTerms>) -> Terms {
    let checks = match freshness {
        Freshness::Immutable => None,
        Freshness::Checked(checks) => Some(Checks {
            fresh_for: Span(checks.fresh_for),
            revalidate_for: Span(checks.revalidate_for),
            check_within: Span(checks.check_within),
            stale_for: Span(checks.stale_for),
            when_gone: checks.when_gone,
        }),
    };
    let pattern = of.map(|terms| terms.pattern.clone());
    Terms { pattern, immutable: checks.is_none(), checks }
}

impl From<CompletionRecord> for Completion {
    fn from(record: CompletionRecord) -> Self {
        Self {
            digest: record.digest,
            media_type: record.media_type,
            platforms: record.platforms,
            size_bytes: record.size_bytes,
            blobs: record.blobs,
            completed_at: record.completed_at,
        }
    }
}
