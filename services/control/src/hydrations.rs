//! Asking for an image to be made local, and seeing how far that is.

use crate::{
    Stopping,
    budget::within_budget,
    failure::Failure,
    input::{Body, Params, image},
    poll::{Wait, news, revision},
};
use axum::{
    Json,
    extract::{Path, State},
    http::{StatusCode, header::LOCATION},
    response::{IntoResponse, Response},
};
use hydrant_boot::ResourceFeed;
use hydrant_bus::{Bus, BusError, Published};
use hydrant_proto::{HydrationRequested, Image, JobId, JobPhase, JobState, Lane, Platform};
use hydrant_rules::{Platforms, Table};
use hydrant_store::{MissRecord, Store, Wanted};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Platforms one request may name.
const MOST_PLATFORMS: usize = 64;
/// Jobs listed at most.
const MOST_JOBS: usize = 500;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Asked {
    image: String,
    /// Platforms beyond the rule's policy; only for an index.
    #[serde(default)]
    platforms: Vec<Platform>,
    #[serde(default = "background")]
    lane: Lane,
}

fn background() -> Lane {
    Lane::Background
}

/// A job as a caller sees it.
#[derive(Debug, Serialize)]
pub(crate) struct Hydration {
    id: JobId,
    image: Image,
    /// For `?after=`.
    revision: u64,
    /// Whether nothing more will happen unless it is asked for again.
    r#final: bool,
    #[serde(flatten)]
    state: JobState,
}

impl From<JobState> for Hydration {
    fn from(state: JobState) -> Self {
        Self {
            id: state.id(),
            image: state.job.image(),
            revision: revision(&state),
            r#final: state.phase.is_final(),
            state,
        }
    }
}

#[derive(Debug, Serialize)]
struct Accepted {
    id: JobId,
    image: Image,
    rule: String,
    upstream: String,
    /// `queued`, `already-queued`, or `recorded` while the bus is away: it is queued by the sweep
    /// when that returns.
    outcome: &'static str,
    status: String,
}

/// Records the wish in storage, so that it is not lost with the bus, and queues the job.
pub(crate) async fn request(
    State(feed): State<ResourceFeed>,
    State(store): State<Store>,
    State(bus): State<Bus>,
    body: Body,
) -> Result<Response, Failure> {
    let asked: Asked = body.json()?;
    let table = feed.current();
    let job = job(&table, &asked)?;
    order(&store, &bus, job.clone(), wanted(&table, &job)).await
}

/// Records what is wanted of the job's image, queues the job, and tells where to follow it.
pub(crate) async fn order(
    store: &Store,
    bus: &Bus,
    job: HydrationRequested,
    wanted: Vec<Wanted>,
) -> Result<Response, Failure> {
    record(store, &job, wanted).await?;
    let outcome = queue(bus, &job).await?;
    tracing::info!(job.id = %job.id(), image.repository = %job.repository,
        image.reference = %job.reference, rule = job.rule, outcome, "hydration requested");
    let status = format!("/api/v1/hydrations/{}", job.id());
    let accepted = Accepted {
        id: job.id(),
        image: job.image(),
        rule: job.rule,
        upstream: job.upstream,
        outcome,
        status: status.clone(),
    };
    Ok((StatusCode::ACCEPTED, [(LOCATION, status)], Json(accepted)).into_response())
}

/// Puts what is wanted of the job's image into the miss log.
pub(crate) async fn record(
    store: &Store,
    job: &HydrationRequested,
    wanted: Vec<Wanted>,
) -> Result<(), Failure> {
    let missed_at = job.requested_at;
    let calls = async {
        for wanted in wanted {
            store.record_miss(&MissRecord::new(job.clone(), wanted, missed_at)).await?;
        }
        Ok(())
    };
    within_budget(calls).await
}

/// The job that `asked` is, under the rules in effect.
fn job(table: &Table, asked: &Asked) -> Result<HydrationRequested, Failure> {
    let image = image(&asked.image)?;
    if asked.platforms.len() > MOST_PLATFORMS {
        let message = format!("{} are more than {MOST_PLATFORMS}", asked.platforms.len());
        return Err(Failure::invalid("platforms", message, "leave it out for the rule's policy"));
    }
    current_job(table, &image, asked.lane, asked.platforms.clone())
}

/// A job for `image` under the rule that leads there now.
pub(crate) fn current_job(
    table: &Table,
    image: &Image,
    lane: Lane,
    platforms: Vec<Platform>,
) -> Result<HydrationRequested, Failure> {
    let route = table.route(&image.repository).ok_or_else(|| no_rule(image))?;
    Ok(HydrationRequested {
        rule: route.rule.name.to_string(),
        generation: route.generation.to_string(),
        upstream: route.upstream.name.to_string(),
        repository: route.repository,
        reference: image.reference.clone(),
        lane,
        platforms,
        requested_at: Timestamp::now(),
    })
}

pub(crate) fn no_rule(image: &Image) -> Failure {
    Failure::Missing {
        field: "image",
        message: format!("no rule leads from `{}` to an upstream", image.repository),
        remedy: "see GET /api/v1/rules, or add a rule whose downstream matches it".to_owned(),
    }
}

/// What to hydrate of an index. A rule that hydrates the platforms that were pulled says nothing
/// of an image that nobody pulled: whoever asks for it and names none wants all of them.
pub(crate) fn wanted(table: &Table, job: &HydrationRequested) -> Vec<Wanted> {
    let policy = table.rule(&job.rule).map(|rule| &rule.platforms);
    match (&job.platforms[..], policy) {
        ([], Some(Platforms::Pulled)) => vec![Wanted::All],
        ([], _) => vec![Wanted::Whole],
        (platforms, _) => platforms.iter().cloned().map(Wanted::Platform).collect(),
    }
}

/// Shows the job as queued, then queues it: a worker that is quick writes over it.
pub(crate) async fn queue(bus: &Bus, job: &HydrationRequested) -> Result<&'static str, Failure> {
    let states = bus.job_states();
    let known = states.get(&job.id()).await.ok().flatten();
    if known.is_none_or(|state| state.phase.is_final()) {
        let queued = JobState::queued(job.clone(), Timestamp::now());
        // Only for show; what matters is the queue.
        let _ = states.put(&queued).await;
    }
    match bus.publish_job(job).await {
        Ok(Published::Queued) => Ok("queued"),
        Ok(Published::AlreadyQueued) => Ok("already-queued"),
        Err(BusError::Disconnected(_) | BusError::Unknown { .. } | BusError::Full { .. }) => {
            Ok("recorded")
        }
        Err(error) => Err(error.into()),
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Hydrations {
    items: Vec<Hydration>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListParams {
    phase: Option<JobPhase>,
    limit: Option<usize>,
}

/// Jobs of the last day, the latest changed first.
pub(crate) async fn list(
    State(bus): State<Bus>,
    Params(params): Params<ListParams>,
) -> Result<Json<Hydrations>, Failure> {
    let states = bus.job_states().list().await?.into_iter();
    let wanted = states.filter(|state| params.phase.is_none_or(|phase| state.phase == phase));
    let limit = params.limit.unwrap_or(100).min(MOST_JOBS);
    Ok(Json(Hydrations { items: wanted.take(limit).map(Hydration::from).collect() }))
}

/// One job; with `wait`, once there is news of it.
pub(crate) async fn get(
    State(bus): State<Bus>,
    State(stopping): State<Stopping>,
    Path(id): Path<String>,
    Params(wait): Params<Wait>,
) -> Result<Json<Hydration>, Failure> {
    let id: JobId = id
        .parse()
        .map_err(|error| Failure::invalid("id", format!("{error}"), "use an id as it was given"))?;
    let states = bus.job_states();
    let state = match wait.deadline()? {
        None => states.get(&id).await?,
        Some(deadline) => match news(states.watch(&id), &wait, deadline, &stopping.0).await {
            None => states.get(&id).await?,
            seen => seen,
        },
    };
    state.map(|state| Json(state.into())).ok_or_else(|| Failure::Missing {
        field: "id",
        message: format!("no hydration {id} is known; states are kept for a day"),
        remedy: "see GET /api/v1/status?image=… for what is local".to_owned(),
    })
}
