//! The messages this process has seen and not removed, so that a consumer that was deleted can begin
//! again where it had been.
//!
//! A message that was given back may be settled by another process, which only the consumer's ack
//! floor tells: everything up to there is settled. It is asked for now and then.

use crate::source::published;
use async_nats::jetstream::Message as Delivered;
use jiff::{SignedDuration, Timestamp};
use std::{collections::BTreeMap, mem, sync::Mutex};
use tokio::time::{Duration, Instant};

/// Most messages known one by one, at some 50 bytes each.
const MOST: usize = 10_000;

#[derive(Debug)]
pub(crate) struct Unsettled {
    /// How often the ack floor is worth a request.
    every: Duration,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// By stream sequence.
    open: BTreeMap<u64, Timestamp>,
    /// The oldest ones, once there are too many: the last sequence, and the time of the first.
    merged: Option<(u64, Timestamp)>,
    newest: Option<Timestamp>,
    asked: Option<Instant>,
}

impl Unsettled {
    pub(crate) fn new(every: Duration) -> Self {
        Self { every, seen: Mutex::default() }
    }

    pub(crate) fn begin(&self, delivered: &Delivered) {
        if let (Ok(info), Some(published)) = (delivered.info(), published(delivered)) {
            self.seen.lock().expect("no holder panics").begin(info.stream_sequence, published);
        }
    }

    pub(crate) fn end(&self, delivered: &Delivered) {
        if let Ok(info) = delivered.info() {
            self.seen.lock().expect("no holder panics").open.remove(&info.stream_sequence);
        }
    }

    /// Whether to ask how far everything is settled. Once asked, not again for a while.
    pub(crate) fn is_due(&self) -> bool {
        let mut seen = self.seen.lock().expect("no holder panics");
        let has_any = !seen.open.is_empty() || seen.merged.is_some();
        let is_due = has_any && seen.asked.is_none_or(|at| at.elapsed() >= self.every);
        if is_due {
            seen.asked = Some(Instant::now());
        }
        is_due
    }

    /// Everything up to this sequence is settled, by whomever.
    pub(crate) fn settled_to(&self, floor: u64) {
        self.seen.lock().expect("no holder panics").settled_to(floor);
    }

    /// The time of the oldest message that is not settled, or just after the newest one seen.
    pub(crate) fn resume_at(&self) -> Option<Timestamp> {
        self.seen.lock().expect("no holder panics").resume_at()
    }
}

impl Seen {
    fn begin(&mut self, sequence: u64, published: Timestamp) {
        self.newest = self.newest.max(Some(published));
        if self.merged.is_some_and(|(last, _)| sequence <= last) {
            return;
        }
        self.open.insert(sequence, published);
        if self.open.len() > MOST
            && let Some((last, at)) = self.open.pop_first()
        {
            self.merged = Some((last, self.merged.map_or(at, |(_, first)| first.min(at))));
        }
    }

    fn settled_to(&mut self, floor: u64) {
        self.merged = self.merged.filter(|(last, _)| *last > floor);
        self.open = mem::take(&mut self.open).split_off(&floor.saturating_add(1));
    }

    fn resume_at(&self) -> Option<Timestamp> {
        let merged = self.merged.map(|(_, first)| first);
        let oldest = self.open.values().copied().chain(merged).min();
        oldest.or_else(|| Some(self.newest? + SignedDuration::from_nanos(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Timestamp {
        Timestamp::from_second(second.try_into().unwrap()).unwrap()
    }

    #[test]
    fn however_many_are_given_back_the_memory_is_bounded_and_the_oldest_is_known() {
        let mut seen = Seen::default();
        let most = MOST as u64;
        for sequence in 1..=3 * most {
            seen.begin(sequence, at(sequence));
            assert_eq!(seen.resume_at(), Some(at(1)));
        }
        seen.begin(1, at(1));
        assert_eq!(seen.open.len(), MOST);
        seen.settled_to(most);
        assert_eq!(seen.resume_at(), Some(at(1)), "of the merged ones some may be open");
        seen.settled_to(2 * most);
        assert_eq!(seen.resume_at(), Some(at(2 * most + 1)));
        seen.settled_to(3 * most);
        assert!(seen.open.is_empty());
        assert_eq!(seen.resume_at(), Some(at(3 * most) + SignedDuration::from_nanos(1)));
    }
}
