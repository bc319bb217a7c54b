//! Tags, steered by hand: checked now, kept where they are, or taken back to what they named before.

use crate::{
    access::Caller,
    budget::within_budget,
    failure::{Failure, Told},
    hydrations::{current_job, order, queue, record},
    input::{Body, Params, image},
};
use axum::{Extension, Json, extract::State, response::Response};
use hydrant_boot::ResourceFeed;
use hydrant_bus::Bus;
use hydrant_proto::{Digest, HydrationRequested, Image, Lane, Tag};
use hydrant_store::{
    Durability, Frozen, Owner, Sighting, Stays, Steering, Store, StoreError, TagLine, TagRecord,
    Terms, Wanted, Writer,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Most characters of a reason.
const LONGEST_REASON: usize = 200;
/// Rounds of reading and writing a record that others change at the same time.
const ROUNDS: usize = 8;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Which {
    image: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    image: String,
    /// Why, for those who read the history.
    reason: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Back {
    image: String,
    reason: Option<String>,
    /// The one before the current one when absent.
    digest: Option<Digest>,
}

/// A tag as it stands now.
#[derive(Debug, Serialize)]
pub(crate) struct Standing {
    image: Image,
    digest: Digest,
    owner: Owner,
    by: Writer,
    seq: u64,
    previous: Option<Digest>,
    frozen: Option<Frozen>,
}

#[derive(Debug, Serialize)]
pub(crate) struct History {
    image: Image,
    items: Vec<TagLine>,
}

/// A tag under the rule that leads to it.
struct Place {
    job: HydrationRequested,
    tag: Tag,
}

/// What became of the tag, the newest first.
pub(crate) async fn history(
    State(feed): State<ResourceFeed>,
    State(store): State<Store>,
    Params(which): Params<Which>,
) -> Result<Json<History>, Failure> {
    let place = Place::of(&feed, &which.image)?;
    let items =
        within_budget(async { Ok(store.tag_history(&place.job.repository, &place.tag).await?) });
    Ok(Json(History { items: items.await?, image: place.job.image() }))
}

/// Has the upstream asked now, whatever the rule says of the tag.
pub(crate) async fn refresh(
    State(feed): State<ResourceFeed>,
    State(store): State<Store>,
    State(bus): State<Bus>,
    Extension(caller): Extension<Caller>,
    body: Body,
) -> Result<Response, Failure> {
    let Asked { image, reason } = body.json()?;
    let (place, steering) = (Place::of(&feed, &image)?, steering(caller, reason)?);
    let found = within_budget(async { Ok(place.read(&store).await?) }).await?;
    if let Some((record, _)) = found {
        if let Some(stays) = record.stays(hydrant_store::Follows::Upstream) {
            return Err(place.refused(stays));
        }
        place.note_refresh(&store, &record, steering).await;
    }
    order(&store, &bus, place.job, vec![Wanted::Refresh]).await
}

/// Keeps the tag where it is.
pub(crate) async fn freeze(
    State(feed): State<ResourceFeed>,
    State(store): State<Store>,
    Extension(caller): Extension<Caller>,
    body: Body,
) -> Result<Json<Standing>, Failure> {
    let Asked { image, reason } = body.json()?;
    let (place, steering) = (Place::of(&feed, &image)?, steering(caller, reason)?);
    let frozen = Frozen { at: Timestamp::now(), by: Writer::Api, steering };
    let record = place.change(&store, |record| record.freeze(frozen.clone())).await?;
    Ok(Json(place.standing(record)))
}

/// Lets the tag follow the upstream again, and has that asked.
pub(crate) async fn unfreeze(
    State(feed): State<ResourceFeed>,
    State(store): State<Store>,
    State(bus): State<Bus>,
    Extension(caller): Extension<Caller>,
    body: Body,
) -> Result<Json<Standing>, Failure> {
    let Asked { image, reason } = body.json()?;
    let (place, steering) = (Place::of(&feed, &image)?, steering(caller, reason)?);
    let free = |record: &TagRecord| record.unfreeze(Timestamp::now(), steering.clone());
    let record = place.change(&store, free).await?;
    place.follow_up(&store, &bus).await?;
    Ok(Json(place.standing(record)))
}

/// Points the tag at what it named before, and freezes it there.
pub(crate) async fn rollback(
    State(feed): State<ResourceFeed>,
    State(store): State<Store>,
    State(bus): State<Bus>,
    Extension(caller): Extension<Caller>,
    body: Body,
) -> Result<Json<Standing>, Failure> {
    let Back { image, reason, digest } = body.json()?;
    let (place, steering) = (Place::of(&feed, &image)?, steering(caller, reason)?);
    let target = within_budget(place.target(&store, digest)).await?;
    let back = |record: &TagRecord| record.roll_back(&target, steering.clone());
    let record = place.change(&store, back).await?;
    // The job tells of it, too; this one only tells sooner.
    if let Some(event) = record.moved_event(&place.job.repository, &place.tag)
        && let Err(error) = bus.publish_event(&event).await
    {
        tracing::debug!(%error, "the rollback is announced by its job");
    }
    place.follow_up(&store, &bus).await?;
    Ok(Json(place.standing(record)))
}

impl Place {
    fn of(feed: &ResourceFeed, text: &str) -> Result<Self, Failure> {
        let image = image(text)?;
        let job = current_job(&feed.current(), &image, Lane::Interactive, Vec::new())?;
        match image.reference.tag() {
            Some(tag) => Ok(Self { job, tag: tag.clone() }),
            None => {
                let message = format!("`{text}` names a digest, which never moves");
                Err(Failure::invalid("image", message, "write repository:tag"))
            }
        }
    }

    async fn read(
        &self,
        store: &Store,
    ) -> Result<Option<(TagRecord, hydrant_store::Version)>, StoreError> {
        store.tag(&self.job.repository, &self.tag).await
    }

    /// The history is for people: what it cannot take stops nothing.
    async fn note_refresh(&self, store: &Store, record: &TagRecord, steering: Steering) {
        let (name, tag) = (&self.job.repository, &self.tag);
        let noted =
            within_budget(async { Ok(store.note_refresh(name, tag, record, steering).await?) });
        if noted.await.is_err() {
            tracing::warn!(image.repository = %name, image.tag = %tag, "refresh not in the history");
        }
    }

    /// Changes the record, on whatever stands when it is written.
    async fn change(
        &self,
        store: &Store,
        next: impl Fn(&TagRecord) -> Result<TagRecord, Stays>,
    ) -> Result<TagRecord, Failure> {
        within_budget(async {
            for _ in 0..ROUNDS {
                let found = self.read(store).await?;
                let (record, version) = found.ok_or_else(|| self.refused(Stays::Absent))?;
                let next = next(&record).map_err(|stays| self.refused(stays))?;
                if next == record {
                    return Ok(record);
                }
                let (name, tag) = (&self.job.repository, &self.tag);
                match store.put_tag(name, tag, next.clone(), Some(version)).await {
                    Ok(version) => return Ok(TagRecord { seq: version.seq(), ..next }),
                    Err(StoreError::Conflict { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(Failure::Storage("others change the tag all the time".to_owned()))
        })
        .await
    }

    /// What to roll back to: something the tag named, of which everything is still here.
    async fn target(&self, store: &Store, digest: Option<Digest>) -> Result<Sighting, Failure> {
        let name = &self.job.repository;
        let found = self.read(store).await?;
        let (record, _) = found.ok_or_else(|| self.refused(Stays::Absent))?;
        let digest = digest.or_else(|| record.previous().cloned()).ok_or_else(|| {
            let message = format!("{} has not moved yet", self.job.image());
            conflict("image", message, "name a digest of its history")
        })?;
        let history = store.tag_history(name, &self.tag).await?;
        if !history.iter().any(|line| line.digest == digest) {
            let message = format!("{} has not named {digest}", self.job.image());
            let remedy = "use a digest that `hydrant tag history` shows";
            return Err(conflict("digest", message, remedy));
        }
        match store.durability(name, &digest).await? {
            Durability::Durable { media_type, size } => {
                let (asked_at, terms) = (Timestamp::now(), self.terms());
                Ok(Sighting { digest, media_type, size, asked_at, terms })
            }
            Durability::Lacks(what) => {
                let message = format!("{digest} is not whole any more: {what} is not in storage");
                let remedy = "hydrate it again by its digest, or choose another";
                Err(conflict("digest", message, remedy))
            }
        }
    }

    /// A job for the tag: it completes what the change made of it, and asks the upstream when the
    /// tag follows that.
    async fn follow_up(&self, store: &Store, bus: &Bus) -> Result<(), Failure> {
        record(store, &self.job, vec![Wanted::Whole]).await?;
        queue(bus, &self.job).await.map(drop)
    }

    fn terms(&self) -> Terms {
        let HydrationRequested { rule, generation, upstream, .. } = self.job.clone();
        Terms { rule, generation, upstream }
    }

    fn standing(&self, record: TagRecord) -> Standing {
        let image = self.job.image();
        tracing::info!(image.repository = %image.repository, image.reference = %image.reference,
            digest = %record.digest, frozen = record.frozen.is_some(), "tag steered");
        Standing {
            image,
            previous: record.previous().cloned(),
            digest: record.digest,
            owner: record.owner,
            by: record.by,
            seq: record.seq,
            frozen: record.frozen,
        }
    }

    fn refused(&self, stays: Stays) -> Failure {
        let image = self.job.image();
        let remedy = match stays {
            Stays::Absent => {
                let remedy = format!("make it local first: hydrant hydrate {image}");
                let message = format!("{image} is not local");
                return Failure::Missing { field: "image", message, remedy };
            }
            Stays::Pushed => "it is whatever is pushed next; hydration leaves it alone".to_owned(),
            Stays::Frozen => format!("let it go first: hydrant tag unfreeze {image}"),
            Stays::Immutable => format!("ask for it: hydrant tag refresh {image}"),
        };
        conflict("image", format!("{image}: {stays}"), remedy)
    }
}

fn conflict(field: &str, message: String, remedy: impl Into<String>) -> Failure {
    Failure::Conflict(vec![Told::new(field, message, remedy)])
}

/// Whose change it is, and why.
fn steering(caller: Caller, reason: Option<String>) -> Result<Steering, Failure> {
    Ok(Steering { actor: Some(caller.as_str().to_owned()), reason: checked(reason)? })
}

/// A reason that fits on a line.
fn checked(reason: Option<String>) -> Result<Option<String>, Failure> {
    let reason = reason.filter(|reason| !reason.trim().is_empty());
    let is_wrong =
        |text: &String| text.chars().count() > LONGEST_REASON || text.chars().any(char::is_control);
    match reason.as_ref().is_some_and(is_wrong) {
        true => {
            let message = format!("is no single line of at most {LONGEST_REASON} characters");
            Err(Failure::invalid("reason", message, "shorten it"))
        }
        false => Ok(reason),
    }
}
