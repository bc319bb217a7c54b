//! What is left of the budget that an upstream gives us, by its own word, and who may still use it:
//! background work stops while something is left for clients, and clients before the wall is hit.
//!
//! Only kinds of request whose answers speak of a budget are held back by it: Docker Hub counts
//! manifests and not blobs. Between two answers the budget is an estimate: each call takes one, and
//! where the window slides, time gives back.

mod headers;

pub use headers::{Seen, seen};

use crate::permits::Priority;
use hydrant_proto::QuotaReport;
use hydrant_telemetry::{
    metrics,
    metrics::{QuotaLeft, RequestKind, Shown},
};
use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// What is known of a budget.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    limit: Option<u64>,
    remaining: f64,
    /// What time gives back, per second.
    refill: f64,
    at: Instant,
    /// When the budget is whole again, so that nothing is known any more.
    whole_at: Instant,
    kinds: BTreeSet<String>,
}

/// How a budget stands, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub limit: Option<u64>,
    pub remaining: u64,
    /// What is kept for clients.
    pub reserve: u64,
    /// Until the budget is whole again.
    pub reset: Duration,
}

/// The budget of one upstream and credential.
#[derive(Debug)]
pub struct Quota {
    /// Percent kept for clients, as configured last.
    reserve: AtomicU32,
    known: Arc<Mutex<Option<Known>>>,
    news: watch::Sender<u64>,
    _shown: Shown,
}

/// Percent kept for clients where the configuration does not say.
const RESERVE: u32 = 20;
/// How long a budget is believed whose end nobody told.
const BELIEVED: Duration = Duration::from_secs(60);
/// Longest time until a budget is whole that another process can tell.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Shortest and longest pause told to who is held back.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

impl Quota {
    pub fn new(upstream: &str) -> Self {
        let (news, reserve) = (watch::Sender::new(0), AtomicU32::new(RESERVE));
        let known = Arc::<Mutex<Option<Known>>>::default();
        let read = Arc::clone(&known);
        let _shown = metrics().upstreams.quota(upstream, move || {
            let held = up_to(&read, Instant::now());
            held.as_ref().map(|known| QuotaLeft { remaining: known.left(), limit: known.limit })
        });
        Self { reserve, known, news, _shown }
    }

    /// Keeps this percentage for clients from now on.
    pub fn keep(&self, percent: Option<u32>) {
        self.reserve.store(percent.unwrap_or(RESERVE), Ordering::Relaxed);
    }

    /// Lets a call through, or says how long to stay away.
    pub fn admit(&self, kind: RequestKind, priority: Priority) -> Result<(), Duration> {
        let now = Instant::now();
        let mut held = self.known(now);
        let Some(known) = held.as_mut().filter(|known| known.kinds.contains(kind.as_str())) else {
            return Ok(());
        };
        let keep = match priority {
            Priority::Interactive => 0,
            Priority::Background => known.reserve(self.reserve.load(Ordering::Relaxed)),
        };
        if known.remaining >= keep as f64 + 1.0 {
            known.remaining -= 1.0;
            return Ok(());
        }
        Err(known.pause(keep, now))
    }

    /// Takes what an answer told.
    pub fn observe(&self, kind: RequestKind, seen: Seen) {
        let now = Instant::now();
        let mut held = self.known(now);
        let mut kinds = held.take().map(|known| known.kinds).unwrap_or_default();
        kinds.insert(kind.as_str().to_owned());
        *held = Some(Known::of(seen, kinds, now));
        drop(held);
        self.news.send_modify(|news| *news += 1);
    }

    /// Takes what another process was told.
    pub fn hear(&self, report: &QuotaReport) {
        let now = Instant::now();
        let mut held = self.known(now);
        let mut kinds = held.take().map(|known| known.kinds).unwrap_or_default();
        kinds.extend(report.kinds.iter().take(16).cloned());
        *held = Some(Known::heard(report, kinds, now));
    }

    /// What others should know; `None` when nothing is known.
    pub fn report(&self) -> Option<QuotaReport> {
        let now = Instant::now();
        let held = self.known(now);
        let known = held.as_ref()?;
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let window = known.limit.filter(|_| known.refill > 0.0);
        Some(QuotaReport {
            limit: known.limit,
            remaining: known.left(),
            reset: millis(known.whole_at.saturating_duration_since(now)),
            window: window
                .map(|limit| millis(Duration::from_secs_f64(limit as f64 / known.refill))),
            kinds: known.kinds.iter().cloned().collect(),
        })
    }

    /// How it stands; `None` when nothing is known.
    pub fn standing(&self) -> Option<Standing> {
        let now = Instant::now();
        let held = self.known(now);
        let known = held.as_ref()?;
        Some(Standing {
            limit: known.limit,
            remaining: known.left(),
            reserve: known.reserve(self.reserve.load(Ordering::Relaxed)),
            reset: known.whole_at.saturating_duration_since(now),
        })
    }

    /// Changes when the upstream told something.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    fn known(&self, now: Instant) -> MutexGuard<'_, Option<Known>> {
        up_to(&self.known, now)
    }
}

/// What is known at this moment.
fn up_to(known: &Mutex<Option<Known>>, now: Instant) -> MutexGuard<'_, Option<Known>> {
    let mut held = known.lock().unwrap_or_else(PoisonError::into_inner);
    if held.as_ref().is_some_and(|known| now >= known.whole_at) {
        *held = None;
    }
    if let Some(known) = held.as_mut() {
        known.pass(now);
    }
    held
}

impl Known {
    fn of(seen: Seen, kinds: BTreeSet<String>, now: Instant) -> Self {
        // A window without a reset slides: each request comes back by itself.
        let sliding = seen.window.filter(|_| seen.reset.is_none());
        let refill = refill(seen.limit, sliding);
        let whole = seen.reset.or(seen.window).unwrap_or(BELIEVED);
        let remaining = seen.remaining as f64;
        Self { limit: seen.limit, remaining, refill, at: now, whole_at: now + whole, kinds }
    }

    /// What another process says is kept within the bounds of what an upstream can say.
    fn heard(report: &QuotaReport, kinds: BTreeSet<String>, now: Instant) -> Self {
        let limit = report.limit;
        let refill = refill(limit, report.window.map(Duration::from_millis));
        let whole_at = now + Duration::from_millis(report.reset).min(LONGEST);
        let remaining = report.remaining as f64;
        Self { limit, remaining, refill, at: now, whole_at, kinds }
    }

    /// Time gives back.
    fn pass(&mut self, now: Instant) {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * self.refill;
        let most = self.limit.map_or(f64::MAX, |limit| (limit as f64).max(self.remaining));
        self.remaining = (self.remaining + gained).min(most);
        self.at = now;
    }

    fn left(&self) -> u64 {
        self.remaining.max(0.0) as u64
    }

    /// What is kept for clients. Without a known limit a few calls are.
    fn reserve(&self, percent: u32) -> u64 {
        let percent = u64::from(percent);
        match (self.limit, percent) {
            (_, 0) => 0,
            (Some(limit), percent) => (limit.saturating_mul(percent) / 100).max(1),
            (None, _) => 5,
        }
    }

    /// How long until more than `keep` is left.
    fn pause(&self, keep: u64, now: Instant) -> Duration {
        let whole = self.whole_at.saturating_duration_since(now);
        let missing = (keep as f64 + 1.0 - self.remaining).max(0.0);
        let refilled = match self.refill > 0.0 {
            true => Duration::from_secs_f64((missing / self.refill).min(PAUSE.1.as_secs_f64())),
            false => PAUSE.1,
        };
        whole.min(refilled).clamp(PAUSE.0, PAUSE.1)
    }
}

/// What a sliding window gives back, per second.
fn refill(limit: Option<u64>, window: Option<Duration>) -> f64 {
    match (limit, window) {
        (Some(limit), Some(window)) => limit as f64 / window.as_secs_f64().max(1.0),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Priority::{Background, Interactive};
    use RequestKind::{Blob, Manifest};

    const SECOND: Duration = Duration::from_secs(1);

    fn hub(remaining: u64) -> Seen {
        Seen { limit: Some(100), remaining, reset: None, window: Some(21_600 * SECOND) }
    }

    #[tokio::test(start_paused = true)]
    async fn background_stops_before_clients_and_clients_before_the_wall() {
        let quota = Quota::new("hub");
        assert!(quota.admit(Manifest, Background).is_ok(), "nothing is known");
        quota.observe(Manifest, hub(22));
        assert!((0..2).all(|_| quota.admit(Manifest, Background).is_ok()));
        let pause = quota.admit(Manifest, Background).unwrap_err();
        assert_eq!(pause.as_secs(), 216, "by then one has come back");
        assert!((0..20).all(|_| quota.admit(Manifest, Interactive).is_ok()));
        assert!(quota.admit(Manifest, Interactive).is_err());
        assert!(quota.admit(Blob, Background).is_ok(), "blobs are not counted");
        tokio::time::advance(217 * SECOND).await;
        assert!(quota.admit(Manifest, Interactive).is_ok());
        assert!(quota.admit(Manifest, Interactive).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reset_makes_it_whole() {
        let quota = Quota::new("reset");
        let seen = Seen { limit: Some(60), remaining: 0, reset: Some(30 * SECOND), window: None };
        quota.observe(Manifest, seen);
        assert_eq!(quota.admit(Manifest, Interactive), Err(30 * SECOND));
        let shown = || hydrant_telemetry::metrics_text().matches("{upstream=\"reset\"}").count();
        assert_eq!(shown(), 2);
        tokio::time::advance(30 * SECOND).await;
        assert!(quota.admit(Manifest, Background).is_ok());
        assert_eq!(shown(), 0, "nothing is known any more");
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_was_told_holds_for_the_other() {
        let (one, other) = (Quota::new("hub"), Quota::new("hub"));
        one.observe(Manifest, hub(20));
        other.hear(&one.report().unwrap());
        assert!(other.admit(Manifest, Background).is_err());
        other.keep(Some(10));
        assert!(other.admit(Manifest, Background).is_ok());
        other.keep(None);
        assert!(other.admit(Blob, Background).is_ok());
        let told = other.standing().unwrap();
        assert_eq!((told.limit, told.remaining, told.reserve), (Some(100), 19, 20));
        tokio::time::advance(217 * SECOND).await;
        assert_eq!(other.standing().unwrap().remaining, 20, "its window slides too");
    }

    #[tokio::test(start_paused = true)]
    async fn a_bare_number_is_believed_for_a_minute() {
        let quota = Quota::new("hub");
        quota.observe(Manifest, Seen { remaining: 0, ..Seen::default() });
        assert_eq!(quota.admit(Manifest, Interactive), Err(60 * SECOND));
        tokio::time::advance(61 * SECOND).await;
        assert!(quota.admit(Manifest, Interactive).is_ok());
    }
}
