//! The circuit breaker of one upstream: who may ask now, and who hears of it.
//!
//! The counting is in `counting`, pure; here are the clock, the lock and the watchers. The state
//! changes on outcomes, and from `Open` to `HalfOpen` by a timer, so that a consumer that waits
//! for the gate is woken without anybody asking.

mod counting;
mod fleet;
mod peers;

pub use counting::{PROBE_PAUSE, Settings, State};
pub use fleet::Granted;

use fleet::{Interest, STAND_BACK};

use counting::{Core, Outcome, Refused, Slot};
use hydrant_proto::UpstreamReport;
use hydrant_telemetry::metrics;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};

/// Longest wait for the fleet's word on whose turn it is to probe; without it the call is refused.
const LEAVE_WAIT: Duration = Duration::from_millis(20);

/// The breaker of one upstream. Cheap to clone; clones share the state.
#[derive(Clone, Debug)]
pub struct Breaker(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    upstream: String,
    slow_call: Duration,
    core: Mutex<Core>,
    state: watch::Sender<State>,
    /// Raised when there is something to tell the fleet.
    news: watch::Sender<u64>,
    /// Woken when leave for a probe may be wanted.
    due: Notify,
    timer: Mutex<Option<JoinHandle<()>>>,
}

impl Breaker {
    pub(crate) fn new(upstream: &str, settings: Settings) -> Self {
        let slow_call = settings.slow_call;
        let shared = Shared {
            upstream: upstream.to_owned(),
            slow_call,
            core: Mutex::new(Core::new(settings, Instant::now())),
            state: watch::Sender::new(State::Closed),
            news: watch::Sender::new(0),
            due: Notify::new(),
            timer: Mutex::new(None),
        };
        metrics().upstreams.breaker(upstream, State::Closed.label());
        Self(Arc::new(shared))
    }

    pub fn state(&self) -> State {
        *self.0.state.borrow()
    }

    /// Every change of the state. The sender lives as long as the breaker.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.0.state.subscribe()
    }

    /// Waits until the breaker is no longer open. In `HalfOpen` only one call is let through at a
    /// time, so the caller's next call may still be refused.
    pub async fn ready(&self) {
        let mut state = self.watch();
        let open = |state: &State| matches!(state, State::Open { .. });
        // The sender is owned by `self`, so the wait cannot end with an error.
        let _ = state.wait_for(|state| !open(state)).await;
    }

    /// Says that work in the background waits for the upstream whenever the breaker is open, so
    /// that somebody probes even if no client asks.
    pub fn attend(&self) {
        self.want(Interest::Standing);
    }

    /// How long to stay away if a call were refused now; `None` when it would be let through. When
    /// the time has come for a probe, the fleet is given a moment to say whose turn it is.
    pub(crate) async fn refusal(&self) -> Option<Duration> {
        let refusal = self.0.core().refusal(Instant::now())?;
        let is_due = self.want(Interest::Called);
        if !is_due {
            return Some(refusal);
        }
        let mut state = self.watch();
        let open = |state: &State| matches!(state, State::Open { .. });
        let _ = timeout(LEAVE_WAIT, state.wait_for(|state| !open(state))).await;
        self.0.core().refusal(Instant::now())
    }

    /// Notes that a call would be made, and whether leave for it is wanted now.
    fn want(&self, interest: Interest) -> bool {
        let mut core = self.0.core();
        let now = Instant::now();
        core.want(interest, now);
        let wants = core.wants_leave(now);
        if wants {
            self.0.due.notify_one();
        }
        wants
    }

    /// Asks to make one call; the pass reports its outcome. In `HalfOpen` the pass is the probe.
    pub(crate) fn admit(&self) -> Result<Pass, Duration> {
        let now = Instant::now();
        let mut core = self.0.core();
        let was_active = core.is_active(now);
        let slot = core.admit(now).map_err(|Refused(pause)| pause)?;
        let until = core.deadline();
        drop(core);
        if !was_active {
            self.tell();
        }
        Ok(Pass { breaker: self.clone(), slot: Some(slot), began: now, until })
    }

    /// Changes the counting and tells the watchers, in one step, so that they hear of changes in
    /// the order they happened.
    fn change<T>(&self, change: impl FnOnce(&mut Core) -> T) -> T {
        let mut core = self.0.core();
        let outcome = change(&mut core);
        self.publish(core.state());
        outcome
    }

    fn publish(&self, state: State) {
        let before = self.0.state.send_replace(state);
        if before == state {
            return;
        }
        let upstream = self.0.upstream.as_str();
        metrics().upstreams.breaker(upstream, state.label());
        match state {
            State::Closed => tracing::info!(upstream, "breaker closed"),
            State::HalfOpen => tracing::info!(upstream, "breaker half open"),
            State::Open { until } => {
                let pause_ms = until.saturating_duration_since(Instant::now()).as_millis();
                tracing::warn!(upstream, pause_ms, "breaker opened");
                self.half_open_at(until);
            }
        }
    }

    /// Moves `Open` on to `HalfOpen` when its time is up. The task ends with the breaker, or when
    /// a later opening replaces it.
    fn half_open_at(&self, until: Instant) {
        let shared = Arc::downgrade(&self.0);
        let task = tokio::spawn(async move {
            tokio::time::sleep_until(until).await;
            Self::time_is_up(&shared);
        });
        let previous = self.0.timer.lock().unwrap_or_else(PoisonError::into_inner).replace(task);
        if let Some(previous) = previous {
            previous.abort();
        }
    }

    fn time_is_up(shared: &Weak<Shared>) {
        let Some(shared) = shared.upgrade() else { return };
        shared.due.notify_one();
        Self(shared).change(|core| core.half_open_if_due(Instant::now()));
    }
}

/// The part for whoever connects this process with others.
impl Breaker {
    /// From now on a probe needs leave, see [`Breaker::leave_wanted`].
    pub(crate) fn ask_for_leave(&self) {
        self.change(Core::ask_for_leave);
    }

    /// Ends when leave for a probe is wanted. For one caller.
    pub(crate) async fn leave_wanted(&self) {
        while !self.0.core().wants_leave(Instant::now()) {
            // Those who stand back are not woken when their time has come.
            let _ = timeout(STAND_BACK, self.0.due.notified()).await;
        }
    }

    pub(crate) fn grant(&self) -> Granted {
        self.change(|core| core.grant(Instant::now()))
    }

    pub(crate) fn wait_longer(&self, pause: Duration) {
        self.change(|core| core.wait_longer(pause, Instant::now()));
    }

    pub(crate) fn return_unused(&self, pause: Duration) {
        self.change(|core| core.return_unused(pause, Instant::now()));
    }

    pub(crate) fn hear(&self, process: &str, report: &UpstreamReport) {
        let is_news = self.change(|core| {
            let before = (core.decisions(), core.state() == State::Closed);
            core.hear(process, report, Instant::now());
            before != (core.decisions(), core.state() == State::Closed)
        });
        if is_news {
            self.tell();
        }
    }

    pub(crate) fn forget(&self, process: &str) {
        self.0.core().forget(process);
    }

    pub(crate) fn sharers(&self) -> usize {
        self.0.core().sharers(Instant::now())
    }

    /// `None` when this process has not asked for a while.
    pub(crate) fn report(&self) -> Option<UpstreamReport> {
        let (core, now) = (self.0.core(), Instant::now());
        core.is_active(now).then(|| core.report(now))
    }

    /// Changes when [`Breaker::report`] has something new to say.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.0.news.subscribe()
    }

    fn tell(&self) {
        self.0.news.send_modify(|news| *news += 1);
    }
}

impl Shared {
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let timer = self.timer.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(timer) = timer {
            timer.abort();
        }
    }
}

/// The right to make one call. Dropped without a report, it counts for nothing, and a probe makes
/// room for the next.
#[derive(Debug)]
pub(crate) struct Pass {
    breaker: Breaker,
    slot: Option<Slot>,
    began: Instant,
    until: Option<Instant>,
}

impl Pass {
    /// When the call must have ended, if it is a probe.
    pub fn deadline(&self) -> Option<Instant> {
        self.until
    }

    /// How long ago the call was let through.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// The upstream answered; how long that took decides whether it was slow.
    pub fn answered(self) {
        let slow = self.began.elapsed() >= self.breaker.0.slow_call;
        self.report(if slow { Outcome::Slow } else { Outcome::Success });
    }

    /// It did not answer, or with 5xx.
    pub fn failed(self) {
        self.report(Outcome::Failure);
    }

    /// It asked us to stay away, for so long if it said.
    pub fn limited(self, pause: Option<Duration>) {
        self.report(Outcome::Limited(pause));
    }

    fn report(mut self, outcome: Outcome) {
        let Some(slot) = self.slot.take() else { return };
        let is_news = self.breaker.change(|core| {
            let suspicious = core.is_suspicious();
            core.record(slot, outcome, Instant::now());
            suspicious || outcome != Outcome::Success || core.state() != self.breaker.state()
        });
        if is_news {
            self.breaker.tell();
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.breaker.0.core().give_back(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings { jitter: 0.0, open_for: Duration::from_secs(5), ..Settings::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn five_failures_open_it_and_time_makes_it_half_open() {
        let breaker = Breaker::new("lab", settings());
        let mut watch = breaker.watch();
        for _ in 0..5 {
            breaker.admit().unwrap().failed();
        }
        assert!(matches!(*watch.borrow_and_update(), State::Open { .. }));
        assert_eq!(breaker.admit().unwrap_err(), Duration::from_secs(5));
        breaker.ready().await;
        assert_eq!(breaker.state(), State::HalfOpen);
        breaker.admit().unwrap().answered();
        assert_eq!(breaker.state(), State::Closed);
        assert!(watch.has_changed().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn one_probe_at_a_time_and_a_dropped_one_makes_room() {
        let breaker = Breaker::new("lab", settings());
        breaker.admit().unwrap().limited(Some(Duration::from_secs(30)));
        breaker.ready().await;
        let probe = breaker.admit().unwrap();
        assert!(breaker.admit().is_err());
        drop(probe);
        breaker.admit().unwrap().answered();
        assert_eq!(breaker.state(), State::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_answers_count_against_it() {
        let breaker = Breaker::new("lab", settings());
        let passes: Vec<_> = (0..8).map(|_| breaker.admit().unwrap()).collect();
        tokio::time::advance(settings().slow_call).await;
        passes.into_iter().for_each(Pass::answered);
        assert!(matches!(breaker.state(), State::Open { .. }));
    }
}
