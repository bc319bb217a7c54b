//! What protects one upstream from this process: its breaker and its budgets. They outlive a change
//! of the configuration that leaves the upstream what it is, and are what a fleet of processes
//! shares: whoever connects them tells a [`Guard`] what others saw, and others what it saw.
//!
//! Nothing here waits for anybody. A process that nobody connects decides for itself.

use crate::{
    breaker::{Breaker, Granted, Settings, State},
    quota::{Quota, Standing},
    retries::RetryBudget,
    strangers::Strangers,
};
use hydrant_proto::{QuotaReport, UpstreamReport};
use hydrant_rules::{Upstream, fingerprint};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// Bodies that break within this time may be one connection, or one restart of a load balancer.
const TOGETHER: Duration = Duration::from_millis(500);

/// The protection of one upstream. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub struct Guard(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    upstream: String,
    scope: String,
    breaker: Breaker,
    retries: RetryBudget,
    quota: Quota,
    strangers: Strangers,
    sharers: AtomicUsize,
    /// When the last break of a body counted.
    broke: Mutex<Option<Instant>>,
}

/// What makes an upstream the same one in every process and through changes of its settings: its
/// name, its endpoint and its credential. One word of a subject.
pub fn scope(upstream: &Upstream) -> String {
    format!("{}-{}", upstream.name, fingerprint(&(&upstream.endpoint, &upstream.credential)))
}

impl Guard {
    pub(crate) fn new(upstream: &Upstream, settings: Settings) -> Self {
        let name = upstream.name.to_string();
        Self(Arc::new(Shared {
            scope: scope(upstream),
            breaker: Breaker::new(&name, settings),
            retries: RetryBudget::new(),
            quota: Quota::new(&name),
            strangers: Strangers::new(),
            sharers: AtomicUsize::new(1),
            broke: Mutex::new(None),
            upstream: name,
        }))
    }

    /// The upstream's name.
    pub fn upstream(&self) -> &str {
        &self.0.upstream
    }

    /// See [`scope`].
    pub fn scope(&self) -> &str {
        &self.0.scope
    }

    pub fn breaker(&self) -> &Breaker {
        &self.0.breaker
    }

    pub(crate) fn retries(&self) -> &RetryBudget {
        &self.0.retries
    }

    /// Whether a body that broke now counts: bodies that break together are one failure.
    pub(crate) fn breaks(&self, now: Instant) -> bool {
        let mut last = self.0.broke.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = last.is_none_or(|last| now.saturating_duration_since(last) >= TOGETHER);
        if counts {
            *last = Some(now);
        }
        counts
    }

    pub(crate) fn quota(&self) -> &Quota {
        &self.0.quota
    }

    pub(crate) fn strangers(&self) -> &Strangers {
        &self.0.strangers
    }

    /// How the upstream's own rate limit stands, as far as it told.
    pub fn quota_standing(&self) -> Option<Standing> {
        self.0.quota.standing()
    }

    /// How many processes ask the upstream, as was known last; at least this one. Limits that hold
    /// for all of them are split by it.
    pub fn sharers(&self) -> usize {
        self.0.sharers.load(Ordering::Relaxed)
    }
}

/// The seam for whoever connects processes.
impl Guard {
    /// From now on this process probes a failed upstream only when it is let, see
    /// [`Guard::leave_wanted`].
    pub fn join_fleet(&self) {
        self.0.breaker.ask_for_leave();
    }

    /// Changes when [`Guard::report`] has something to say that others should hear soon.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.0.breaker.news()
    }

    /// What this process has seen; `None` when it has not asked the upstream for a while.
    pub fn report(&self) -> Option<UpstreamReport> {
        self.0.breaker.report()
    }

    /// Another process reported this.
    pub fn hear(&self, process: &str, report: &UpstreamReport) {
        self.0.breaker.hear(process, report);
    }

    /// Another process no longer reports.
    pub fn forget(&self, process: &str) {
        self.0.breaker.forget(process);
    }

    /// Changes when the upstream told of its rate limit.
    pub fn quota_news(&self) -> watch::Receiver<u64> {
        self.0.quota.news()
    }

    /// What is known of the rate limit.
    pub fn quota_report(&self) -> Option<QuotaReport> {
        self.0.quota.report()
    }

    /// Another process was told this of the rate limit.
    pub fn hear_quota(&self, report: &QuotaReport) {
        self.0.quota.hear(report);
    }

    /// Counts anew who shares the upstream. While nothing can be heard of others, leave it: those
    /// who were there probably still are.
    pub fn count_sharers(&self) {
        self.0.sharers.store(self.0.breaker.sharers(), Ordering::Relaxed);
    }

    /// Ends when this process would probe and needs leave. For one caller, which then answers with
    /// [`Guard::grant`] or [`Guard::wait_longer`].
    pub async fn leave_wanted(&self) {
        self.0.breaker.leave_wanted().await;
    }

    /// Lets this process probe.
    pub fn grant(&self) -> Granted {
        self.0.breaker.grant()
    }

    /// Somebody else probes; leave may be wanted again after `pause`.
    pub fn wait_longer(&self, pause: Duration) {
        self.0.breaker.wait_longer(pause);
    }

    /// Takes the leave back if no call has come to use it.
    pub fn return_unused(&self, pause: Duration) {
        self.0.breaker.return_unused(pause);
    }

    /// Ends when the leave is used up: the probe has told, or there is none to come.
    pub async fn probed(&self) -> State {
        let mut state = self.0.breaker.watch();
        let over = state.wait_for(|state| *state != State::HalfOpen).await;
        over.map_or(State::Closed, |state| *state)
    }
}
