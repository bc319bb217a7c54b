//! Jobs that wait to be published: one per job id, each with the time it is due.

use hydrant_proto::{HydrationRequested, JobId};
use hydrant_telemetry::{metrics, metrics::MissOutcome};
use std::{collections::HashMap, time::Duration};
use tokio::time::{Instant, sleep_until};

/// Most jobs that wait. They are in the miss log, so one that finds no room comes by the sweep.
const ROOM: usize = 20_000;

/// A job to be published.
pub struct Publishing {
    pub request: HydrationRequested,
    /// Publishes that failed.
    pub attempts: u32,
    trace: Vec<(String, String)>,
}

impl Publishing {
    pub fn new(request: HydrationRequested, trace: Vec<(String, String)>) -> Self {
        Self { request, attempts: 0, trace }
    }

    /// A trace header of the pull that missed.
    pub fn header(&self, name: &str) -> Option<String> {
        self.trace.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    }
}

#[derive(Default)]
pub struct Board {
    waiting: HashMap<JobId, (Instant, Publishing)>,
}

impl Board {
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Puts a job up, to be published after `pause`. Of two for the same job the earlier time
    /// counts and the newer request, which carries the platforms of both.
    pub fn wait(&mut self, mut publishing: Publishing, pause: Duration) {
        let id = publishing.request.id();
        let mut due = Instant::now() + pause;
        if let Some((earlier, other)) = self.waiting.remove(&id) {
            due = due.min(earlier);
            add_platforms(&mut publishing.request, other.request);
        } else if self.waiting.len() >= ROOM {
            metrics().misses.handled(MissOutcome::Dropped);
            return;
        }
        self.waiting.insert(id, (due, publishing));
    }

    /// Puts a job back up that could not be published, unless a newer request took its place.
    pub fn again(&mut self, publishing: Publishing, pause: Duration) {
        let id = publishing.request.id();
        match self.waiting.get_mut(&id) {
            Some((_, newer)) => add_platforms(&mut newer.request, publishing.request),
            None => self.wait(publishing, pause),
        }
    }

    /// Makes everything due.
    pub fn hurry(&mut self) {
        let now = Instant::now();
        for (due, _) in self.waiting.values_mut() {
            *due = now;
        }
    }

    /// A job whose time has come.
    pub fn take_due(&mut self) -> Option<Publishing> {
        let now = Instant::now();
        let id = self.waiting.iter().find(|(_, (due, _))| *due <= now).map(|(id, _)| id.clone())?;
        self.waiting.remove(&id).map(|(_, publishing)| publishing)
    }

    /// Waits until a job is due; for ever when none waits.
    pub async fn due(&self) {
        match self.waiting.values().map(|(due, _)| *due).min() {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }
}

fn add_platforms(request: &mut HydrationRequested, other: HydrationRequested) {
    for platform in other.platforms {
        if !request.platforms.contains(&platform) {
            request.platforms.push(platform);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hydrant_proto::Lane;
    use jiff::Timestamp;

    fn job(tag: &str, platform: Option<&str>) -> Publishing {
        let request = HydrationRequested {
            rule: "lab".into(),
            generation: "g".into(),
            upstream: "lab".into(),
            repository: "lab/app".parse().unwrap(),
            reference: tag.parse().unwrap(),
            lane: Lane::Interactive,
            platforms: platform.into_iter().map(|text| text.parse().unwrap()).collect(),
            requested_at: Timestamp::UNIX_EPOCH,
        };
        Publishing::new(request, Vec::new())
    }

    #[tokio::test(start_paused = true)]
    async fn an_index_waits_for_its_child_and_then_goes_at_once() {
        let mut board = Board::default();
        board.wait(job("1", None), Duration::from_secs(10));
        assert!(board.take_due().is_none());
        board.wait(job("1", Some("linux/amd64")), Duration::ZERO);
        let due = board.take_due().expect("the child's miss is due");
        assert_eq!(due.request.platforms, ["linux/amd64".parse().unwrap()]);
        assert!(board.take_due().is_none(), "one job, not two");
    }

    #[tokio::test(start_paused = true)]
    async fn an_index_without_a_child_goes_when_its_time_has_come() {
        let mut board = Board::default();
        board.wait(job("1", None), Duration::from_secs(10));
        let begun = Instant::now();
        board.due().await;
        assert_eq!(begun.elapsed().as_secs(), 10);
        assert!(board.take_due().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_refused_comes_again_with_the_platforms_asked_for_meanwhile() {
        let mut board = Board::default();
        let refused = job("1", Some("linux/arm64"));
        board.wait(job("1", Some("linux/amd64")), Duration::ZERO);
        board.again(refused, Duration::from_secs(1));
        assert_eq!(board.len(), 1);
        assert_eq!(board.take_due().expect("due").request.platforms.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reconnect_makes_everything_due() {
        let mut board = Board::default();
        board.wait(job("1", None), Duration::from_secs(30));
        board.wait(job("2", None), Duration::from_secs(30));
        board.hurry();
        assert!(board.take_due().is_some() && board.take_due().is_some());
    }
}
