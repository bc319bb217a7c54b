//! What one frontend remembers, all of it bounded and none of it needed: verified manifests, tag
//! records read a moment ago, upstream observations younger than the record, blobs known to be
//! here, and blobs the upstream confirmed for a repository.

use crate::{asking::Told, held::Held, place::Spot};
use hydrant_proto::{Digest, MediaType, RepositoryName, Tag};
use hydrant_store::{TagRecord, Version};
use jiff::Timestamp;
use moka::sync::Cache;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Bytes of manifests.
const MANIFEST_BYTES: u64 = 64 * 1024 * 1024;
/// Entries of each of the other caches.
const ENTRIES: u64 = 50_000;
/// How long a manifest or blob that is local is taken to be so. Damage and deletions are seen when
/// it is read, or after this.
const LOCAL_FOR: Duration = Duration::from_secs(5 * 60);
/// How long a blob that is not read to its client is taken to be local: a HEAD or a redirect sees no
/// damage.
const UNREAD_FOR: Duration = Duration::from_secs(30);
/// How long a blob that is read is not noted again: reading the cache is cheaper than writing it.
const NOTED_FOR: Duration = Duration::from_secs(5);
/// How long an observation outlives its freshness window, so that a tag never goes back while the
/// hydration of what was observed is under way.
const OBSERVED_FOR: Duration = Duration::from_secs(60 * 60);
/// How long a tag record is used without reading it again while the bus tells of changes, and
/// while it does not.
const RECORD_FOR: Duration = Duration::from_secs(10);
const RECORD_FOR_WITHOUT_BUS: Duration = Duration::from_secs(1);
/// How long the upstream's word that a repository has a blob counts.
const ENTITLED_FOR: Duration = Duration::from_secs(5 * 60);

/// How long a blob the upstream does not have is not asked for again.
const ABSENT_FOR: Duration = Duration::from_secs(30);

pub struct Memory {
    manifests: Cache<Spot<Digest>, Remembered>,
    records: Cache<(RepositoryName, Tag), Arc<Seen>>,
    observed: Cache<Spot<Tag>, Arc<Observation>>,
    /// Blobs that are stored and linked in the repository.
    blobs: Cache<Spot<Digest>, Stored>,
    /// Blobs found damaged or gone; storage may list them until it has put them away.
    suspects: Cache<Spot<Digest>, ()>,
    /// Size in bytes of blobs that the rule's upstream says its repository has.
    pub entitled: Cache<Spot<Digest>, u64>,
    /// Blobs that the rule's upstream says its repository does not have.
    pub absent: Cache<Spot<Digest>, ()>,
}

/// A blob that storage had a moment ago.
#[derive(Clone, Copy)]
struct Stored {
    /// In bytes.
    size: u64,
    seen_at: Instant,
}

/// What a blob is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Storage is read, so that damage and deletion are seen.
    Reading,
    /// Only told of.
    Telling,
}

/// A manifest that is remembered.
#[derive(Clone, Debug)]
pub struct Remembered {
    pub held: Arc<Held>,
    /// Whether it is visible in storage; else it was relayed and its hydration is under way.
    pub is_local: bool,
}

/// A tag record as it was read from storage.
#[derive(Debug)]
pub struct Seen {
    pub record: TagRecord,
    pub version: Version,
    pub read_at: Instant,
}

/// What the upstream was last heard to name by a tag, when storage does not say the same.
#[derive(Clone, Debug)]
pub struct Observation {
    pub digest: Digest,
    pub media_type: Option<MediaType>,
    pub size: Option<u64>,
    pub at: Timestamp,
    /// Whether its manifest went out to a client, so that nothing older may any more.
    pub is_served: bool,
}

impl Seen {
    pub fn now(record: TagRecord, version: Version) -> Self {
        Self { record, version, read_at: Instant::now() }
    }
}

impl Observation {
    /// Heard of by HEAD.
    pub fn heard(digest: Digest, told: &Told) -> Self {
        let (media_type, size) = (told.head.media_type, told.head.size);
        Self { digest, media_type, size, at: told.at, is_served: false }
    }

    /// The manifest itself was had, of which the upstream said `at` that the tag names it.
    pub fn of(held: &Held, at: Timestamp) -> Self {
        let (media_type, size) = (Some(held.media_type), Some(held.bytes.len() as u64));
        let digest = held.digest.clone();
        Self { digest, media_type, size, at, is_served: true }
    }
}

impl Memory {
    pub fn new() -> Self {
        Self {
            manifests: Cache::builder()
                .max_capacity(MANIFEST_BYTES)
                .weigher(|_, remembered: &Remembered| remembered.held.weight())
                .time_to_live(LOCAL_FOR)
                .build(),
            records: bounded(RECORD_FOR),
            observed: bounded(OBSERVED_FOR),
            blobs: bounded(LOCAL_FOR),
            suspects: bounded(UNREAD_FOR),
            entitled: bounded(ENTITLED_FOR),
            absent: bounded(ABSENT_FOR),
        }
    }

    pub fn manifest(&self, spot: &Spot<Digest>) -> Option<Remembered> {
        self.manifests.get(spot)
    }

    pub fn keep_manifest(&self, spot: Spot<Digest>, held: Arc<Held>, is_local: bool) {
        self.manifests.insert(spot, Remembered { held, is_local });
    }

    /// Size in bytes of a blob that is stored and linked in the repository, as far as `wanted` may
    /// rely on it.
    pub fn blob(&self, spot: &Spot<Digest>, wanted: Use) -> Option<u64> {
        let stored = self.blobs.get(spot)?;
        (wanted == Use::Reading || stored.seen_at.elapsed() < UNREAD_FOR).then_some(stored.size)
    }

    /// Notes that a blob is stored and linked. Telling of what is remembered makes it no younger.
    pub fn keep_blob(&self, spot: Spot<Digest>, size: u64, used: Use) {
        let noted_for = match used {
            Use::Reading => NOTED_FOR,
            Use::Telling => UNREAD_FOR,
        };
        let is_noted = |noted: Stored| noted.size == size && noted.seen_at.elapsed() < noted_for;
        let is_new = !self.blobs.get(&spot).is_some_and(is_noted);
        if is_new && !self.suspects.contains_key(&spot) {
            self.blobs.insert(spot, Stored { size, seen_at: Instant::now() });
        }
    }

    /// A blob was found damaged or gone.
    pub fn forget_blob(&self, spot: &Spot<Digest>) {
        self.suspects.insert(spot.clone(), ());
        self.blobs.invalidate(spot);
    }

    /// A tag record that was read no longer ago than is safe. `hears` says whether the bus tells of
    /// changes.
    pub fn record(&self, repository: &RepositoryName, tag: &Tag, hears: bool) -> Option<Arc<Seen>> {
        let safe = if hears { RECORD_FOR } else { RECORD_FOR_WITHOUT_BUS };
        let seen = self.records.get(&(repository.clone(), tag.clone()))?;
        (seen.read_at.elapsed() < safe).then_some(seen)
    }

    pub fn keep_record(&self, repository: &RepositoryName, tag: &Tag, seen: Arc<Seen>) {
        self.records.insert((repository.clone(), tag.clone()), seen);
    }

    /// What the upstream was last heard to name by a tag.
    pub fn observation(&self, spot: &Spot<Tag>) -> Option<Arc<Observation>> {
        self.observed.get(spot)
    }

    /// Notes what the upstream names by a tag. An older word does not take the place of a younger
    /// one, however late it comes. What was only heard of does not take the place of
    /// another manifest that clients have got already: the way back to it would be lost.
    pub fn observe(&self, spot: Spot<Tag>, observation: Observation) {
        let keeps = |held: &Observation| {
            let has_no_way_back = held.is_served && !observation.is_served;
            held.digest != observation.digest && (has_no_way_back || held.at > observation.at)
        };
        if self.observed.get(&spot).is_none_or(|held| !keeps(&held)) {
            self.observed.insert(spot, Arc::new(observation));
        }
    }

    /// Something happened to a tag: it is read again when next asked for.
    pub fn forget_record(&self, repository: &RepositoryName, tag: &Tag) {
        self.records.invalidate(&(repository.clone(), tag.clone()));
    }

    /// Events may have been missed.
    pub fn forget_records(&self) {
        self.records.invalidate_all();
    }
}

fn bounded<K, V>(ttl: Duration) -> Cache<K, V>
where
    K: std::hash::Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Cache::builder().max_capacity(ENTRIES).time_to_live(ttl).build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hydrant_rules::{Resources, Table};
    use std::path::Path;

    fn spot() -> Spot<Digest> {
        let text = "[[upstream]]\nname='a'\nendpoint='https://a.example'\n[[rule]]\nname='a'\n\
                    downstream='a/*'\nupstream='a'\n";
        let table = Table::compile(Resources::from_toml(text, Path::new("/")).unwrap()).unwrap();
        let route = table.route(&"a/b".parse().unwrap()).unwrap();
        let (generation, repository) = (route.generation, route.repository);
        Spot { generation, repository, what: Digest::of(b"x") }
    }

    #[test]
    fn an_older_word_that_comes_late_changes_nothing() {
        let (memory, spot) = (Memory::new(), spot());
        let spot = Spot {
            generation: spot.generation,
            repository: spot.repository,
            what: "1".parse::<Tag>().unwrap(),
        };
        let word = |of: &[u8], second: i64, is_served: bool| Observation {
            digest: Digest::of(of),
            media_type: None,
            size: None,
            at: Timestamp::from_second(second).unwrap(),
            is_served,
        };
        for (said, stands) in [
            (word(b"a", 5, false), "a"),
            (word(b"b", 4, true), "a"),
            (word(b"b", 6, false), "b"),
            (word(b"b", 7, true), "b"),
            (word(b"a", 6, true), "b"),
            // Only heard of, while clients have the other.
            (word(b"c", 9, false), "b"),
            (word(b"c", 9, true), "c"),
        ] {
            memory.observe(spot.clone(), said.clone());
            let found = memory.observation(&spot).unwrap();
            assert_eq!(found.digest, Digest::of(stands.as_bytes()), "{said:?}");
        }
    }

    #[test]
    fn what_is_only_told_of_is_looked_for_again_soon() {
        let (memory, spot) = (Memory::new(), spot());
        let past = Instant::now().checked_sub(UNREAD_FOR).unwrap();
        memory.blobs.insert(spot.clone(), Stored { size: 1, seen_at: past });
        assert_eq!(memory.blob(&spot, Use::Telling), None);
        assert_eq!(memory.blob(&spot, Use::Reading), Some(1));
        memory.keep_blob(spot.clone(), 1, Use::Telling);
        let seen_at = memory.blobs.get(&spot).unwrap().seen_at;
        memory.keep_blob(spot.clone(), 1, Use::Telling);
        assert_eq!(memory.blobs.get(&spot).unwrap().seen_at, seen_at, "no younger by being told");
        memory.forget_blob(&spot);
        assert_eq!(memory.blob(&spot, Use::Reading), None);
    }
}
