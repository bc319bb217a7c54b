//! Which keys this process is claiming or holds, so that it knows a claim of its own whose answer
//! it never got: nobody works on that, and nobody need wait for it to expire.

use bytes::Bytes;
use hydrant_bus::{BusError, Claimed, Entry, Held, SharedState};
use hydrant_proto::subject::StateKey;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// What this process is asking, each key as often as it is being claimed or held.
#[derive(Clone, Debug, Default)]
pub(crate) struct Questions(Arc<Mutex<BTreeMap<String, usize>>>);

/// One key, claimed or held, until it is dropped.
#[derive(Debug)]
struct Open {
    questions: Questions,
    key: String,
}

/// A question that this process is to ask for all. Dropped, it is given up.
#[derive(Debug)]
pub(crate) struct Question {
    held: Held,
    _open: Open,
}

impl Questions {
    /// Claims `key`, in place of `former` where that is given. To be carried to its end: what is
    /// claimed late must be known, and released.
    pub fn claim(
        &self,
        state: &SharedState,
        key: StateKey,
        value: Bytes,
        former: Option<Entry>,
        lease: Duration,
    ) -> impl Future<Output = Result<Claimed<Question>, BusError>> + Send + use<> {
        let (open, state) = (Open::new(self, &key), state.clone());
        async move {
            let claimed = match former {
                None => state.hold(&key, value, lease).await?,
                Some(former) => {
                    Claimed::Mine(state.hold_over(&key, value, former.revision, lease).await?)
                }
            };
            Ok(match claimed {
                Claimed::Mine(held) => Claimed::Mine(Question { held, _open: open }),
                Claimed::Taken(entry) => Claimed::Taken(entry),
            })
        }
    }

    /// Whether `entry` is of this process, which does not know of it.
    pub fn is_stray(&self, state: &SharedState, key: &StateKey, entry: &Entry) -> bool {
        entry.owner == state.owner() && !self.open().contains_key(&key.to_string())
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Question {
    /// Leaves the answer for `ttl`.
    pub async fn answer(self, value: Bytes, ttl: Duration) -> Result<(), BusError> {
        self.held.bequeath(value, ttl).await
    }
}

impl Open {
    fn new(questions: &Questions, key: &StateKey) -> Self {
        let key = key.to_string();
        *questions.open().entry(key.clone()).or_default() += 1;
        Self { questions: questions.clone(), key }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut open = self.questions.open();
        match open.get_mut(&self.key) {
            Some(times) if *times > 1 => *times -= 1,
            Some(_) | None => drop(open.remove(&self.key)),
        }
    }
}
