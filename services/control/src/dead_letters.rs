//! What was given up: shown, tried again, or dropped.

use crate::{
    budget::within_budget,
    failure::Failure,
    hydrations::{current_job, queue, record, wanted},
    input::{Body, Params},
};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use futures::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream};
use hydrant_boot::ResourceFeed;
use hydrant_bus::Bus;
use hydrant_proto::{Event, FailureClass, HydrationRequested};
use hydrant_rules::Kind;
use hydrant_store::{
    DeadLetter, DeadLetterId, DeadLetterMark, GivenUp, InvalidDeadLetterMark, Store,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Letters listed at most, and when the caller does not say.
const MOST: usize = 1_000;
const USUAL: usize = 100;
/// Letters that one request looks at when it is about many, and those it works on at once.
const BATCH: usize = 100;
const AT_ONCE: usize = 8;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListParams {
    limit: Option<usize>,
    /// `next` of the page before.
    after: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Letters {
    items: Vec<DeadLetter>,
    /// All there are, listed or not.
    total: usize,
    /// For `?after=`; none on the last page.
    next: Option<String>,
}

/// Which letters a request is about. Each request works through so many of them and says where the
/// next one goes on.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Many {
    rule: Option<String>,
    class: Option<FailureClass>,
    /// Every letter, whatever its rule and class.
    #[serde(default)]
    all: bool,
    #[serde(default)]
    confirm: bool,
    after: Option<String>,
}

/// How far a request about many has come.
#[derive(Debug, Serialize)]
pub(crate) struct Progress {
    done: usize,
    /// Those it was not about.
    passed_over: usize,
    failed: Vec<Failed>,
    /// Letters there were when it began.
    total: usize,
    /// To go on with; none when it is through.
    next: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Failed {
    id: DeadLetterId,
    message: String,
}

/// The letters, the newest first.
pub(crate) async fn list(
    State(store): State<Store>,
    Params(params): Params<ListParams>,
) -> Result<Json<Letters>, Failure> {
    let (after, limit) = (mark(params.after)?, params.limit.unwrap_or(USUAL).min(MOST));
    let page =
        within_budget(async { Ok(store.dead_letters(after.as_ref(), limit).await?) }).await?;
    let next = page.next.map(|mark| mark.to_string());
    Ok(Json(Letters { items: page.items, total: page.total, next }))
}

fn mark(text: Option<String>) -> Result<Option<DeadLetterMark>, Failure> {
    let parsed = text.map(|text| text.parse()).transpose();
    parsed.map_err(|error: InvalidDeadLetterMark| {
        Failure::invalid("after", error.to_string(), "use `next` as it was given")
    })
}

pub(crate) async fn get(
    State(store): State<Store>,
    Path(id): Path<String>,
) -> Result<Json<DeadLetter>, Failure> {
    find(&store, &id).await.map(Json)
}

/// Forgets a letter; what it was about stays undone.
pub(crate) async fn drop(
    State(store): State<Store>,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    let letter = find(&store, &id).await?;
    forget(&store, &letter.id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Forgets those of a rule or class, or all.
pub(crate) async fn drop_many(
    State(store): State<Store>,
    body: Body,
) -> Result<Json<Progress>, Failure> {
    let drops = |letter: DeadLetter| {
        let store = store.clone();
        async move { forget(&store, &letter.id).await }.boxed()
    };
    each(&store, body.json()?, drops).await
}

async fn forget(store: &Store, id: &DeadLetterId) -> Result<(), Failure> {
    within_budget(async { Ok(store.delete_dead_letter(id).await?) }).await?;
    tracing::info!(dead_letter = %id, "dead letter dropped");
    Ok(())
}

/// Tries those of a rule or class, or all, again.
pub(crate) async fn retry_many(
    State(feed): State<ResourceFeed>,
    State(store): State<Store>,
    State(bus): State<Bus>,
    body: Body,
) -> Result<Json<Progress>, Failure> {
    let tries = |letter: DeadLetter| {
        let (feed, store, bus) = (feed.clone(), store.clone(), bus.clone());
        async move { retry_one(&feed, &store, &bus, letter).await.map(std::mem::drop) }.boxed()
    };
    each(&store, body.json()?, tries).await
}

/// Does `work` to a batch of letters. What is wrong with one keeps nobody from the others, except that
/// storage or the bus is away.
async fn each(
    store: &Store,
    many: Many,
    work: impl Fn(DeadLetter) -> BoxFuture<'static, Result<(), Failure>>,
) -> Result<Json<Progress>, Failure> {
    many.is_meant()?;
    let after = mark(many.after.clone())?;
    let page =
        within_budget(async { Ok(store.dead_letters(after.as_ref(), BATCH).await?) }).await?;
    let (total, next) = (page.total, page.next.map(|mark| mark.to_string()));
    let (wanted, others): (Vec<_>, Vec<_>) =
        page.items.into_iter().partition(|letter| many.is_about(letter));
    let passed_over = others.len();
    let work = wanted.into_iter().map(|letter| settled(letter.id.clone(), work(letter)));
    let all: Vec<_> = stream::iter(work).buffer_unordered(AT_ONCE).try_collect().await?;
    let (done, failed): (Vec<_>, Vec<_>) = all.into_iter().partition(Option::is_none);
    let failed = failed.into_iter().flatten().collect();
    Ok(Json(Progress { done: done.len(), passed_over, failed, total, next }))
}

/// What went wrong with one of many, if it is about that one.
async fn settled(
    id: DeadLetterId,
    work: BoxFuture<'static, Result<(), Failure>>,
) -> Result<Option<Failed>, Failure> {
    match work.await {
        Ok(()) => Ok(None),
        Err(failure @ (Failure::Storage(_) | Failure::Unavailable { .. })) => Err(failure),
        Err(failure) => {
            let told = failure.told().into_iter().next();
            let message = told.map(|told| told.message).unwrap_or_default();
            Ok(Some(Failed { id, message }))
        }
    }
}

impl Many {
    fn is_meant(&self) -> Result<(), Failure> {
        let message = match (self.all, self.rule.is_some() || self.class.is_some(), self.confirm) {
            (true, true, _) => "goes with neither `rule` nor `class`",
            (false, false, _) => "is needed where neither `rule` nor `class` says which",
            (_, _, false) => {
                let message = "this is about many letters at once";
                return Err(Failure::invalid("confirm", message, "send `\"confirm\": true`"));
            }
            _ => return Ok(()),
        };
        Err(Failure::invalid("all", message, "send a rule, a class, both, or `\"all\": true`"))
    }

    fn is_about(&self, letter: &DeadLetter) -> bool {
        let rule = match &letter.given_up {
            GivenUp::Job { request } => Some(&request.rule),
            GivenUp::Delivery { event, .. } => event.data.rule.as_ref(),
            GivenUp::Malformed { .. } => None,
        };
        self.rule.as_ref().is_none_or(|wanted| rule == Some(wanted))
            && self.class.is_none_or(|wanted| letter.class == Some(wanted))
    }
}

pub(crate) async fn retry(
    State(feed): State<ResourceFeed>,
    State(store): State<Store>,
    State(bus): State<Bus>,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<Value>), Failure> {
    let letter = find(&store, &id).await?;
    let told = retry_one(&feed, &store, &bus, letter).await?;
    Ok((StatusCode::ACCEPTED, Json(told)))
}

/// Puts it on the bus again and removes the letter, in this order: a crash between the two leaves
/// a letter too many, never a wish too few.
async fn retry_one(
    feed: &ResourceFeed,
    store: &Store,
    bus: &Bus,
    letter: DeadLetter,
) -> Result<Value, Failure> {
    let told = match letter.given_up {
        GivenUp::Job { request } => retry_job(feed, store, bus, request).await?,
        GivenUp::Delivery { webhook, event } => redeliver(feed, bus, &webhook, event).await?,
        GivenUp::Malformed { .. } => {
            let message = "a message that nobody could read cannot be tried again";
            return Err(Failure::invalid("id", message, "drop it with DELETE"));
        }
    };
    within_budget(async { Ok(store.delete_dead_letter(&letter.id).await?) }).await?;
    tracing::info!(dead_letter = %letter.id, "dead letter tried again");
    Ok(told)
}

/// Asks for the image again, under the rule of today: the job of an older one is obsolete.
async fn retry_job(
    feed: &ResourceFeed,
    store: &Store,
    bus: &Bus,
    request: HydrationRequested,
) -> Result<Value, Failure> {
    let image = request.image();
    let table = feed.current();
    let job = current_job(&table, &image, request.lane, request.platforms)?;
    record(store, &job, wanted(&table, &job)).await?;
    let outcome = queue(bus, &job).await?;
    let status = format!("/api/v1/hydrations/{}", job.id());
    Ok(json!({ "hydration": job.id(), "outcome": outcome, "status": status }))
}

async fn redeliver(
    feed: &ResourceFeed,
    bus: &Bus,
    webhook: &str,
    event: Event,
) -> Result<Value, Failure> {
    if feed.current().webhook(webhook).is_none() {
        return Err(Failure::no_resource(Kind::Webhook, webhook));
    }
    let event = event.addressed_to(webhook);
    bus.publish_event(&event).await?;
    Ok(json!({ "event": event.id, "log": format!("/api/v1/webhooks/{webhook}/deliveries") }))
}

async fn find(store: &Store, id: &str) -> Result<DeadLetter, Failure> {
    let missing = || Failure::Missing {
        field: "id",
        message: format!("there is no dead letter {id:?}"),
        remedy: "see GET /api/v1/dead-letters for those there are".to_owned(),
    };
    let parsed: DeadLetterId = id.parse().map_err(|_| missing())?;
    let found = within_budget(async { Ok(store.dead_letter(&parsed).await?) }).await?;
    found.ok_or_else(missing)
}
