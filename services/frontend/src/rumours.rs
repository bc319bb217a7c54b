//! Talk about tags with the rest of the cluster, all of it off the path of an answer: changes heard
//! from the bus, confirmations written back to the record, stale answers announced.

use crate::{
    error::Failure,
    memory::{Memory, Seen},
    place::{Place, Spot},
};
use bytes::Bytes;
use futures::StreamExt;
use hydrant_bus::{Bus, Claimed, Held};
use hydrant_proto::{Digest, Event, EventData, EventKind, Reference, Tag, subject::StateKey};
use hydrant_store::{Store, StoreError, TagRecord, Terms};
use jiff::Timestamp;
use moka::sync::Cache;
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

/// How long one failure of the upstream to tell about a tag counts.
const SILENCE: Duration = Duration::from_secs(5);
/// How often the same stale tag is announced by one process.
const ANNOUNCED: Duration = Duration::from_secs(60 * 60);
/// Entries of the caches.
const ENTRIES: u64 = 50_000;

/// How long a process that died keeps others from asking about a tag.
const TURN: Duration = Duration::from_secs(3);
/// Longest wait for the bus to say whose turn it is.
const TURN_WITHIN: Duration = Duration::from_millis(250);

/// Whose turn it is to ask the upstream about a tag. Dropped, one's own ends.
#[derive(Debug)]
pub enum Turn {
    Own(Held),
    Others,
    /// Nobody can tell: everybody asks for himself.
    Free,
}

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

    /// The upstream told about a tag.
    pub fn end_silence(&self, spot: &Spot<Tag>) {
        self.silences.invalidate(spot);
    }

    /// Tries to get the turn to ask the upstream about a tag. While the bus is away, or slow, every
    /// process asks for itself.
    pub async fn turn(&self, place: &Place, tag: &Tag) -> Turn {
        if !self.are_heard() {
            return Turn::Free;
        }
        let (state, key) = (self.bus.shared_state(), key(place, tag));
        match timeout(TURN_WITHIN, state.hold(&key, Bytes::new(), TURN)).await {
            Ok(Ok(Claimed::Mine(held))) => Turn::Own(held),
            Ok(Ok(Claimed::Taken(_))) => Turn::Others,
            Ok(Err(_)) | Err(_) => Turn::Free,
        }
    }

    /// Waits until nobody has the turn, for no longer than a check may take.
    pub async fn turn_ends(&self, place: &Place, tag: &Tag) {
        let Ok(changes) = self.bus.shared_state().watch(&key(place, tag)) else { return };
        let free = async {
            let mut changes = pin!(changes);
            while let Some(Some(_)) = changes.next().await {}
        };
        // Whatever comes first, the record is read again.
        let _ = timeout(place.route.upstream.timeout.0, free).await;
    }

    /// Writes into the record that the upstream, asked `at` some time, names what it says. Whoever
    /// loses the race reads the winner's record next time. Then the turn ends.
    pub fn confirm(
        &self,
        place: &Place,
        tag: &Tag,
        seen: Option<&Arc<Seen>>,
        at: Timestamp,
        turn: Turn,
    ) {
        let terms = Terms {
            rule: place.route.rule.name.to_string(),
            generation: place.route.generation.to_string(),
            upstream: place.route.upstream.name.to_string(),
        };
        let Some(seen) = seen else { return };
        let Ok(record) = seen.record.confirmed(at, terms) else { return };
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
            if let Turn::Own(held) = turn {
                held.release().await;
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

/// What the turn of a tag is called on the bus.
fn key(place: &Place, tag: &Tag) -> StateKey {
    let (generation, repository) = (&place.route.generation, place.repository());
    StateKey::Check(Digest::of(format!("{generation} {repository}:{tag}").as_bytes()))
}
