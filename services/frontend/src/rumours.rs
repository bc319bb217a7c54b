//! Talk about tags with the rest of the cluster, all of it off the path of an answer: changes heard
//! from the bus, confirmations written back to the record, stale answers announced.

use crate::{
    error::Failure,
    memory::{Memory, Seen},
    place::{Place, Spot},
};
use futures::StreamExt;
use hydrant_bus::Bus;
use hydrant_proto::{Digest, Event, EventData, EventKind, Reference, Tag};
use hydrant_store::{Store, StoreError, TagRecord};
use jiff::Timestamp;
use moka::sync::Cache;
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

/// How long one failure of the upstream to tell about a tag counts.
const SILENCE: Duration = Duration::from_secs(5);
/// How often the same stale tag is announced by one process.
const ANNOUNCED: Duration = Duration::from_secs(60 * 60);
/// Entries of the caches.
const ENTRIES: u64 = 50_000;

/// Cheap to clone.
#[derive(Clone)]
pub struct Rumours {
    store: Store,
    bus: Bus,
    memory: Arc<Memory>,
    tasks: TaskTracker,
    connected: watch::Receiver<bool>,
    silences: Cache<Spot<Tag>, Failure>,
    announced: Cache<Spot<Tag>, Digest>,
}

impl Rumours {
    pub fn new(store: Store, bus: Bus, memory: Arc<Memory>, tasks: TaskTracker) -> Self {
        let silences = Cache::builder().max_capacity(ENTRIES).time_to_live(SILENCE).build();
        let announced = Cache::builder().max_capacity(ENTRIES).time_to_live(ANNOUNCED).build();
        let connected = bus.connected();
        Self { store, bus, memory, tasks, connected, silences, announced }
    }

    /// Whether changes of tags are heard of as they happen.
    pub fn are_heard(&self) -> bool {
        *self.connected.borrow()
    }

    /// Why the upstream did not tell about a tag a moment ago.
    pub fn silence(&self, spot: &Spot<Tag>) -> Option<Failure> {
        self.silences.get(spot)
    }

    pub fn keep_silence(&self, spot: Spot<Tag>, failure: &Failure) {
        self.silences.insert(spot, failure.clone());
    }

    /// Writes into the record that the upstream still names what it says. Whoever loses the race
    /// reads the winner's record next time.
    pub fn confirm(&self, place: &Place, tag: &Tag, seen: Option<&Arc<Seen>>) {
        let Some(seen) = seen else { return };
        let record = TagRecord {
            rule: Some(place.route.rule.name.to_string()),
            generation: Some(place.route.generation.to_string()),
            confirmed_at: Timestamp::now(),
            ..seen.record.clone()
        };
        let (rumours, repository, tag) = (self.clone(), place.repository().clone(), tag.clone());
        let version = seen.version.clone();
        let write = async move {
            match rumours.store.put_tag(&repository, &tag, record.clone(), Some(version)).await {
                Ok(version) => {
                    let record = TagRecord { seq: version.seq(), ..record };
                    let seen = Arc::new(Seen::now(record, version));
                    rumours.memory.keep_record(&repository, &tag, seen);
                }
                Err(error) => {
                    rumours.memory.forget_record(&repository, &tag);
                    if !matches!(error, StoreError::Conflict { .. }) {
                        tracing::warn!(%error, image.repository = %repository, image.tag = %tag,
                            "confirmation not written");
                    }
                }
            }
        };
        self.tasks.spawn(write.in_current_span());
    }

    /// Announces that a tag was served although the upstream could not confirm it.
    pub fn served_stale(
        &self,
        place: &Place,
        tag: &Tag,
        seen: Option<&Arc<Seen>>,
        digest: &Digest,
        failure: &Failure,
    ) {
        let spot = place.spot(tag);
        if self.announced.get(&spot).as_ref() == Some(digest) {
            return;
        }
        self.announced.insert(spot.clone(), digest.clone());
        let data = EventData {
            upstream: Some(place.route.upstream.name.to_string()),
            rule: Some(place.route.rule.name.to_string()),
            generation: Some(place.route.generation.to_string()),
            repository: Some(place.repository().clone()),
            reference: Some(Reference::Tag(tag.clone())),
            digest: Some(digest.clone()),
            seq: seen.map_or(0, |seen| seen.record.seq),
            class: failure.class(),
            ..EventData::default()
        };
        let event = Event::new(EventKind::ServedStale, Timestamp::now(), data);
        let rumours = self.clone();
        let publish = async move {
            if let Err(error) = rumours.bus.publish_event(&event).await {
                tracing::debug!(%error, "stale answer not announced");
                rumours.announced.invalidate(&spot);
            }
        };
        self.tasks.spawn(publish.in_current_span());
    }

    /// Hears of changes until `closing`. What was read before they were heard of is forgotten at
    /// each connect.
    pub async fn listen(self, closing: CancellationToken) {
        let mut connected = self.bus.connected();
        let mut events = pin!(self.bus.follow_events(None));
        loop {
            tokio::select! {
                Some(event) = events.next() => self.hear(&event),
                Ok(()) = connected.changed() => self.memory.forget_records(),
                () = closing.cancelled() => return,
            }
        }
    }

    fn hear(&self, event: &Event) {
        let EventData { repository, reference, .. } = &event.data;
        if let (Some(repository), Some(Reference::Tag(tag))) = (repository, reference) {
            self.memory.forget_record(repository, tag);
        }
    }
}
