//! How many requests are under way at one upstream, and who goes next: interactive calls before
//! background ones, and each kind in the order it came.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::oneshot;

/// Who is waiting for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Priority {
    /// A client.
    Interactive,
    /// Nobody in particular: imports, prefetch, refresh. Uses at most three quarters of the slots.
    Background,
}

/// Most calls that wait for a slot; more are turned away.
const MAX_WAITING: usize = 2_048;

/// The slots of one upstream.
#[derive(Debug)]
pub struct Permits(Mutex<Slots>);

#[derive(Debug)]
struct Slots {
    limit: usize,
    background_limit: usize,
    used: usize,
    used_by_background: usize,
    interactive: VecDeque<oneshot::Sender<Permit>>,
    background: VecDeque<oneshot::Sender<Permit>>,
}

/// A slot in use; freed when dropped. A body carries it until its last byte.
#[derive(Debug)]
pub struct Permit {
    /// `None` once the slot was put back by other means.
    permits: Option<Arc<Permits>>,
    priority: Priority,
}

/// Too many calls wait already.
#[derive(Debug, PartialEq, Eq)]
pub struct QueueFull;

impl Permits {
    /// `limit` slots, at least one.
    pub fn new(limit: u32) -> Arc<Self> {
        let limit = limit.max(1) as usize;
        Arc::new(Self(Mutex::new(Slots {
            limit,
            background_limit: background(limit),
            used: 0,
            used_by_background: 0,
            interactive: VecDeque::new(),
            background: VecDeque::new(),
        })))
    }

    /// From now on `limit` slots, at least one. Those in use beyond it are not taken back.
    pub fn limit_to(self: &Arc<Self>, limit: u32) {
        let limit = limit.max(1) as usize;
        let before = {
            let mut slots = self.slots();
            slots.background_limit = background(limit);
            std::mem::replace(&mut slots.limit, limit)
        };
        if before < limit {
            self.hand_out();
        }
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        let slots = self.slots();
        let waiting = slots.interactive.iter().chain(&slots.background);
        waiting.filter(|turn| !turn.is_closed()).count()
    }

    /// Waits for a slot. Dropping the future gives up the place in the queue.
    pub async fn acquire(self: &Arc<Self>, priority: Priority) -> Result<Permit, QueueFull> {
        let turn = {
            let mut slots = self.slots();
            slots.forget_the_gone();
            if slots.waiting() >= MAX_WAITING {
                return Err(QueueFull);
            }
            let (tell, turn) = oneshot::channel();
            slots.queue(priority).push_back(tell);
            turn
        };
        self.hand_out();
        Ok(turn.await.expect("a queued sender is dropped only after it was given a permit"))
    }

    /// Gives free slots to those who wait, one by one; who has gone meanwhile is passed over.
    fn hand_out(self: &Arc<Self>) {
        loop {
            let Some((turn, priority)) = self.slots().take_next() else { return };
            let permit = Permit { permits: Some(self.clone()), priority };
            if let Err(mut refused) = turn.send(permit) {
                // Its drop would call this function again, once per waiter who has gone.
                refused.permits = None;
                self.slots().put_back(priority);
            }
        }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn background(limit: usize) -> usize {
    (limit * 3 / 4).max(1)
}

impl Slots {
    fn waiting(&self) -> usize {
        self.interactive.len() + self.background.len()
    }

    fn queue(&mut self, priority: Priority) -> &mut VecDeque<oneshot::Sender<Permit>> {
        match priority {
            Priority::Interactive => &mut self.interactive,
            Priority::Background => &mut self.background,
        }
    }

    /// Only when the queue is long: those who gave up still stand in it.
    fn forget_the_gone(&mut self) {
        if self.waiting() >= MAX_WAITING {
            self.interactive.retain(|turn| !turn.is_closed());
            self.background.retain(|turn| !turn.is_closed());
        }
    }

    fn take_next(&mut self) -> Option<(oneshot::Sender<Permit>, Priority)> {
        if self.used >= self.limit {
            return None;
        }
        let next = match self.interactive.pop_front() {
            Some(turn) => (turn, Priority::Interactive),
            None if self.used_by_background < self.background_limit => {
                (self.background.pop_front()?, Priority::Background)
            }
            None => return None,
        };
        self.used += 1;
        self.used_by_background += usize::from(next.1 == Priority::Background);
        Some(next)
    }

    fn put_back(&mut self, priority: Priority) {
        self.used -= 1;
        self.used_by_background -= usize::from(priority == Priority::Background);
    }
}

impl Permit {
    /// From now on a client's: the slot no longer counts against those of background work.
    pub fn raise(&mut self) {
        let Some(permits) = self.permits.as_ref().filter(|_| self.priority == Priority::Background)
        else {
            return;
        };
        permits.slots().used_by_background -= 1;
        self.priority = Priority::Interactive;
        permits.hand_out();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(permits) = self.permits.take() {
            permits.slots().put_back(self.priority);
            permits.hand_out();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt, future::join_all};

    fn now<F: Future>(future: F) -> Option<F::Output> {
        future.now_or_never()
    }

    #[test]
    fn interactive_goes_first_and_background_leaves_a_quarter() {
        let permits = Permits::new(4);
        let background: Vec<_> =
            (0..3).map(|_| now(permits.acquire(Priority::Background)).unwrap().unwrap()).collect();
        let mut waiting = Box::pin(permits.acquire(Priority::Background));
        assert!(now(waiting.as_mut()).is_none());
        let last = now(permits.acquire(Priority::Interactive)).unwrap().unwrap();
        let mut client = Box::pin(permits.acquire(Priority::Interactive));
        assert!(now(client.as_mut()).is_none());
        drop(last);
        let client = now(client).unwrap().unwrap();
        assert!(now(waiting.as_mut()).is_none());
        drop(background);
        assert!(now(waiting).is_some());
        drop(client);
        assert_eq!(permits.slots().used, 0);
    }

    #[test]
    fn a_slot_that_comes_to_be_a_clients_leaves_its_place_to_background() {
        let permits = Permits::new(4);
        let mut held: Vec<_> =
            (0..3).map(|_| now(permits.acquire(Priority::Background)).unwrap().unwrap()).collect();
        let mut waiting = Box::pin(permits.acquire(Priority::Background));
        assert!(now(waiting.as_mut()).is_none());
        held[0].raise();
        held[0].raise();
        let fourth = now(waiting).unwrap().unwrap();
        let counts = || {
            let slots = permits.slots();
            (slots.used, slots.used_by_background)
        };
        assert_eq!(counts(), (4, 3));
        drop((held, fourth));
        assert_eq!(counts(), (0, 0));
    }

    #[test]
    fn a_lower_limit_holds_for_those_to_come_and_a_higher_one_wakes_them() {
        let permits = Permits::new(4);
        let held: Vec<_> =
            (0..4).map(|_| now(permits.acquire(Priority::Interactive)).unwrap().unwrap()).collect();
        permits.limit_to(2);
        let mut waiting = Box::pin(permits.acquire(Priority::Interactive));
        assert!(now(waiting.as_mut()).is_none());
        let mut held = held.into_iter();
        held.next();
        held.next();
        assert!(now(waiting.as_mut()).is_none(), "two are still in use");
        permits.limit_to(3);
        assert!(now(waiting).is_some());
    }

    #[test]
    fn who_gives_up_leaves_no_hole() {
        let permits = Permits::new(1);
        let held = now(permits.acquire(Priority::Interactive)).unwrap().unwrap();
        let mut gone: Vec<_> =
            (0..100).map(|_| Box::pin(permits.acquire(Priority::Background))).collect();
        gone.iter_mut().for_each(|wait| assert!(now(wait.as_mut()).is_none()));
        drop(gone);
        drop(held);
        assert!(now(permits.acquire(Priority::Background)).is_some());
        let slots = permits.slots();
        assert_eq!((slots.used, slots.used_by_background), (0, 0));
    }

    #[test]
    fn the_queue_is_bounded_and_forgets_those_who_gave_up() {
        let permits = Permits::new(1);
        let _held = now(permits.acquire(Priority::Interactive)).unwrap().unwrap();
        let mut waiting: Vec<_> =
            (0..MAX_WAITING).map(|_| Box::pin(permits.acquire(Priority::Interactive))).collect();
        waiting.iter_mut().for_each(|wait| assert!(now(wait.as_mut()).is_none()));
        assert_eq!(now(permits.acquire(Priority::Interactive)).unwrap().unwrap_err(), QueueFull);
        waiting.pop();
        assert!(now(permits.acquire(Priority::Interactive)).is_none());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn never_more_than_the_limit_at_once() {
        let permits = Permits::new(3);
        let tasks = (0..200).map(|i| {
            let permits = permits.clone();
            let priority = if i % 2 == 0 { Priority::Interactive } else { Priority::Background };
            tokio::spawn(async move {
                let _permit = permits.acquire(priority).await.unwrap();
                tokio::task::yield_now().await;
                let (used, background) = {
                    let slots = permits.slots();
                    (slots.used, slots.used_by_background)
                };
                assert!(used <= 3 && background <= 2, "{used} {background}");
            })
        });
        for ended in join_all(tasks).await {
            ended.unwrap();
        }
        assert_eq!(permits.slots().used, 0);
    }
}
