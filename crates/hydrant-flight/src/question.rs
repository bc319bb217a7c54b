//! Which keys this process is claiming or holds, so that it knows a claim of its own whose answer
//! it never got: nobody works on that, and nobody need wait for it to expire. And how urgent each is:
//! as much as the one who asks here and wants it most.

use bytes::Bytes;
use hydrant_bus::{BusError, Claimed, Entry, Held, SharedState};
use hydrant_proto::subject::StateKey;
use hydrant_upstream::{Priority, Urgency};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// What this process is asking, each key as often as it is being claimed or held.
#[derive(Clone, Debug, Default)]
pub(crate) struct Questions(Arc<Mutex<BTreeMap<String, Asking>>>);

#[derive(Debug)]
struct Asking {
    times: usize,
    urgency: Urgency,
}

/// One key, claimed or held, until it is dropped.
#[derive(Debug)]
struct Open {
    questions: Questions,
    key: String,
    urgency: Urgency,
}

/// A question that this process is to ask for all. Dropped, it is given up.
#[derive(Debug)]
pub(crate) struct Question {
    held: Held,
    open: Open,
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
        priority: Priority,
    ) -> impl Future<Output = Result<Claimed<Question>, BusError>> + Send + use<> {
        let (open, state) = (Open::new(self, &key, priority), state.clone());
        async move {
            let claimed = match former {
                None => state.hold(&key, value, lease).await?,
                Some(former) => {
                    Claimed::Mine(state.hold_over(&key, value, former.revision, lease).await?)
                }
            };
            Ok(match claimed {
                Claimed::Mine(held) => Claimed::Mine(Question { held, open }),
                Claimed::Taken(entry) => Claimed::Taken(entry),
            })
        }
    }

    /// Whether `entry` is of this process, which does not know of it.
    pub fn is_stray(&self, state: &SharedState, key: &StateKey, entry: &Entry) -> bool {
        entry.owner == state.owner() && !self.open().contains_key(&key.to_string())
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<String, Asking>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Question {
    /// It rises when a client comes to ask here.
    pub fn urgency(&self) -> &Urgency {
        &self.open.urgency
    }

    /// Says something else of the question while it is being asked. What cannot be said is of no
    /// harm: others wait less.
    pub fn say(&self, value: Bytes) {
        let _ = self.held.set(value);
    }

    /// Leaves the answer for `ttl`.
    pub async fn answer(self, value: Bytes, ttl: Duration) -> Result<(), BusError> {
        self.held.bequeath(value, ttl).await
    }
}

impl Open {
    fn new(questions: &Questions, key: &StateKey, priority: Priority) -> Self {
        let key = key.to_string();
        let mut open = questions.open();
        let new = || Asking { times: 0, urgency: priority.into() };
        let asking = open.entry(key.clone()).or_insert_with(new);
        asking.times += 1;
        if priority == Priority::Interactive {
            asking.urgency.raise();
        }
        Self { questions: questions.clone(), key, urgency: asking.urgency.clone() }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut open = self.questions.open();
        match open.get_mut(&self.key) {
            Some(asking) if asking.times > 1 => asking.times -= 1,
            Some(_) | None => drop(open.remove(&self.key)),
        }
    }
}
