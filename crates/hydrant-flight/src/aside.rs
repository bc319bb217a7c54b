//! Extracts of blobs that were fetched ahead of their flights: in memory, no more than there is room
//! for, until the flight has passed them or others need the room.

use bytes::Bytes;
use hydrant_proto::Digest;
use moka::future::Cache;
use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Most bytes of a process, those included that are on their way here or to a client.
const ROOM: u64 = 16 * 1024 * 1024;
/// How long it stays known that an upstream knows no ranges.
const RANGELESS_FOR: Duration = Duration::from_secs(10 * 60);
const MAX_RANGELESS: u64 = 1_000;

/// Bytes from the middle of a blob, unverified as every part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extract {
    pub range: Range<u64>,
    pub bytes: Bytes,
}

impl Extract {
    /// The bytes of `part`, if they are all in it.
    pub fn cut(&self, part: &Range<u64>) -> Option<Bytes> {
        let from = usize::try_from(part.start.checked_sub(self.range.start)?).ok()?;
        let until = usize::try_from(part.end.checked_sub(self.range.start)?).ok()?;
        (until <= self.bytes.len()).then(|| self.bytes.slice(from..until))
    }
}

/// The extracts of one process. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Aside(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    used: AtomicU64,
    /// The oldest is the first.
    kept: Mutex<VecDeque<(Digest, Extract)>>,
    rangeless: Cache<String, ()>,
}

/// Room for one extract, given back on drop.
#[derive(Debug)]
pub(crate) struct Room {
    aside: Aside,
    bytes: u64,
}

impl Aside {
    pub fn new() -> Self {
        let rangeless = Cache::builder().max_capacity(MAX_RANGELESS).time_to_live(RANGELESS_FOR);
        Self(Arc::new(Inner {
            used: AtomicU64::new(0),
            kept: Mutex::default(),
            rangeless: rangeless.build(),
        }))
    }

    /// The oldest extracts make room. `None` when what is read, or on its way, takes all of it.
    pub fn room(&self, bytes: u64) -> Option<Room> {
        let fits = |used: u64| (used + bytes <= ROOM).then_some(used + bytes);
        while self.0.used.fetch_update(Relaxed, Relaxed, fits).is_err() {
            self.kept().pop_front()?;
        }
        Some(Room { aside: self.clone(), bytes })
    }

    pub fn get(&self, digest: &Digest, part: &Range<u64>) -> Option<Bytes> {
        let kept = self.kept();
        let mut of_it = kept.iter().filter(|(of, _)| of == digest);
        of_it.find_map(|(_, extract)| extract.cut(part))
    }

    pub fn keep(&self, digest: &Digest, extract: Extract) {
        self.kept().push_back((digest.clone(), extract));
    }

    /// Forgets what lies before `at`: the flight has it.
    pub fn passed(&self, digest: &Digest, at: u64) {
        if self.0.used.load(Relaxed) > 0 {
            self.kept().retain(|(of, extract)| of != digest || extract.range.end > at);
        }
    }

    /// Notes that the upstream answers a range with the whole.
    pub async fn is_rangeless(&self, upstream: &str) {
        self.0.rangeless.insert(upstream.to_owned(), ()).await;
    }

    pub fn knows_ranges(&self, upstream: &str) -> bool {
        !self.0.rangeless.contains_key(upstream)
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<(Digest, Extract)>> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    /// Bytes that take the room until the last who reads them is done.
    pub fn fill(self, bytes: Vec<u8>) -> Bytes {
        Bytes::from_owner(Filled { bytes, _room: self })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.aside.0.used.fetch_sub(self.bytes, Relaxed);
    }
}

struct Filled {
    bytes: Vec<u8>,
    _room: Room,
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(aside: &Aside, digest: &Digest, range: Range<u64>) -> Bytes {
        let length = range.end - range.start;
        let room = aside.room(length).expect("there is room");
        let bytes = room.fill(vec![7; usize::try_from(length).unwrap()]);
        aside.keep(digest, Extract { range, bytes: bytes.clone() });
        bytes
    }

    #[test]
    fn what_is_kept_is_found_by_any_part_of_it_until_the_flight_has_passed() {
        let (aside, digest, other) = (Aside::new(), Digest::of(b"x"), Digest::of(b"y"));
        drop(keep(&aside, &digest, 100..200));
        for (part, found) in
            [(100..200, true), (150..151, true), (99..101, false), (199..201, false)]
        {
            let length = aside.get(&digest, &part).map(|bytes| bytes.len() as u64);
            assert_eq!(length, found.then_some(part.end - part.start), "{part:?}");
        }
        assert_eq!(aside.get(&other, &(150..151)), None);
        aside.passed(&digest, 199);
        aside.passed(&other, 200);
        assert!(aside.get(&digest, &(150..151)).is_some());
        aside.passed(&digest, 200);
        assert_eq!(aside.get(&digest, &(150..151)), None);
        assert_eq!(aside.0.used.load(Relaxed), 0);
    }

    #[test]
    fn the_oldest_makes_room_but_not_what_is_being_read() {
        let (aside, digest) = (Aside::new(), Digest::of(b"x"));
        let half = ROOM / 2;
        drop(keep(&aside, &digest, 0..half));
        let read = keep(&aside, &digest, half..2 * half);
        drop(keep(&aside, &digest, 2 * half..3 * half));
        assert_eq!(aside.get(&digest, &(0..1)), None, "it made room");
        assert!(aside.room(ROOM).is_none(), "a client reads half of it");
        drop(read);
        assert!(aside.room(ROOM).is_some());
    }
}
