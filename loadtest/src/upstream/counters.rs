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
    pub blob_gets: u64,
    /// Digests and tags that were fetched by GET at least once.
    pub distinct: u64,
    /// GETs without a Range of what was fetched most often.
    pub most_gets: u64,
    /// Body bytes handed to connections.
    pub bytes: u64,
    /// GETs under way now, and at their highest.
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
    bytes: AtomicU64,
    open: AtomicU64,
    peak_open: AtomicU64,
    spoilt: AtomicU64,
    /// Whole reads by what was named.
    gets: Mutex<HashMap<String, u64>>,
}

impl Tally {
    pub fn head(&self) {
        self.heads.fetch_add(1, Relaxed);
    }

    pub fn spoilt(&self) {
        self.spoilt.fetch_add(1, Relaxed);
    }

    pub fn manifest_get(&self, repository: &str, reference: &str) {
        self.manifest_gets.fetch_add(1, Relaxed);
        self.get(format!("{repository}@{reference}"), true);
    }

    /// A read of a part is counted, and is no second read of the whole.
    pub fn blob_get(&self, digest: &str, whole: bool) {
        self.blob_gets.fetch_add(1, Relaxed);
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
        let all = [&self.heads, &self.manifest_gets, &self.blob_gets, &self.bytes, &self.spoilt];
        all.into_iter().for_each(|counter| counter.store(0, Relaxed));
        self.peak_open.store(self.open.load(Relaxed), Relaxed);
        self.gets.lock().expect("no holder panics").clear();
    }
}
