//! Tells the world that an image is local, and that a tag moved.

use crate::{closure::Closure, error::ImportError};
use hydrant_bus::Bus;
use hydrant_proto::{Event, EventData, EventKind, Image};
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
    if let Some(tag) = tag.filter(|tag| tag.previous.is_some()) {
        bus.publish_event(&moved(&completion.event, tag)).await?;
    }
    bus.publish_event(&completion.event).await?;
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

fn moved(hydrated: &Event, tag: &TagRecord) -> Event {
    let data = EventData {
        previous_digest: tag.previous.clone(),
        platforms: Vec::new(),
        size_bytes: None,
        blobs: None,
        seq: tag.seq,
        ..hydrated.data.clone()
    };
    Event::new(EventKind::TagMoved, tag.observed_at, data)
}
