//! What other processes saw of the upstream, as far as they said so.

use super::counting::{Bad, Row};
use hydrant_proto::{UpstreamReport, Verdict};
use std::{collections::HashMap, time::Duration};
use tokio::time::Instant;

/// How long a report holds that is not renewed; whoever asks an upstream renews it sooner.
const BELIEVED: Duration = Duration::from_secs(60);

/// The reports of other processes, by process.
#[derive(Debug, Default)]
pub struct Peers(HashMap<String, Peer>);

#[derive(Debug)]
struct Peer {
    at: Instant,
    seq: u64,
    row: Row,
    good: Option<Instant>,
}

impl Peers {
    /// Takes a report, and returns its verdict when it is a new one.
    pub fn hear(&mut self, process: &str, report: &UpstreamReport, now: Instant) -> Verdict {
        self.forget_the_silent(now);
        let failed = report.failed.iter().map(|age| (*age, Bad::Failed));
        let bad = failed.chain(report.slow.iter().map(|age| (*age, Bad::Slow)));
        let row = bad.filter_map(|(age, bad)| Some((ago(now, age)?, bad))).collect();
        let good = report.good.and_then(|age| ago(now, age));
        let peer = Peer { at: now, seq: report.seq, row, good };
        let before = self.0.insert(process.to_owned(), peer).map_or(0, |peer| peer.seq);
        if before == report.seq { Verdict::None } else { report.verdict }
    }

    pub fn forget(&mut self, process: &str) {
        self.0.remove(process);
    }

    /// How many processes there are.
    pub fn count(&mut self, now: Instant) -> usize {
        self.forget_the_silent(now);
        self.0.len()
    }

    pub fn last_good(&self) -> Option<Instant> {
        self.0.values().filter_map(|peer| peer.good).max()
    }

    /// The bad answers of others after `since`.
    pub fn bad_since(&self, since: Instant) -> impl Iterator<Item = Bad> {
        let rows = self.0.values().flat_map(|peer| peer.row.iter());
        rows.filter(move |(at, _)| *at > since).map(|(_, bad)| *bad)
    }

    fn forget_the_silent(&mut self, now: Instant) {
        self.0.retain(|_, peer| now.duration_since(peer.at) < BELIEVED);
    }
}

/// That long ago; `None` is before this machine's clock began.
pub fn ago(now: Instant, millis: u64) -> Option<Instant> {
    now.checked_sub(Duration::from_millis(millis))
}
