//! Storage as the path of an answer asks it: soon or not at all. While storage is away, upstreams
//! are asked instead, and no client waits for its timeouts and retries; those are for the work
//! behind the answers.

use crate::error::Failure;
use hydrant_store::{Retry, Store, StoreError};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, timeout};

/// Longest wait for a look-up, or for the first byte of a blob.
const BUDGET: Duration = Duration::from_secs(3);
/// Longest wait for a list that many objects are read for.
const LIST_BUDGET: Duration = Duration::from_secs(10);
/// Failures in a row, without a success between them, after which storage counts as away.
const FAILURES: u32 = 3;
/// How long it is then not asked.
const AWAY_FOR: Duration = Duration::from_secs(2);

/// Cheap to clone.
#[derive(Clone)]
pub struct Shelf {
    pub store: Store,
    health: Arc<Health>,
}

#[derive(Default)]
struct Health {
    failures: AtomicU32,
    last: Mutex<Option<(Instant, Failure)>>,
}

impl Shelf {
    pub fn new(store: Store) -> Self {
        Self { store, health: Arc::default() }
    }

    /// What storage answers to `ask`, if it does so in time.
    pub async fn ask<T>(
        &self,
        ask: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, Failure> {
        if let Some(failure) = self.health.away() {
            return Err(failure);
        }
        let answer = timeout(BUDGET, ask).await;
        match answer {
            Ok(Ok(found)) => {
                self.health.failures.store(0, Ordering::Relaxed);
                Ok(found)
            }
            Ok(Err(error)) if error.retry() == Retry::Later => {
                Err(self.health.failed(Failure::Storage(error)))
            }
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(self.health.failed(Failure::SlowStorage)),
        }
    }
}

impl Shelf {
    /// The same for a list of whatever length. That one takes long says nothing of storage.
    pub async fn list<T>(
        &self,
        list: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, Failure> {
        if let Some(failure) = self.health.away() {
            return Err(failure);
        }
        timeout(LIST_BUDGET, list).await.map_err(|_| Failure::SlowStorage)?.map_err(Failure::from)
    }
}

impl Health {
    fn away(&self) -> Option<Failure> {
        if self.failures.load(Ordering::Relaxed) < FAILURES {
            return None;
        }
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, failure) = last.as_ref()?;
        (at.elapsed() < AWAY_FOR).then(|| failure.clone())
    }

    fn failed(&self, failure: Failure) -> Failure {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), failure.clone()));
        self.failures.fetch_add(1, Ordering::Relaxed);
        failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    #[tokio::test(start_paused = true)]
    async fn a_list_is_given_up_and_harms_nobody() {
        let shelf = Shelf::new(Store::in_memory());
        let began = Instant::now();
        for _ in 0..FAILURES {
            let endless = shelf.list(pending::<Result<(), StoreError>>()).await;
            assert!(matches!(endless, Err(Failure::SlowStorage)));
        }
        assert_eq!(began.elapsed(), FAILURES * LIST_BUDGET);
        assert!(shelf.ask(async { Ok(()) }).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn storage_that_keeps_silent_is_left_alone_for_a_while() {
        let shelf = Shelf::new(Store::in_memory());
        for _ in 0..FAILURES {
            let silent = shelf.ask(pending::<Result<(), StoreError>>()).await;
            assert!(matches!(silent, Err(Failure::SlowStorage)));
        }
        let began = Instant::now();
        assert!(shelf.ask(async { Ok(()) }).await.is_err(), "not even asked");
        assert_eq!(began.elapsed(), Duration::ZERO);
        tokio::time::sleep(AWAY_FOR).await;
        assert!(shelf.ask(async { Ok(()) }).await.is_ok());
        assert!(shelf.ask(async { Ok(()) }).await.is_ok());
    }
}
