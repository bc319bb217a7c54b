//! Requests at a rate, or as fast as answers come.
//!
//! At a rate the load is open: requests are due at times that do not depend on the answers, and
//! latency counts from when a request was due, so a server that stalls is charged for everybody who
//! would have waited (no coordinated omission). What was due and never sent is counted, with the
//! time it waited.

mod outcome;

pub use outcome::Outcome;

use crate::wire::{Request, Session};
use outcome::Recorder;
use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::{runtime::Runtime, sync::Semaphore, task::JoinSet, time::timeout};

/// Threads of their own for those whose answers are timed: a client that hashes a layer beside them
/// would hold up their clock, which on a machine of its own it could not.
static THREADS: LazyLock<Runtime> =
    LazyLock::new(|| Runtime::new().expect("threads can be started when others were"));

/// Shortest sleep of the pacer.
const NAP: Duration = Duration::from_micros(100);
/// How long what was due at the end may wait for a free connection: a hiccup in the last moment is in
/// the latencies, and not yet a request that nobody served.
const LAST_CHANCE: Duration = Duration::from_secs(1);
/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// One kind of request, and what a right answer is.
#[derive(Clone, Debug)]
pub struct Ask {
    pub authority: String,
    pub request: Request,
    /// Bytes of the body.
    pub length: u64,
}

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub pace: Pace,
    /// Requests under way at most.
    pub connections: usize,
    pub time: Duration,
    /// Requests in all at most.
    pub most: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// Requests per second, evenly spaced, whatever the answers do.
    Open(f64),
    /// The next request when an answer has come: what a server can do at most.
    Closed,
}

/// The requests of `asks` in turn, by `plan`. Dropping it ends the load.
pub async fn run(plan: Plan, asks: Vec<Ask>) -> Outcome {
    let sessions = (0..plan.connections).map(|_| Session::default()).collect();
    Ready { plan, asks, sessions }.run().await
}

/// A load whose connections are open, and whose requests were each answered once already: what is
/// measured is neither the first look of a server at its files nor a handshake.
pub async fn warmed(plan: Plan, asks: Vec<Ask>) -> Ready {
    let asks = Arc::new(asks);
    let mut opening = JoinSet::new();
    for first in 0..plan.connections {
        opening.spawn_on(warm_up(first, plan.connections, asks.clone()), THREADS.handle());
    }
    let sessions = opening.join_all().await;
    Ready { plan, asks: Arc::unwrap_or_clone(asks), sessions }
}

/// The session of a connection that has had its share of the requests, and one at least. What goes
/// wrong does so again when it is measured.
async fn warm_up(first: usize, connections: usize, asks: Arc<Vec<Ask>>) -> Session {
    let mut session = Session::default();
    for number in (first..asks.len().max(connections)).step_by(connections) {
        let ask = &asks[number % asks.len()];
        let fetching = session.fetch(&ask.authority, &ask.request, |_| {});
        if !matches!(timeout(PATIENCE, fetching).await, Ok(Ok(_))) {
            return Session::default();
        }
    }
    session
}

/// A load that can begin at once.
pub struct Ready {
    plan: Plan,
    asks: Vec<Ask>,
    /// One for each connection.
    sessions: Vec<Session>,
}

impl Ready {
    /// Dropping it ends the load.
    pub async fn run(self) -> Outcome {
        let Self { plan, asks, sessions } = self;
        assert!(!asks.is_empty(), "a load needs requests");
        let load = Arc::new(Load {
            plan,
            asks,
            started: Instant::now(),
            due: Semaphore::new(0),
            next: AtomicU64::new(0),
            released: AtomicU64::new(0),
            over: AtomicBool::new(false),
        });
        let end = EndOnDrop(load.clone());
        let mut workers = JoinSet::new();
        for session in sessions {
            workers.spawn_on(worker(load.clone(), session), THREADS.handle());
        }
        if let Pace::Open(rate) = plan.pace {
            let load = load.clone();
            thread::spawn(move || load.release(rate));
        }
        let mut outcome = load.recorder();
        // Every worker ends at the plan's time, at the latest when its last answer is overdue.
        while let Some(recorded) = workers.join_next().await {
            match recorded {
                Ok(recorded) => outcome.merge(recorded),
                Err(error) => outcome.failed(&format!("a worker ended: {error}")),
            }
        }
        drop(end);
        load.count_unserved(&mut outcome);
        outcome.finish(load.started.elapsed().min(plan.time.max(Duration::from_millis(1))))
    }
}

struct Load {
    plan: Plan,
    asks: Vec<Ask>,
    started: Instant,
    /// A permit for each request that is due and was not sent.
    due: Semaphore,
    next: AtomicU64,
    released: AtomicU64,
    over: AtomicBool,
}

struct EndOnDrop(Arc<Load>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Load {
    /// The pacer: a thread of its own, because timers of the runtime tick in milliseconds.
    fn release(&self, rate: f64) {
        loop {
            let elapsed = self.started.elapsed().min(self.plan.time);
            let due = ((elapsed.as_secs_f64() * rate) as u64).min(self.plan.most);
            let more = due.saturating_sub(self.released.swap(due, Relaxed));
            self.due.add_permits(usize::try_from(more).unwrap_or(0));
            if due >= self.plan.most || elapsed >= self.plan.time || self.over.load(Relaxed) {
                break;
            }
            let next = Duration::from_secs_f64((due + 1) as f64 / rate);
            thread::sleep(next.saturating_sub(self.started.elapsed()).max(NAP));
        }
        // What was due at the end is sent if somebody is free for it.
        let last_chance = Instant::now() + LAST_CHANCE;
        while self.next.load(Relaxed) < self.released.load(Relaxed) && Instant::now() < last_chance
        {
            thread::sleep(NAP);
        }
        self.end();
    }

    fn recorder(&self) -> Recorder {
        Recorder::new(self.started, self.ends())
    }

    fn ends(&self) -> Instant {
        self.started + self.plan.time
    }

    fn end(&self) {
        self.over.store(true, Relaxed);
        self.due.close();
    }

    /// The number and the due time of the next request; `None` when there are no more.
    async fn take(&self) -> Option<(u64, Instant)> {
        match self.plan.pace {
            Pace::Open(rate) => {
                self.due.acquire().await.ok()?.forget();
                let number = self.next.fetch_add(1, Relaxed);
                Some((number, self.due_at(number, rate)))
            }
            Pace::Closed => {
                let number = self.next.fetch_add(1, Relaxed);
                let goes_on = number < self.plan.most
                    && self.started.elapsed() < self.plan.time
                    && !self.over.load(Relaxed);
                goes_on.then(|| (number, Instant::now()))
            }
        }
    }

    fn due_at(&self, number: u64, rate: f64) -> Instant {
        self.started + Duration::from_secs_f64((number + 1) as f64 / rate)
    }

    /// What was due before the end and not sent waited at least until now.
    fn count_unserved(&self, outcome: &mut Recorder) {
        if let Pace::Open(rate) = self.plan.pace {
            let now = Instant::now();
            for number in self.next.load(Relaxed)..self.released.load(Relaxed) {
                outcome.unserved(self.due_at(number, rate), now);
            }
        }
    }
}

async fn worker(load: Arc<Load>, mut session: Session) -> Recorder {
    let (mut recorder, ends) = (load.recorder(), load.ends());
    while let Some((number, due)) = load.take().await {
        let ask = &load.asks[usize::try_from(number).unwrap_or(0) % load.asks.len()];
        let mut in_time = 0;
        let count = |piece: &[u8]| {
            if Instant::now() <= ends {
                in_time += piece.len() as u64;
            }
        };
        let fetching = session.fetch(&ask.authority, &ask.request, count);
        match timeout(PATIENCE, fetching).await {
            Err(_) => {
                // The connection may still bring the answer; a new one brings the next.
                session = Session::default();
                recorder.error(due, "no answer in time");
            }
            Ok(Err(error)) => recorder.error(due, &error.root_cause().to_string()),
            Ok(Ok(answer)) if !matches!(answer.head.status, 200 | 206) => {
                recorder.error(due, &format!("status {}", answer.head.status));
            }
            Ok(Ok(answer)) if answer.length != ask.length => {
                recorder.error(due, &format!("{} bytes, not {}", answer.length, ask.length));
            }
            Ok(Ok(answer)) => recorder.done(due, answer.length, in_time),
        }
    }
    recorder
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::Metric;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    /// Answers every request; the first of each connection after `pause`.
    async fn server(pause: Duration) -> Ask {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = [0; 4096];
                    let mut pause = Some(pause);
                    while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                        if let Some(pause) = pause.take() {
                            tokio::time::sleep(pause).await;
                        }
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                        if stream.write_all(answer).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Ask { authority, request: Request::get("/"), length: 2 }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stall_is_charged_to_all_who_would_have_waited() {
        let ask = server(Duration::from_millis(300)).await;
        let plan = Plan {
            pace: Pace::Open(200.0),
            connections: 1,
            time: Duration::from_secs(30),
            most: 100,
        };
        let outcome = run(plan, vec![ask]).await;
        assert_eq!((outcome.done + outcome.unserved, outcome.errors.len()), (100, 0));
        // Of 100 requests in 500 ms, those due in the first 300 ms found the server stalled. A
        // load that waits for answers before it sends would have seen one slow request.
        assert!(outcome.milliseconds(0.75) > outcome.milliseconds(0.25));
        assert!(outcome.slow(Duration::from_millis(100)) > 20, "{outcome:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_answer_after_the_end_is_in_no_rate() {
        let ask = server(Duration::from_millis(400)).await;
        let time = Duration::from_millis(100);
        let plan = Plan { pace: Pace::Closed, connections: 3, time, most: u64::MAX };
        let outcome = run(plan, vec![ask]).await;
        assert_eq!(outcome.done, 3);
        assert_eq!(outcome.values()[&Metric::Rate], 0.0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_first_answers_of_a_warmed_load_are_measured_by_nobody() {
        let ask = server(Duration::from_millis(400)).await;
        let time = Duration::from_secs(30);
        let plan = Plan { pace: Pace::Closed, connections: 3, time, most: 30 };
        let outcome = warmed(plan, vec![ask]).await.run().await;
        assert_eq!((outcome.done, outcome.complaint()), (30, None));
        assert_eq!(outcome.slow(Duration::from_millis(300)), 0, "{outcome:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_closed_load_ends_at_its_count_and_wrong_answers_are_errors() {
        let ask = Ask { length: 3, ..server(Duration::ZERO).await };
        let plan =
            Plan { pace: Pace::Closed, connections: 4, time: Duration::from_secs(30), most: 50 };
        let outcome = run(plan, vec![ask]).await;
        assert_eq!(outcome.done, 0);
        assert_eq!(outcome.errors.get("2 bytes, not 3"), Some(&50));
    }
}
