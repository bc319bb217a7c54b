//! Places for connections. When all are taken, the one whose client has taken nothing for longest, and for
//! long, gives its place to the next.
//!
//! Below that nobody is cut off for reading slowly: a client that reads a byte a second lets its
//! kernel's window, and ours, stand for hours, and cannot be told from one that reads nothing.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};

/// How often it is looked for a connection to take the place of.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    free: Arc<Semaphore>,
    standstill: Duration,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    last: u64,
    slots: BTreeMap<u64, Arc<Standing>>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    id: u64,
    standing: Arc<Standing>,
    slots: Slots,
    _permit: OwnedSemaphorePermit,
}

/// Whether the client takes what it is sent.
#[derive(Debug)]
pub(super) struct Standing {
    began: Instant,
    /// Milliseconds after `began`, and one; 0 while it takes what it is sent.
    since: AtomicU64,
    cut: Notify,
}

impl Slots {
    pub fn new(connections: usize, standstill: Duration) -> Self {
        Self { free: Arc::new(Semaphore::new(connections)), standstill, taken: Arc::default() }
    }

    /// The next place.
    pub async fn next(&self) -> Slot {
        loop {
            tokio::select! {
                biased;
                permit = self.free.clone().acquire_owned() => {
                    return self.slot(permit.expect("the semaphore is never closed"));
                }
                () = sleep(LOOK_AGAIN) => self.make_room(),
            }
        }
    }

    fn slot(&self, permit: OwnedSemaphorePermit) -> Slot {
        let standing =
            Standing { began: Instant::now(), since: AtomicU64::new(0), cut: Notify::new() };
        let standing = Arc::new(standing);
        let mut taken = self.taken();
        taken.last += 1;
        let id = taken.last;
        taken.slots.insert(id, standing.clone());
        Slot { id, standing, slots: self.clone(), _permit: permit }
    }

    fn make_room(&self) {
        let taken = self.taken();
        let still = taken.slots.values().map(|standing| (standing.still_for(), standing));
        if let Some((still_for, standing)) = still.max_by_key(|(still_for, _)| *still_for)
            && still_for >= self.standstill
        {
            standing.cut.notify_one();
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    pub fn standing(&self) -> Arc<Standing> {
        self.standing.clone()
    }

    /// Returns when the place is needed for another.
    pub async fn taken(&self) {
        self.standing.cut.notified().await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.taken().slots.remove(&self.id);
    }
}

impl Standing {
    /// It was offered something and took nothing.
    pub fn waits(&self) {
        if self.since.load(Ordering::Relaxed) == 0 {
            let millis = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
            self.since.store(millis + 1, Ordering::Relaxed);
        }
    }

    pub fn takes(&self) {
        if self.since.load(Ordering::Relaxed) != 0 {
            self.since.store(0, Ordering::Relaxed);
        }
    }

    fn still_for(&self) -> Duration {
        match self.since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => self.began.elapsed().saturating_sub(Duration::from_millis(since - 1)),
        }
    }
}
