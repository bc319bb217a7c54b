//! The events of an importer: that an image is local, a tag moved, a job failed or was given up,
//! a credential was refused.

use crate::{closure::Closure, error::ImportError};
use hydrant_bus::Bus;
use hydrant_proto::{Event, EventData, EventKind, Image, state::JobState};
use hydrant_rules::Route;
use hydrant_store::{CompletionRecord, TagRecord};
use jiff::Timestamp;

/// Publishes the events of a completion and waits until the bus has them. Telling twice is the
/// same events again, by id.
pub(crate) async fn announce(
    bus: &Bus,
    completion: &CompletionRecord,
    tag: Option<&TagRecord>,
) -> Result<(), ImportError> {
    let moved = async {
        if let (Some(record), Some(tag)) = (tag, completion.reference.tag())
            && let Some(moved) = record.moved_event(&completion.repository, tag)
        {
            bus.publish_event(&moved).await?;
        }
        Ok(())
    };
    tokio::try_join!(moved, bus.publish_event(&completion.event))?;
    Ok(())
}

/// The event of a closure that is durable.
pub(crate) fn hydrated(route: &Route, image: &Image, closure: &Closure, seq: u64) -> Event {
    let root = closure.root();
    let data = EventData {
        upstream: Some(route.upstream.name.to_string()),
        rule: Some(route.rule.name.to_string()),
        generation: Some(route.generation.to_string()),
        repository: Some(image.repository.clone()),
        reference: Some(image.reference.clone()),
        digest: Some(root.digest.clone()),
        media_type: Some(root.manifest.media_type.to_string()),
        platforms: closure.platforms.iter().cloned().collect(),
        size_bytes: Some(closure.size()),
        blobs: Some(closure.blobs.len() as u64),
        seq,
        ..EventData::default()
    };
    Event::new(EventKind::ImageHydrated, Timestamp::now(), data)
}

/// An attempt that failed and will be repeated.
pub(crate) fn failed(state: &JobState) -> Event {
    of_job(EventKind::HydrationFailed, state, u64::from(state.attempts))
}

/// A job that was given up.
pub(crate) fn dead_lettered(state: &JobState) -> Event {
    of_job(EventKind::HydrationDeadLettered, state, 0)
}

/// One event per request of the image and `step`, however often it is told.
fn of_job(kind: EventKind, state: &JobState, step: u64) -> Event {
    let job = &state.job;
    let requested = u64::try_from(job.requested_at.as_millisecond()).unwrap_or_default();
    let data = EventData {
        upstream: Some(job.upstream.clone()),
        rule: Some(job.rule.clone()),
        generation: Some(job.generation.clone()),
        repository: Some(job.repository.clone()),
        reference: Some(job.reference.clone()),
        class: state.class,
        reason: state.reason.clone(),
        seq: requested + step,
        ..EventData::default()
    };
    Event::new(kind, Timestamp::now(), data)
}

/// The upstream does not take our credential: one event an hour, whoever finds out.
pub(crate) fn credential_rejected(state: &JobState) -> Event {
    let data = EventData {
        upstream: Some(state.job.upstream.clone()),
        rule: Some(state.job.rule.clone()),
        class: state.class,
        reason: state.reason.clone(),
        seq: periods(HOUR),
        ..EventData::default()
    };
    Event::new(EventKind::CredentialRejected, Timestamp::now(), data)
}

const HOUR: u64 = 60 * 60;

/// How many periods of so many seconds have passed since the epoch.
fn periods(seconds: u64) -> u64 {
    u64::try_from(Timestamp::now().as_second()).unwrap_or_default() / seconds
}
