//! Which processes were out of reach a moment ago, so that only the first blob waits to find it out.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// How long nobody tries to reach one that could not be reached.
const LEFT_ALONE: Duration = Duration::from_secs(10);
/// After that, how long one short try comes before a long wait.
const DOUBTED: Duration = Duration::from_secs(10 * 60);

/// What is known of the way to another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Nothing is wrong, as far as anybody knows.
    Open,
    /// It was closed a moment ago.
    Closed,
    /// It was closed a while ago.
    Doubtful,
}

/// Those who could not be reached, and since when.
#[derive(Debug, Default)]
pub(crate) struct Reach(Mutex<HashMap<SocketAddr, Instant>>);

impl Reach {
    pub fn way(&self, to: SocketAddr, now: Instant) -> Way {
        match self.lost_since().get(&to).map(|since| now.saturating_duration_since(*since)) {
            Some(ago) if ago < LEFT_ALONE => Way::Closed,
            Some(ago) if ago < DOUBTED => Way::Doubtful,
            Some(_) | None => Way::Open,
        }
    }

    /// It could not be reached; the way before that.
    pub fn lost(&self, peer: SocketAddr, now: Instant) -> Way {
        let before = self.way(peer, now);
        let mut lost = self.lost_since();
        lost.retain(|_, since| now.saturating_duration_since(*since) < DOUBTED);
        lost.insert(peer, now);
        before
    }

    /// It answered.
    pub fn found(&self, peer: SocketAddr) {
        self.lost_since().remove(&peer);
    }

    fn lost_since(&self) -> MutexGuard<'_, HashMap<SocketAddr, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_lost_is_left_alone_then_doubted_and_forgotten() {
        let (reach, now) = (Reach::default(), Instant::now());
        let peer: SocketAddr = "10.0.0.1:1".parse().unwrap();
        assert_eq!(reach.lost(peer, now), Way::Open);
        for (later, way) in [
            (Duration::ZERO, Way::Closed),
            (LEFT_ALONE, Way::Doubtful),
            (DOUBTED - Duration::from_secs(1), Way::Doubtful),
            (DOUBTED, Way::Open),
        ] {
            assert_eq!(reach.way(peer, now + later), way, "{later:?}");
        }
        assert_eq!(reach.lost(peer, now + LEFT_ALONE), Way::Doubtful);
        assert_eq!(reach.way(peer, now + LEFT_ALONE), Way::Closed);
        reach.found(peer);
        assert_eq!(reach.way(peer, now), Way::Open);
    }
}
