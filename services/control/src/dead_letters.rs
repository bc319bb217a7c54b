//! What was given up: shown, tried again, or dropped.

use crate::{
    budget::within_budget,
    failure::Failure,
    hydrations::{current_job, queue, record, wanted},
    input::Params,
};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use hydrant_boot::ResourceFeed;
use hydrant_bus::Bus;
use hydrant_proto::{Event, HydrationRequested};
use hydrant_rules::Kind;
use hydrant_store::{DeadLetter, DeadLetterId, GivenUp, Store};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Letters listed at most, and when the caller does not say.
const MOST: usize = 1_000;
const USUAL: usize = 100;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListParams {
    limit: Option<usize>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Letters {
    items: Vec<DeadLetter>,
    /// All there are, listed or not.
    total: usize,
}

/// The letters, the newest first.
pub(crate) async fn list(
    State(store): State<Store>,
    Params(params): Params<ListParams>,
) -> Result<Json<Letters>, Failure> {
    let mut items = within_budget(async { Ok(store.dead_letters().await?) }).await?;
    let total = items.len();
    items.truncate(params.limit.unwrap_or(USUAL).min(MOST));
    Ok(Json(Letters { items, total }))
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
    within_budget(async { Ok(store.delete_dead_letter(&letter.id).await?) }).await?;
    tracing::info!(dead_letter = %letter.id, "dead letter dropped");
    Ok(StatusCode::NO_CONTENT)
}

/// Puts it on the bus again and removes the letter, in this order: a crash between the two leaves
/// a letter too many, never a wish too few.
pub(crate) async fn retry(
    State(feed): State<ResourceFeed>,
    State(store): State<Store>,
    State(bus): State<Bus>,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<Value>), Failure> {
    let letter = find(&store, &id).await?;
    let told = match letter.given_up {
        GivenUp::Job { request } => retry_job(&feed, &store, &bus, request).await?,
        GivenUp::Delivery { webhook, event } => redeliver(&feed, &bus, &webhook, event).await?,
        GivenUp::Malformed { .. } => {
            let message = "a message that nobody could read cannot be tried again";
            return Err(Failure::invalid("id", message, "drop it with DELETE"));
        }
    };
    within_budget(async { Ok(store.delete_dead_letter(&letter.id).await?) }).await?;
    tracing::info!(dead_letter = %letter.id, "dead letter tried again");
    Ok((StatusCode::ACCEPTED, Json(told)))
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
