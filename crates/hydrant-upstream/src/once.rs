//! One fetch for all who wait for the same thing.
//!
//! Whoever comes first fetches; the others wait for its end and take its result, the failure
//! included. When the first one gives up half-way, the next in line fetches. The fetch is as urgent as
//! whoever waits for it wants it most.

use crate::{answer::Failure, permits::Priority, urgency::Urgency};
use std::{
    collections::HashMap,
    convert::Infallible,
    future::pending,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError, Weak},
};
use tokio::time::Instant;

/// A value that is fetched when it is asked for.
#[derive(Debug)]
pub struct Cell<T>(tokio::sync::Mutex<Option<Fetched<T>>>);

#[derive(Debug)]
struct Fetched<T> {
    at: Instant,
    result: Result<T, Failure>,
}

impl<T> Default for Cell<T> {
    fn default() -> Self {
        Self(tokio::sync::Mutex::new(None))
    }
}

impl<T: Clone> Cell<T> {
    /// The value: the one held if it is still `good`, the one whose fetch ended while we waited
    /// for it, or a new one.
    pub async fn get(
        &self,
        good: impl FnOnce(&T) -> bool,
        fetch: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let asked = Instant::now();
        let mut held = self.0.lock().await;
        if let Some(fetched) = held.as_ref()
            && (fetched.at >= asked || fetched.result.as_ref().is_ok_and(good))
        {
            return fetched.result.clone();
        }
        let result = fetch.await;
        *held = Some(Fetched { at: Instant::now(), result: result.clone() });
        result
    }

    /// Whether nothing was ever fetched, nor is being.
    pub fn is_empty(&self) -> bool {
        self.0.try_lock().is_ok_and(|held| held.is_none())
    }

    /// Takes the value as fetched now.
    pub async fn put(&self, value: T) {
        *self.0.lock().await = Some(Fetched { at: Instant::now(), result: Ok(value) });
    }

    /// Forgets the value if it is `bad`, so that it is fetched anew.
    pub async fn forget_if(&self, bad: impl FnOnce(&T) -> bool) {
        let mut held = self.0.lock().await;
        if held.as_ref().is_some_and(|fetched| fetched.result.as_ref().is_ok_and(bad)) {
            *held = None;
        }
    }
}

/// Fetches under way, by key. Nothing is kept once nobody waits.
#[derive(Debug)]
pub struct UnderWay<K: Eq + Hash, T>(Mutex<HashMap<K, Weak<Shared<T>>>>);

/// One fetch.
#[derive(Debug)]
struct Shared<T> {
    cell: Cell<T>,
    urgency: Urgency,
}

impl<K: Eq + Hash + Clone, T: Clone> UnderWay<K, T> {
    pub fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    /// Joins the fetch of `key`, or makes it, as urgent as it is told and from then on becomes.
    pub async fn join<F>(
        &self,
        key: K,
        urgency: &Urgency,
        fetch: impl FnOnce(Urgency) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let shared = self.shared(key.clone());
        let _leave = Leave { all: self, key };
        let raise = async {
            urgency.raised().await;
            shared.urgency.raise();
            pending::<Infallible>().await
        };
        tokio::select! {
            biased;
            never = raise => match never {},
            fetched = shared.cell.get(|_| false, fetch(shared.urgency.clone())) => fetched,
        }
    }

    fn shared(&self, key: K) -> Arc<Shared<T>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = all.entry(key).or_default();
        slot.upgrade().unwrap_or_else(|| {
            let urgency = Priority::Background.into();
            let shared = Arc::new(Shared { cell: Cell::default(), urgency });
            *slot = Arc::downgrade(&shared);
            shared
        })
    }
}

/// Takes the key out when its last waiter has left, also when that one is cancelled. It is dropped
/// before the waiter's own hold of the fetch, hence the count of one.
struct Leave<'a, K: Eq + Hash, T> {
    all: &'a UnderWay<K, T>,
    key: K,
}

impl<K: Eq + Hash, T> Drop for Leave<'_, K, T> {
    fn drop(&mut self) {
        let mut all = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get(&self.key).is_some_and(|shared| shared.strong_count() <= 1) {
            all.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::future::join_all;
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    async fn counted(count: &AtomicUsize) -> Result<usize, Failure> {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(count.fetch_add(1, Ordering::SeqCst))
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_callers_make_one_fetch() {
        let (under_way, count) = (UnderWay::new(), AtomicUsize::new(0));
        let (client, fetch) = (Priority::Interactive.into(), |_| counted(&count));
        let all = join_all((0..100).map(|_| under_way.join("a", &client, fetch))).await;
        assert!(all.iter().all(|result| matches!(result, Ok(0))));
        assert!(under_way.0.lock().unwrap().is_empty());
        assert!(matches!(under_way.join("a", &client, fetch).await, Ok(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_joins_makes_the_fetch_urgent() {
        let under_way = UnderWay::new();
        let fetch = |urgency: Urgency| async move {
            urgency.raised().await;
            Ok(urgency.now())
        };
        let (background, client) = (Priority::Background.into(), Priority::Interactive.into());
        let mut first = Box::pin(under_way.join("a", &background, fetch));
        assert!(futures::poll!(first.as_mut()).is_pending());
        let (one, two) = tokio::join!(first, under_way.join("a", &client, fetch));
        assert_eq!((one.unwrap(), two.unwrap()), (Priority::Interactive, Priority::Interactive));
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_first_gives_up_the_next_fetches() {
        let (cell, count) = (Cell::default(), AtomicUsize::new(0));
        let mut first = Box::pin(cell.get(|_| true, counted(&count)));
        assert!(futures::poll!(first.as_mut()).is_pending());
        let second = cell.get(|_| true, counted(&count));
        drop(first);
        assert!(matches!(second.await, Ok(0)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_bad_value_is_fetched_anew() {
        let (cell, count) = (Cell::default(), AtomicUsize::new(0));
        for (forget, expected) in [(false, 0), (false, 0), (true, 1)] {
            if forget {
                cell.forget_if(|value| *value == 0).await;
            }
            assert!(
                matches!(cell.get(|_| true, counted(&count)).await, Ok(found) if found == expected)
            );
        }
    }
}
