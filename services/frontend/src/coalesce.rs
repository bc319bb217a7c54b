//! Many callers that want the same thing at the same moment share one task that gets it. The task
//! belongs to none of them: it goes on when they leave.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// The work under way, by key.
pub struct Coalesced<K: Eq + Hash, V> {
    running: Arc<Running<K, V>>,
    tasks: TaskTracker,
}

type Running<K, V> = Mutex<HashMap<K, Task<V>>>;

struct Task<V> {
    began: Instant,
    outcome: watch::Receiver<Option<V>>,
}

/// Whether the caller's own request did the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Began,
    Joined,
}

impl<K, V> Coalesced<K, V>
where
    K: Eq + Hash + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Whoever waits for `tasks` waits for the work.
    pub fn new(tasks: TaskTracker) -> Self {
        Self { running: Arc::default(), tasks }
    }

    /// The outcome of `work`, or of the same work begun by another caller. `work` should look
    /// first whether an earlier one has just finished. `None` when the work panicked.
    pub async fn get<F>(&self, key: K, work: impl FnOnce() -> F) -> (Option<V>, Part)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (mut outcome, part) = self.enter(key, work);
        let value = outcome.wait_for(Option::is_some).await.ok().and_then(|value| value.clone());
        (value, part)
    }

    /// For how long the work of `key` has been under way, if it is.
    pub fn age(&self, key: &K) -> Option<Duration> {
        lock(&self.running).get(key).map(|task| task.began.elapsed())
    }

    /// Begins `work` unless the same is under way; nobody waits for it.
    pub fn begin<F>(&self, key: K, work: impl FnOnce() -> F)
    where
        F: Future<Output = V> + Send + 'static,
    {
        drop(self.enter(key, work));
    }

    fn enter<F>(&self, key: K, work: impl FnOnce() -> F) -> (watch::Receiver<Option<V>>, Part)
    where
        F: Future<Output = V> + Send + 'static,
    {
        match lock(&self.running).entry(key.clone()) {
            Entry::Occupied(entry) => (entry.get().outcome.clone(), Part::Joined),
            Entry::Vacant(entry) => {
                let (sender, receiver) = watch::channel(None);
                entry.insert(Task { began: Instant::now(), outcome: receiver.clone() });
                let leaving = Leaving { running: self.running.clone(), key };
                let work = work();
                let task = async move {
                    let value = work.await;
                    drop(leaving);
                    sender.send_replace(Some(value));
                };
                self.tasks.spawn(task.in_current_span());
                (receiver, Part::Began)
            }
        }
    }
}

/// Takes the key out when the work ends, however it ends.
struct Leaving<K: Eq + Hash, V> {
    running: Arc<Running<K, V>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Leaving<K, V> {
    fn drop(&mut self) {
        lock(&self.running).remove(&self.key);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    #[tokio::test]
    async fn a_hundred_callers_share_one_task_that_outlives_the_first() {
        let shared = Arc::new(Coalesced::<&str, usize>::new(TaskTracker::new()));
        let (runs, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let call = || {
            let (shared, runs, go) = (shared.clone(), runs.clone(), go.clone());
            async move {
                let work = || async move {
                    runs.fetch_add(1, Ordering::SeqCst);
                    go.notified().await;
                    7
                };
                shared.get("key", work).await
            }
        };
        let first = tokio::spawn(call());
        while runs.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        first.abort();
        let others: Vec<_> = (0..100).map(|_| tokio::spawn(call())).collect();
        tokio::task::yield_now().await;
        go.notify_one();
        for other in others {
            assert_eq!(other.await.unwrap(), (Some(7), Part::Joined));
        }
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_panic_is_heard_by_all_and_the_key_is_free_again() {
        let shared = Coalesced::<u8, u8>::new(TaskTracker::new());
        let broken = shared.get(1, || async { panic!("on purpose") }).await;
        assert_eq!(broken, (None, Part::Began));
        assert_eq!(shared.get(1, || async { 2 }).await, (Some(2), Part::Began));
    }
}
