//! Flights that landed a short while ago, their bytes still in the spool: who is told that storage
//! has a blob, and does not get it from there in time, gets it from here.

use crate::flight::Flight;
use hydrant_proto::Digest;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How long bytes are kept that storage has too.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// Most flights kept: each has a file open.
const MAX_KEPT: usize = 256;

/// The oldest is the first.
#[derive(Debug)]
pub(crate) struct Kept {
    flights: Mutex<VecDeque<Flight>>,
    max_bytes: u64,
}

impl Kept {
    /// Keeps `max_bytes` of spool at most.
    pub fn new(max_bytes: u64) -> Arc<Self> {
        Arc::new(Self { flights: Mutex::default(), max_bytes })
    }

    /// Keeps what the flight has in the spool, for a while and as long as there is room.
    pub fn keep(self: &Arc<Self>, flight: &Flight) {
        if !flight.is_spooled() || flight.progress().is_missing_any() {
            return;
        }
        self.all().push_back(flight.clone());
        while self.is_over() && self.let_oldest_go() {}
        // Weak, so that the bytes are gone as soon as they are let go.
        let (kept, shared) = (Arc::downgrade(self), Arc::downgrade(&flight.0));
        tokio::spawn(async move {
            tokio::time::sleep(KEPT_FOR).await;
            if let Some(kept) = kept.upgrade() {
                kept.all().retain(|other| Arc::as_ptr(&other.0) != shared.as_ptr());
            }
        });
    }

    pub fn get(&self, digest: &Digest) -> Option<Flight> {
        self.all().iter().rev().find(|flight| flight.digest() == digest).cloned()
    }

    /// Gives room to a flight that needs it; false when there is nothing to let go.
    pub fn let_oldest_go(&self) -> bool {
        self.all().pop_front().is_some()
    }

    fn is_over(&self) -> bool {
        let flights = self.all();
        let bytes: u64 = flights.iter().map(|flight| flight.progress().spooled).sum();
        flights.len() > MAX_KEPT || bytes > self.max_bytes
    }

    fn all(&self) -> MutexGuard<'_, VecDeque<Flight>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
