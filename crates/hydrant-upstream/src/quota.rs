//! What is left of the budget that an upstream gives us, by its own word, and who may still use it:
//! background work stops while something is left for clients, and clients before the wall is hit.
//!
//! Only kinds of request whose answers speak of a budget are held back by it: Docker Hub counts
//! manifests and not blobs. Between two answers the budget is an estimate: where the window slides,
//! time gives back, and calls under way may not have been counted yet when another one's answer was
//! written. So no more of them are under way at once than one process may have of what is left; one
//! that would be too many waits for their answers.

mod headers;

pub use headers::{Seen, seen};

use crate::permits::Priority;
use hydrant_proto::QuotaReport;
use hydrant_telemetry::{
    metrics,
    metrics::{QuotaLeft, RequestKind, Shown},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

/// What is known of a budget.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    limit: Option<u64>,
    /// By the upstream's word, without calls under way.
    remaining: f64,
    /// Calls of this process under way, of these kinds.
    under_way: u64,
    /// When the upstream's word arrived, and whether it was for this process.
    told_at: Instant,
    is_own: bool,
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
    /// Tells that an answer has come.
    ended: Notify,
    under_way: Mutex<BTreeMap<&'static str, u64>>,
    news: watch::Sender<u64>,
    _shown: Shown,
}

/// A call that was let through, until it is over.
#[derive(Debug)]
pub struct Counted<'a> {
    quota: &'a Quota,
    kind: RequestKind,
    /// Sent, and not answered by a word on the budget.
    is_open: AtomicBool,
}

/// Percent kept for clients where the configuration does not say.
const RESERVE: u32 = 20;
/// How long a budget is believed whose end nobody told.
const BELIEVED: Duration = Duration::from_secs(60);
/// How much older than our own the word of another process may be that arrives after it.
const LATE: Duration = Duration::from_secs(1);
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
        let (ended, under_way) = (Notify::new(), Mutex::default());
        Self { reserve, known, ended, under_way, news, _shown }
    }

    /// Keeps this percentage for clients from now on.
    pub fn keep(&self, percent: Option<u32>) {
        self.reserve.store(percent.unwrap_or(RESERVE), Ordering::Relaxed);
    }

    /// Lets a call through as soon as it has its place beside those of this process under way, of
    /// which there are no more than `sharers` processes may each have; or says how long to stay away.
    pub async fn admit(
        &self,
        kind: RequestKind,
        priority: Priority,
        sharers: usize,
    ) -> Result<Counted<'_>, Duration> {
        loop {
            let mut ended = pin!(self.ended.notified());
            ended.as_mut().enable();
            if let Some(counted) = self.begin(kind, priority, sharers)? {
                return Ok(counted);
            }
            ended.await;
        }
    }

    /// How long a call of this kind would have to stay away, if nothing is left for it.
    pub fn refusal(&self, kind: RequestKind, priority: Priority) -> Option<Duration> {
        let now = Instant::now();
        let held = self.known(now);
        let known = held.as_ref().filter(|known| known.kinds.contains(kind.as_str()))?;
        let keep = self.kept(known, priority);
        (known.remaining < keep as f64 + 1.0).then(|| known.pause(keep, now))
    }

    /// `None` while only the answers to calls under way can tell.
    fn begin(
        &self,
        kind: RequestKind,
        priority: Priority,
        sharers: usize,
    ) -> Result<Option<Counted<'_>>, Duration> {
        let now = Instant::now();
        let mut held = self.known(now);
        if let Some(known) = held.as_mut().filter(|known| known.kinds.contains(kind.as_str())) {
            let keep = self.kept(known, priority);
            if known.remaining < keep as f64 + 1.0 {
                return Err(known.pause(keep, now));
            }
            let share = (known.remaining - keep as f64) / sharers.max(1) as f64;
            // One goes in any case: otherwise the last few would be nobody's.
            if known.under_way > 0 && known.under_way as f64 + 1.0 > share {
                return Ok(None);
            }
            known.under_way += 1;
        }
        *self.under_way().entry(kind.as_str()).or_default() += 1;
        Ok(Some(Counted { quota: self, kind, is_open: AtomicBool::new(false) }))
    }

    /// What a call of this priority has to leave.
    fn kept(&self, known: &Known, priority: Priority) -> u64 {
        match priority {
            Priority::Interactive => 0,
            Priority::Background => known.reserve(self.reserve.load(Ordering::Relaxed)),
        }
    }

    /// Calls under way that may be counted, by kind. Taken after what is known.
    fn under_way(&self) -> MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls under way of these kinds.
    fn count(&self, kinds: &BTreeSet<String>) -> u64 {
        self.under_way().iter().filter(|(kind, _)| kinds.contains(**kind)).map(|(_, n)| n).sum()
    }

    /// Takes what the answer to a request of this kind told, which was sent then.
    fn observe(&self, kind: RequestKind, sent: Instant, seen: Seen) {
        let now = Instant::now();
        let mut held = self.known(now);
        let before = held.take();
        let mut kinds = before.as_ref().map(|known| known.kinds.clone()).unwrap_or_default();
        kinds.insert(kind.as_str().to_owned());
        let mut known = Known::of(seen, kinds, now);
        known.under_way = self.count(&known.kinds);
        // What was under way when the last word came may have been counted, and answered, before it.
        if let Some(before) = before.filter(|before| before.is_own && sent < before.told_at) {
            known.remaining = known.remaining.min(before.remaining);
            known.told_at = before.told_at;
        }
        *held = Some(known);
        drop(held);
        self.ended.notify_waiters();
        self.news.send_modify(|news| *news += 1);
    }

    /// A call is over.
    fn end(&self, counted: &Counted<'_>) {
        let kind = counted.kind.as_str();
        let mut held = self.known(Instant::now());
        if let Some(known) = held.as_mut().filter(|known| known.kinds.contains(kind)) {
            known.under_way = known.under_way.saturating_sub(1);
            if counted.is_open.load(Ordering::Relaxed) {
                // It may have been counted all the same.
                known.remaining -= 1.0;
            }
        }
        let mut under_way = self.under_way();
        if let Some(calls) = under_way.get_mut(kind) {
            *calls -= 1;
        }
        drop((under_way, held));
        self.ended.notify_waiters();
    }

    /// Takes what another process was told.
    pub fn hear(&self, report: &QuotaReport) {
        let now = Instant::now();
        let mut held = self.known(now);
        let before = held.take();
        let mut kinds = before.as_ref().map(|known| known.kinds.clone()).unwrap_or_default();
        kinds.extend(report.kinds.iter().take(16).cloned());
        let mut known = Known::heard(report, kinds, now);
        known.under_way = self.count(&known.kinds);
        if let Some(before) = before.filter(|before| before.is_own && now < before.told_at + LATE) {
            known.remaining = known.remaining.min(before.remaining);
            (known.told_at, known.is_own) = (before.told_at, true);
        }
        *held = Some(known);
        drop(held);
        self.ended.notify_waiters();
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
            remaining: known.remaining.max(0.0) as u64,
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

impl Counted<'_> {
    /// A request is sent.
    pub fn sent(&self) -> Instant {
        self.is_open.store(true, Ordering::Relaxed);
        Instant::now()
    }

    /// Takes what the answer to the request told, which was sent then.
    pub fn told(&self, sent: Instant, seen: Seen) {
        self.is_open.store(false, Ordering::Relaxed);
        self.quota.observe(self.kind, sent, seen);
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.quota.end(self);
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
        Self {
            limit: seen.limit,
            remaining,
            under_way: 0,
            told_at: now,
            is_own: true,
            refill,
            at: now,
            whole_at: now + whole,
            kinds,
        }
    }

    /// What another process says is kept within the bounds of what an upstream can say.
    fn heard(report: &QuotaReport, kinds: BTreeSet<String>, now: Instant) -> Self {
        let limit = report.limit;
        let refill = refill(limit, report.window.map(Duration::from_millis));
        let whole_at = now + Duration::from_millis(report.reset).min(LONGEST);
        let remaining = report.remaining as f64;
        let (under_way, told_at, is_own) = (0, now, false);
        Self { limit, remaining, under_way, told_at, is_own, refill, at: now, whole_at, kinds }
    }

    /// Time gives back.
    fn pass(&mut self, now: Instant) {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * self.refill;
        let most = self.limit.map_or(f64::MAX, |limit| (limit as f64).max(self.remaining));
        self.remaining = (self.remaining + gained).min(most);
        self.at = now;
    }

    /// What is left when all that is under way has been counted.
    fn left(&self) -> u64 {
        (self.remaining - self.under_way as f64).max(0.0) as u64
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
    use futures::future::join_all;
    use std::sync::atomic::AtomicU64;

    const SECOND: Duration = Duration::from_secs(1);

    fn hub(remaining: u64) -> Seen {
        Seen { limit: Some(100), remaining, reset: None, window: Some(21_600 * SECOND) }
    }

    /// A call that was sent, if it may be by now.
    fn begin(
        quota: &Quota,
        kind: RequestKind,
        priority: Priority,
    ) -> Result<Counted<'_>, Duration> {
        let counted = quota.begin(kind, priority, 1)?.expect("nothing else is under way");
        counted.sent();
        Ok(counted)
    }

    /// One whose answer tells nothing.
    fn admit(quota: &Quota, kind: RequestKind, priority: Priority) -> Result<(), Duration> {
        begin(quota, kind, priority).map(drop)
    }

    fn observe(quota: &Quota, seen: Seen) {
        begin(quota, Manifest, Interactive).unwrap().told(Instant::now(), seen);
    }

    #[tokio::test(start_paused = true)]
    async fn background_stops_before_clients_and_clients_before_the_wall() {
        let quota = Quota::new("hub");
        assert!(admit(&quota, Manifest, Background).is_ok(), "nothing is known");
        observe(&quota, hub(22));
        assert!((0..2).all(|_| admit(&quota, Manifest, Background).is_ok()));
        let pause = admit(&quota, Manifest, Background).unwrap_err();
        assert_eq!(pause.as_secs(), 216, "by then one has come back");
        assert!((0..20).all(|_| admit(&quota, Manifest, Interactive).is_ok()));
        assert!(admit(&quota, Manifest, Interactive).is_err());
        assert!(admit(&quota, Blob, Background).is_ok(), "blobs are not counted");
        tokio::time::advance(217 * SECOND).await;
        assert!(admit(&quota, Manifest, Interactive).is_ok());
        assert!(admit(&quota, Manifest, Interactive).is_err());
    }

    /// An upstream that counts when a request comes, and whose answers overtake each other.
    async fn ask(
        quotas: &[Quota],
        n: usize,
        left: &AtomicU64,
        over: &AtomicU64,
    ) -> Result<(), Duration> {
        let counted = quotas[n % quotas.len()].admit(Manifest, Interactive, quotas.len()).await?;
        let sent = counted.sent();
        let before =
            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if before.is_err() {
            over.fetch_add(1, Ordering::Relaxed);
        }
        let remaining = left.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(10 + (n as u64 * 7919) % 50)).await;
        let reset = Some(3600 * SECOND);
        counted.told(sent, Seen { limit: Some(100), remaining, reset, window: None });
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn calls_under_way_are_not_forgotten_by_whom_an_answer_tells_what_is_left() {
        let (left, over) = (AtomicU64::new(31), AtomicU64::new(0));
        let quotas = [Quota::new("hub")];
        ask(&quotas, 0, &left, &over).await.unwrap();
        let told = join_all((0..200).map(|n| ask(&quotas, n, &left, &over))).await;
        let served = told.iter().filter(|told| told.is_ok()).count();
        assert_eq!((served, over.into_inner()), (30, 0), "all that was left, and no more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_fleet_takes_what_is_left_and_little_more() {
        let (left, over) = (AtomicU64::new(61), AtomicU64::new(0));
        let quotas = ["a", "b", "c"].map(Quota::new);
        ask(&quotas, 0, &left, &over).await.unwrap();
        let hear = async {
            loop {
                tokio::time::sleep(Duration::from_millis(5)).await;
                for told in &quotas {
                    let report = told.report();
                    let others = quotas.iter().filter(|quota| !std::ptr::eq(*quota, told));
                    others
                        .zip(report.iter().cycle())
                        .for_each(|(quota, report)| quota.hear(report));
                }
            }
        };
        tokio::time::sleep(Duration::from_millis(1)).await;
        quotas[1].hear(&quotas[0].report().unwrap());
        quotas[2].hear(&quotas[0].report().unwrap());
        let told = tokio::select! {
            told = join_all((0..300).map(|n| ask(&quotas, n, &left, &over))) => told,
            () = hear => unreachable!("it goes on for ever"),
        };
        let served = told.iter().filter(|told| told.is_ok()).count() as u64;
        let over = over.into_inner();
        assert_eq!(served, 60 + over);
        assert!(over <= 2, "{over}: one for each of the others");
    }

    #[tokio::test(start_paused = true)]
    async fn a_single_process_of_a_fleet_gets_all_that_is_left_for_its_clients() {
        let quota = Quota::new("hub");
        observe(&quota, hub(9));
        for left in (0..9).rev() {
            let counted = quota.admit(Manifest, Interactive, 6).await.unwrap();
            counted.told(counted.sent(), hub(left));
        }
        assert!(quota.admit(Manifest, Interactive, 6).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reset_makes_it_whole() {
        let quota = Quota::new("reset");
        let seen = Seen { limit: Some(60), remaining: 0, reset: Some(30 * SECOND), window: None };
        observe(&quota, seen);
        assert_eq!(admit(&quota, Manifest, Interactive), Err(30 * SECOND));
        let shown = || hydrant_telemetry::metrics_text().matches("{upstream=\"reset\"}").count();
        assert_eq!(shown(), 2);
        tokio::time::advance(30 * SECOND).await;
        assert!(admit(&quota, Manifest, Background).is_ok());
        assert_eq!(shown(), 0, "nothing is known any more");
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_was_told_holds_for_the_other() {
        let (one, other) = (Quota::new("hub"), Quota::new("hub"));
        observe(&one, hub(20));
        other.hear(&one.report().unwrap());
        assert!(admit(&other, Manifest, Background).is_err());
        other.keep(Some(10));
        assert!(admit(&other, Manifest, Background).is_ok());
        other.keep(None);
        assert!(admit(&other, Blob, Background).is_ok());
        let told = other.standing().unwrap();
        assert_eq!((told.limit, told.remaining, told.reserve), (Some(100), 19, 20));
        tokio::time::advance(217 * SECOND).await;
        assert_eq!(other.standing().unwrap().remaining, 20, "its window slides too");
    }

    #[tokio::test(start_paused = true)]
    async fn a_bare_number_is_believed_for_a_minute() {
        let quota = Quota::new("hub");
        observe(&quota, Seen { remaining: 0, ..Seen::default() });
        assert_eq!(admit(&quota, Manifest, Interactive), Err(60 * SECOND));
        tokio::time::advance(61 * SECOND).await;
        assert!(admit(&quota, Manifest, Interactive).is_ok());
    }
}
