//! What webhooks were sent, and sending them something on request.

use crate::{failure::Failure, input::Params};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use hydrant_boot::ResourceFeed;
use hydrant_bus::Bus;
use hydrant_proto::{DeliveryAttempt, Event};
use hydrant_rules::Kind;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Attempts answered at most, and when the caller does not say.
const MOST: usize = 1_000;
const USUAL: usize = 100;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogParams {
    limit: Option<usize>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Log {
    items: Vec<DeliveryAttempt>,
}

/// The latest attempts, the newest first.
pub(crate) async fn log(
    State(feed): State<ResourceFeed>,
    State(bus): State<Bus>,
    Path(name): Path<String>,
    Params(params): Params<LogParams>,
) -> Result<Json<Log>, Failure> {
    exists(&feed, &name)?;
    let limit = params.limit.unwrap_or(USUAL).min(MOST);
    Ok(Json(Log { items: bus.delivery_log(&name, limit).await? }))
}

/// Sends a `webhook.test` event to this webhook alone; what comes of it is in its log.
pub(crate) async fn test(
    State(feed): State<ResourceFeed>,
    State(bus): State<Bus>,
    Path(name): Path<String>,
) -> Result<(StatusCode, Json<Value>), Failure> {
    exists(&feed, &name)?;
    let event = Event::test(&name, Timestamp::now());
    bus.publish_event(&event).await?;
    let log = format!("/api/v1/webhooks/{name}/deliveries");
    Ok((StatusCode::ACCEPTED, Json(json!({ "event": event.id, "log": log }))))
}

fn exists(feed: &ResourceFeed, name: &str) -> Result<(), Failure> {
    let found = feed.current().webhook(name).is_some();
    found.then_some(()).ok_or_else(|| Failure::no_resource(Kind::Webhook, name))
}
