//! How many names that an upstream does not have it is asked for: a budget for each upstream, and
//! within it for each repository that is known to exist and for all that are not.
//!
//! Whether a name exists is known only after it was asked for, so an answer "unknown" pays, and who
//! would ask for a name nobody knows is turned away once the budget is used up. Until it has come, the
//! answer counts as if it were to be "unknown": who would overdraw the budget then waits for the answers
//! under way. Names that were found before, or that a manifest names, are never turned away and never
//! pay.

use hydrant_proto::{Digest, Reference, RepositoryName};
use moka::future::Cache;
use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// What is asked for in a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    Manifest(Reference),
    Blob(Digest),
    /// Its tags, or other lists.
    List,
}

/// What names something at the upstream.
pub type Named = (RepositoryName, Wanted);

/// A budget: so many at once, and so many a second again.
#[derive(Clone, Copy, Debug)]
struct Rate {
    burst: f64,
    per_second: f64,
}

/// All unknown names of one upstream: at most 500 in the first minute, 300 in those after.
const ALL: Rate = Rate { burst: 200.0, per_second: 5.0 };
/// Those in repositories that are not known to exist.
const STRANGE: Rate = Rate { burst: 100.0, per_second: 2.5 };
/// Those in one repository that does.
const ONE: Rate = Rate { burst: 50.0, per_second: 1.0 };
/// Most names and repositories remembered as good, and for how long after their last use.
const MAX_GOOD: u64 = 20_000;
const GOOD_FOR: Duration = Duration::from_secs(3600);

/// The budget of one upstream.
#[derive(Debug)]
pub struct Strangers {
    all: Mutex<Level>,
    strange: Mutex<Level>,
    /// The level of each repository that exists.
    repositories: Cache<RepositoryName, Arc<Mutex<Level>>>,
    good: Cache<Named, ()>,
    /// Tells that an answer has come.
    answered: Notify,
}

#[derive(Debug)]
struct Level {
    spent: f64,
    /// Calls under way.
    asked: f64,
    at: Instant,
}

/// A call for a name, until its answer has been judged.
#[derive(Debug)]
pub struct Asked<'a> {
    strangers: &'a Strangers,
    /// What it may have to pay from; `None` when the name is known.
    levels: Option<Levels>,
}

/// The level of the repository, if it is one that exists.
type Levels = Option<Arc<Mutex<Level>>>;

impl Strangers {
    pub fn new() -> Self {
        let now = Instant::now();
        Self {
            all: Mutex::new(Level::new(now)),
            strange: Mutex::new(Level::new(now)),
            repositories: Cache::builder().max_capacity(10_000).time_to_idle(GOOD_FOR).build(),
            good: Cache::builder().max_capacity(MAX_GOOD).time_to_idle(GOOD_FOR).build(),
            answered: Notify::new(),
        }
    }

    /// Whether a call for this name is of use, or how long to stay away. `sharers` processes share
    /// the budget.
    pub async fn admit(&self, named: &Named, sharers: usize) -> Result<(), Duration> {
        if self.good.get(named).await.is_some() {
            return Ok(());
        }
        let (own, now) = (self.repositories.get(&named.0).await, Instant::now());
        let own = match &own {
            Some(level) => lock(level).wait(ONE, sharers, now),
            None => lock(&self.strange).wait(STRANGE, sharers, now),
        };
        match own.max(lock(&self.all).wait(ALL, sharers, now)) {
            Some(wait) => Err(wait.max(Duration::from_secs(1))),
            None => Ok(()),
        }
    }

    /// Lets a call for this name be sent, as soon as it cannot overdraw the budget whatever becomes of
    /// those under way; or says how long to stay away.
    pub async fn enter(&self, named: &Named, sharers: usize) -> Result<Asked<'_>, Duration> {
        loop {
            let mut answered = pin!(self.answered.notified());
            answered.as_mut().enable();
            self.admit(named, sharers).await?;
            if self.good.get(named).await.is_some() {
                return Ok(Asked::known(self));
            }
            let own = self.repositories.get(&named.0).await;
            if self.begin(own.as_deref(), sharers) {
                return Ok(Asked { strangers: self, levels: Some(own) });
            }
            answered.await;
        }
    }

    /// Counts a call if there is room for it.
    fn begin(&self, own: Option<&Mutex<Level>>, sharers: usize) -> bool {
        let mut all = lock(&self.all);
        let (level, rate) = own.map_or((&self.strange, STRANGE), |level| (level, ONE));
        let mut level = lock(level);
        let has_room = all.has_room(ALL, sharers) && level.has_room(rate, sharers);
        if has_room {
            all.asked += 1.0;
            level.asked += 1.0;
        }
        has_room
    }

    /// The upstream has it.
    pub async fn found(&self, named: Named) {
        let level = async { Arc::new(Mutex::new(Level::new(Instant::now()))) };
        self.repositories.get_with_by_ref(&named.0, level).await;
        self.good.insert(named, ()).await;
    }

    /// The upstream refuses it, which is how some say that they do not have it. What was found
    /// before is there, whoever may see it.
    pub async fn denied(&self, named: &Named, sharers: usize) {
        if self.good.get(named).await.is_none() {
            self.missed(named, sharers).await;
        }
    }

    /// The upstream does not have it.
    pub async fn missed(&self, named: &Named, sharers: usize) {
        self.good.invalidate(named).await;
        let (own, now) = (self.repositories.get(&named.0).await, Instant::now());
        lock(&self.all).spend(ALL, sharers, now);
        match &own {
            Some(level) => lock(level).spend(ONE, sharers, now),
            None => lock(&self.strange).spend(STRANGE, sharers, now),
        }
    }
}

impl<'a> Asked<'a> {
    /// Of something that is no name.
    pub fn known(strangers: &'a Strangers) -> Self {
        Self { strangers, levels: None }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let Some(own) = &self.levels else { return };
        lock(&self.strangers.all).asked -= 1.0;
        lock(own.as_deref().unwrap_or(&self.strangers.strange)).asked -= 1.0;
        self.strangers.answered.notify_waiters();
    }
}

fn lock(level: &Mutex<Level>) -> MutexGuard<'_, Level> {
    level.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Level {
    fn new(now: Instant) -> Self {
        Self { spent: 0.0, asked: 0.0, at: now }
    }

    /// Whether one more call cannot overdraw it. One may be under way in any case.
    fn has_room(&self, rate: Rate, sharers: usize) -> bool {
        self.asked < 1.0 || self.spent + self.asked + 1.0 <= rate.share(sharers).burst
    }

    /// How long until something may be spent again, if nothing may be now.
    fn wait(&mut self, rate: Rate, sharers: usize, now: Instant) -> Option<Duration> {
        let share = rate.share(sharers);
        self.pass(share, now);
        let over = self.spent + 1.0 - share.burst;
        (over > 0.0).then(|| Duration::from_secs_f64(over / share.per_second))
    }

    fn spend(&mut self, rate: Rate, sharers: usize, now: Instant) {
        self.pass(rate.share(sharers), now);
        self.spent += 1.0;
    }

    fn pass(&mut self, share: Rate, now: Instant) {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.spent = (self.spent - seconds * share.per_second).max(0.0);
        self.at = now;
    }
}

impl Rate {
    fn share(self, sharers: usize) -> Self {
        let sharers = sharers.max(1) as f64;
        Self { burst: (self.burst / sharers).max(1.0), per_second: self.per_second / sharers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::future::join_all;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn tag(repository: &str, tag: &str) -> Named {
        (repository.parse().unwrap(), Wanted::Manifest(tag.parse().unwrap()))
    }

    /// How many of `names` are asked for when none exists.
    async fn asked(
        strangers: &Strangers,
        names: impl Iterator<Item = Named>,
        sharers: usize,
    ) -> usize {
        let mut asked = 0;
        for name in names {
            if strangers.admit(&name, sharers).await.is_ok() {
                strangers.missed(&name, sharers).await;
                asked += 1;
            }
        }
        asked
    }

    fn random(repositories: usize) -> impl Iterator<Item = Named> {
        (0..10_000).map(move |n| tag(&format!("x/y{}", n % repositories), &format!("t{n}")))
    }

    #[tokio::test(start_paused = true)]
    async fn ten_thousand_unknown_names_are_a_hundred_requests() {
        let strangers = Strangers::new();
        assert_eq!(asked(&strangers, random(10_000), 1).await, 100);
        assert_eq!(asked(&strangers, random(10_000), 1).await, 0);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(asked(&strangers, random(10_000), 1).await, 100);
        let shared = Strangers::new();
        assert_eq!(asked(&shared, random(10_000), 4).await, 25);
    }

    #[tokio::test(start_paused = true)]
    async fn names_asked_for_at_once_cost_no_more_than_one_after_the_other() {
        let strangers = Strangers::new();
        let asked = AtomicUsize::new(0);
        let ask = |name: Named| {
            let (strangers, asked) = (&strangers, &asked);
            async move {
                let call = strangers.enter(&name, 1).await?;
                asked.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
                strangers.missed(&name, 1).await;
                drop(call);
                Ok::<_, Duration>(())
            }
        };
        let told = join_all(random(10_000).map(ask)).await;
        assert_eq!(
            (asked.into_inner(), told.iter().filter(|told| told.is_ok()).count()),
            (100, 100)
        );
        assert_eq!(lock(&strangers.all).asked, 0.0);
    }

    #[tokio::test(start_paused = true)]
    async fn new_names_that_exist_wait_for_each_other_and_are_not_turned_away() {
        let strangers = Strangers::new();
        let ask = |n: usize| {
            let strangers = &strangers;
            async move {
                let name = tag("lab/new", &n.to_string());
                let call = strangers.enter(&name, 20).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
                strangers.found(name).await;
                call.map(drop)
            }
        };
        let began = Instant::now();
        let told = join_all((0..100).map(ask)).await;
        assert!(told.iter().all(Result::is_ok), "{told:?}");
        assert!(began.elapsed() > Duration::from_secs(10), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn an_attack_on_one_repository_leaves_others_alone() {
        let strangers = Strangers::new();
        strangers.found(tag("lab/app", "1")).await;
        strangers.found(tag("lab/db", "1")).await;
        let attack = (0..10_000).map(|n| tag("lab/app", &format!("t{n}")));
        assert_eq!(asked(&strangers, attack, 1).await, 50);
        assert!(strangers.admit(&tag("lab/app", "2"), 1).await.is_err());
        assert!(strangers.admit(&tag("lab/app", "1"), 1).await.is_ok(), "known");
        assert!(strangers.admit(&tag("lab/db", "2"), 1).await.is_ok());
        assert!(strangers.admit(&tag("new/name", "1"), 1).await.is_ok());
        assert_eq!(asked(&strangers, random(10_000), 1).await, 100);
        assert!(
            strangers.admit(&tag("lab/db", "2"), 1).await.is_ok(),
            "strangers took their own share"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_whole_has_a_bound_and_known_names_none() {
        let strangers = Strangers::new();
        for n in 0..100 {
            strangers.found(tag(&format!("lab/r{n}"), "1")).await;
        }
        let attack = (0..10_000).map(|n| tag(&format!("lab/r{}", n % 100), &format!("t{n}")));
        assert_eq!(asked(&strangers, attack, 1).await, 200);
        for n in 0..100 {
            assert!(strangers.admit(&tag(&format!("lab/r{n}"), "1"), 1).await.is_ok());
        }
        let pause = strangers.admit(&tag("lab/r1", "2"), 1).await.unwrap_err();
        assert!(pause >= Duration::from_secs(1) && pause < Duration::from_secs(5), "{pause:?}");
    }
}
