//! How fast an upstream may be asked and read by the caps of the configuration: this process's
//! share of them. Clients go first: while one waits, background work does.

use crate::{permits::Priority, urgency::Urgency};
use hydrant_rules::Caps;
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// The paces of one upstream; without a cap there is none.
#[derive(Debug)]
pub struct Pace {
    requests: Option<Meter>,
    bytes: Option<Meter>,
}

impl Pace {
    pub fn new(caps: Option<Caps>) -> Self {
        let caps = caps.unwrap_or_default();
        let meter = |rate: f64| Meter::new(rate, Instant::now());
        Self {
            requests: caps.requests_per_second.map(|rate| meter(f64::from(rate))),
            bytes: caps.bytes_per_second.map(|rate| meter(rate.0 as f64)),
        }
    }

    /// Waits until a call may begin. `sharers` processes share the cap.
    pub async fn call(&self, urgency: &Urgency, sharers: usize) {
        if let Some(requests) = &self.requests {
            requests.take(1.0, urgency, sharers).await;
        }
    }

    /// Waits as long as these bytes, which have been read, take by the cap.
    pub async fn read(&self, bytes: usize, urgency: &Urgency, sharers: usize) {
        if let Some(meter) = &self.bytes {
            meter.take(bytes as f64, urgency, sharers).await;
        }
    }
}

/// A token bucket that may be overdrawn by what is taken last, so that amounts of any size pass and
/// the rate holds all the same. It holds a tenth of a second's worth, at least one.
#[derive(Debug)]
struct Meter {
    rate: f64,
    state: Mutex<Level>,
}

#[derive(Debug)]
struct Level {
    level: f64,
    at: Instant,
    /// Clients that wait.
    waiting: usize,
}

/// Longest nap; whoever waits longer looks again, since the share may have changed.
const NAP: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(250));
/// How long background work naps while clients wait.
const STEP_ASIDE: Duration = Duration::from_millis(20);

impl Meter {
    fn new(rate: f64, now: Instant) -> Self {
        Self { rate, state: Mutex::new(Level { level: 1.0, at: now, waiting: 0 }) }
    }

    async fn take(&self, amount: f64, urgency: &Urgency, sharers: usize) {
        let rate = self.rate / sharers.max(1) as f64;
        let mut in_line = None;
        loop {
            let priority = urgency.now();
            if priority == Priority::Interactive {
                in_line.get_or_insert_with(|| Waiting::join(self));
            }
            match self.try_take(amount, priority, rate, Instant::now()) {
                Some(nap) => sleep(nap).await,
                None => return,
            }
        }
    }

    /// Takes it, or says how long to wait before trying again.
    fn try_take(
        &self,
        amount: f64,
        priority: Priority,
        rate: f64,
        now: Instant,
    ) -> Option<Duration> {
        let mut state = self.lock();
        let gained = now.saturating_duration_since(state.at).as_secs_f64() * rate;
        state.level = (state.level + gained).min((rate / 10.0).max(1.0));
        state.at = now;
        if priority == Priority::Background && state.waiting > 0 {
            return Some(STEP_ASIDE);
        }
        if state.level > 0.0 {
            state.level -= amount;
            return None;
        }
        Some(Duration::from_secs_f64(-state.level / rate).clamp(NAP.0, NAP.1))
    }

    fn lock(&self) -> MutexGuard<'_, Level> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client in line, until it is dropped.
struct Waiting<'a>(&'a Meter);

impl<'a> Waiting<'a> {
    fn join(meter: &'a Meter) -> Self {
        meter.lock().waiting += 1;
        Self(meter)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Priority::{Background, Interactive};
    use hydrant_rules::ByteSize;
    use std::sync::Arc;

    const MIB: usize = 1 << 20;

    fn caps(requests: u32, mib: u64) -> Pace {
        Pace::new(Some(Caps {
            requests_per_second: Some(requests),
            connections: None,
            bytes_per_second: Some(ByteSize(mib << 20)),
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_holds_and_is_shared() {
        for (sharers, seconds) in [(1, 10), (5, 50)] {
            let (pace, began) = (caps(20, 4), Instant::now());
            for _ in 0..200 {
                pace.call(&Interactive.into(), sharers).await;
            }
            let took = began.elapsed().as_secs();
            assert!((seconds - 1..=seconds + 1).contains(&took), "{sharers}: {took}s");
            let began = Instant::now();
            for _ in 0..160 {
                pace.read(MIB / 4, &Background.into(), sharers).await;
            }
            let took = began.elapsed().as_secs();
            assert!((seconds - 1..=seconds + 1).contains(&took), "{sharers}: {took}s for bytes");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn background_waits_while_clients_do() {
        let pace = Arc::new(caps(1_000, 1));
        let reader = |priority: Priority| {
            let urgency = Urgency::from(priority);
            let pace = pace.clone();
            tokio::spawn(async move {
                for _ in 0..20 {
                    pace.read(MIB / 4, &urgency, 1).await;
                }
                Instant::now()
            })
        };
        let (background, client) = (reader(Background), reader(Interactive));
        let (background, client) = (background.await.unwrap(), client.await.unwrap());
        assert!(client + Duration::from_secs(3) < background, "{:?}", background - client);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_cap_nobody_waits() {
        let (pace, began) = (Pace::new(None), Instant::now());
        for _ in 0..1_000 {
            pace.call(&Background.into(), 9).await;
            pace.read(MIB, &Background.into(), 9).await;
        }
        assert!(began.elapsed().is_zero());
    }
}
