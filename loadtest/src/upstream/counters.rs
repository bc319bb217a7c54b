//! What the upstream was asked and what it sent.

use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// A reading of the counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    pub heads: u64,
    pub manifest_gets: u64,
    /// Whole and in parts.
    pub blob_gets: u64,
    /// Those of them that asked for a part.
    pub ranged_gets: u64,
    /// Blobs and manifests that were fetched by GET at least once.
    pub distinct: u64,
    /// GETs without a Range of what was fetched most often; a manifest is the same by its tag and by
    /// its digest.
    pub most_gets: u64,
    /// Body bytes handed to connections.
    pub bytes: u64,
    /// GETs of blobs under way now, and at their highest.
    pub open: u64,
    pub peak_open: u64,
    /// Requests that a fault spoilt.
    pub spoilt: u64,
}

#[derive(Debug, Default)]
pub(super) struct Tally {
    heads: AtomicU64,
    manifest_gets: AtomicU64,
    blob_gets: AtomicU64,
    ranged_gets: AtomicU64,
    bytes: AtomicU64,
    open: AtomicU64,
    peak_open: AtomicU64,
    spoilt: AtomicU64,
    /// Whole reads by what was named.
    gets: Mutex<HashMap<String, u64>>,
}

impl Counters {
    /// Requests that were answered.
    pub fn requests(&self) -> u64 {
        self.heads + self.manifest_gets + self.blob_gets
    }

    /// Whether nobody was served since an earlier reading, and nobody is.
    pub fn stands_still_since(&self, earlier: &Self) -> bool {
        self.open == 0 && (self.bytes, self.requests()) == (earlier.bytes, earlier.requests())
    }
}

impl Tally {
    pub fn head(&self) {
        self.heads.fetch_add(1, Relaxed);
    }

    pub fn spoilt(&self) {
        self.spoilt.fetch_add(1, Relaxed);
    }

    /// By whatever name it was asked for: by its tag and by its digest, it is read twice.
    pub fn manifest_get(&self, repository: &str, digest: &str) {
        self.manifest_gets.fetch_add(1, Relaxed);
        self.get(format!("{repository}@{digest}"), true);
    }

    /// A read of a part is counted, and is no second read of the whole.
    pub fn blob_get(&self, digest: &str, whole: bool) {
        self.blob_gets.fetch_add(1, Relaxed);
        self.ranged_gets.fetch_add(u64::from(!whole), Relaxed);
        self.get(digest.to_owned(), whole);
    }

    fn get(&self, name: String, whole: bool) {
        let mut gets = self.gets.lock().expect("no holder panics");
        *gets.entry(name).or_default() += u64::from(whole);
    }

    pub fn sent(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
    }

    /// Begins an answer; [`Tally::closed`] ends it.
    pub fn opened(&self) {
        let open = self.open.fetch_add(1, Relaxed) + 1;
        self.peak_open.fetch_max(open, Relaxed);
    }

    pub fn closed(&self) {
        self.open.fetch_sub(1, Relaxed);
    }

    pub fn read(&self) -> Counters {
        let gets = self.gets.lock().expect("no holder panics");
        Counters {
            heads: self.heads.load(Relaxed),
            manifest_gets: self.manifest_gets.load(Relaxed),
            blob_gets: self.blob_gets.load(Relaxed),
            ranged_gets: self.ranged_gets.load(Relaxed),
            distinct: gets.len() as u64,
            most_gets: gets.values().copied().max().unwrap_or(0),
            bytes: self.bytes.load(Relaxed),
            open: self.open.load(Relaxed),
            peak_open: self.peak_open.load(Relaxed),
            spoilt: self.spoilt.load(Relaxed),
        }
    }

    /// Starts anew; answers under way stay counted as open.
    pub fn reset(&self) {
        let requests = [&self.heads, &self.manifest_gets, &self.blob_gets, &self.ranged_gets];
        let others = [&self.bytes, &self.spoilt];
        requests.into_iter().chain(others).for_each(|counter| counter.store(0, Relaxed));
        self.peak_open.store(self.open.load(Relaxed), Relaxed);
        self.gets.lock().expect("no holder panics").clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_of_a_part_is_no_second_read_of_the_whole() {
        let tally = Tally::default();
        tally.blob_get("sha256:a", true);
        tally.blob_get("sha256:a", false);
        tally.blob_get("sha256:a", false);
        tally.manifest_get("app", "sha256:b");
        let counters = tally.read();
        assert_eq!((counters.blob_gets, counters.ranged_gets, counters.most_gets), (3, 2, 1));
        tally.manifest_get("app", "sha256:b");
        assert_eq!(tally.read().most_gets, 2);
        tally.reset();
        assert_eq!(tally.read(), Counters::default());
    }

    #[test]
    fn it_stands_still_when_nothing_was_asked_and_nothing_is_under_way() {
        let tally = Tally::default();
        tally.blob_get("sha256:a", true);
        tally.opened();
        let earlier = tally.read();
        assert!(!tally.read().stands_still_since(&earlier));
        tally.closed();
        assert!(tally.read().stands_still_since(&earlier));
        tally.head();
        assert!(!tally.read().stands_still_since(&earlier));
    }
}
