//! The part of the counting that makes one fleet of several processes: pure, like the rest.
//!
//! A process tells of what it saw itself and of what it decided by that; it never passes on what it
//! heard. Bad answers in a row are counted over all processes, so that an upstream that is down is
//! noticed after a few failures in all and not after a few in each. An opening that another
//! process decided on is only a hint to one that had a good answer meanwhile: the other's own way
//! may be what is broken.

use super::{
    counting::{Bad, Core, State},
    peers::ago,
};
use hydrant_proto::{Cause, UpstreamReport, Verdict};
use std::time::Duration;
use tokio::time::Instant;

/// Who decides that it is our turn to probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// This process itself.
    NotNeeded,
    /// The fleet, of which one process probes at a time.
    Needed(Wishes),
}

/// Whether there is anything to probe with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// When a call was refused last.
    called: Option<Instant>,
    attendance: Attendance,
}

/// Whether work in the background waits for the upstream whenever it is left alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attendance {
    #[default]
    None,
    Standing,
}

/// A refused call, or one that stands in for all that may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    Called,
    Standing,
}

/// The last decision that rests on what this process saw itself.
#[derive(Debug, Default)]
pub struct Told {
    seq: u64,
    verdict: Option<Decided>,
}

#[derive(Clone, Copy, Debug)]
pub enum Decided {
    Closed,
    Open { until: Instant, streak: u32, cause: Cause, since: Instant },
}

/// What became of a leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granted {
    Taken,
    /// Things have changed since it was asked for.
    TooLate,
}

/// Longest opening another process can impose: as long as an upstream could.
const MAX_HEARD: Duration = Duration::from_secs(3_600);

/// How long a process counts as one that asks the upstream after it did.
const ACTIVE: Duration = Duration::from_secs(60);

/// How long a refused caller is taken to come again.
const CALLED: Duration = Duration::from_secs(2);
/// How long those without a caller let those with one go first.
pub const STAND_BACK: Duration = Duration::from_secs(1);

impl Told {
    pub fn decide(&mut self, decided: Decided) {
        self.seq += 1;
        self.verdict = Some(decided);
    }
}

impl Core {
    /// From now on a probe needs leave.
    pub fn ask_for_leave(&mut self) {
        if self.leave == Leave::NotNeeded {
            self.leave = Leave::Needed(Wishes::default());
        }
    }

    /// Somebody would like to call as soon as that is possible.
    pub fn want(&mut self, interest: Interest, now: Instant) {
        if let Leave::Needed(wishes) = &mut self.leave {
            match interest {
                Interest::Called => wishes.called = Some(now),
                Interest::Standing => wishes.attendance = Attendance::Standing,
            }
        }
    }

    /// Whether leave for a probe should be asked for now: by those with a caller at once, by those
    /// where work may wait a little later, since it may also not.
    pub fn wants_leave(&self, now: Instant) -> bool {
        let Leave::Needed(wishes) = self.leave else { return false };
        let called = wishes.called.is_some_and(|at| now.duration_since(at) < CALLED);
        let standing = wishes.attendance == Attendance::Standing;
        match self.state {
            State::Open { until } if called => now >= until,
            State::Open { until } if standing => now >= until + STAND_BACK,
            State::Open { .. } | State::HalfOpen | State::Closed => false,
        }
    }

    /// Lets this process send the next probe.
    pub fn grant(&mut self, now: Instant) -> Granted {
        if !self.wants_leave(now) {
            return Granted::TooLate;
        }
        self.enter(State::HalfOpen, now);
        Granted::Taken
    }

    /// Somebody else probes: wait so much longer.
    pub fn wait_longer(&mut self, pause: Duration, now: Instant) {
        if self.is_due(now) {
            self.enter(State::Open { until: now + pause }, now);
        }
    }

    /// Nobody came to use the leave: it goes to others. A probe under way keeps it.
    pub fn return_unused(&mut self, pause: Duration, now: Instant) {
        if self.state == State::HalfOpen && self.probe.is_none() {
            self.enter(State::Open { until: now + pause }, now);
            if let Leave::Needed(wishes) = &mut self.leave {
                wishes.called = None;
            }
        }
    }

    /// Takes what another process reported.
    pub fn hear(&mut self, process: &str, report: &UpstreamReport, now: Instant) {
        match self.peers.hear(process, report, now) {
            Verdict::None => {}
            Verdict::Closed => self.hear_closed(now),
            Verdict::Open { left, streak, cause, since } => {
                let left = Duration::from_millis(left).min(MAX_HEARD);
                self.hear_open(left, streak, cause, ago(now, since), now);
            }
        }
        if self.state == State::Closed && self.is_row_too_long() {
            self.open_with_others(now);
        }
    }

    fn open_with_others(&mut self, now: Instant) {
        let first = self.row.front().map(|(at, _)| *at);
        let until = now + self.next_pause(now);
        match first {
            Some(since) => self.decide_open(until, Cause::Failing, since, now),
            // Those who saw it tell of it.
            None => self.adopt(until, Cause::Failing, now),
        }
    }

    fn hear_open(
        &mut self,
        left: Duration,
        streak: u32,
        cause: Cause,
        since: Option<Instant>,
        now: Instant,
    ) {
        let later = |good: Instant| since.is_none_or(|since| good > since);
        let until = match (self.state, cause) {
            _ if left.is_zero() => return,
            (State::Closed, Cause::Failing) if self.last_good.is_some_and(later) => return,
            (State::Closed, Cause::Failing) => now + left.min(self.settings.open_for),
            (State::Open { until }, _) => until.max(now + left),
            (State::HalfOpen, _) | (State::Closed, Cause::Limited) => now + left,
        };
        self.streak = self.streak.max(streak.min(16));
        self.adopt(until, cause, now);
    }

    fn adopt(&mut self, until: Instant, cause: Cause, now: Instant) {
        let limited = self.cause == Cause::Limited && matches!(self.state, State::Open { .. });
        self.cause = if limited { Cause::Limited } else { cause };
        self.enter(State::Open { until }, now);
    }

    /// A limit that the upstream named itself outlasts somebody's good probe.
    fn hear_closed(&mut self, now: Instant) {
        match self.state {
            State::Open { until } if self.cause == Cause::Limited && now < until => {}
            State::Open { .. } | State::HalfOpen => self.be_closed(now),
            State::Closed => {}
        }
    }

    pub fn forget(&mut self, process: &str) {
        self.peers.forget(process);
    }

    /// How many processes ask the upstream, this one included.
    pub fn sharers(&mut self, now: Instant) -> usize {
        1 + self.peers.count(now)
    }

    /// Whether something goes wrong somewhere, so that a good answer is news.
    pub fn is_suspicious(&self) -> bool {
        let told = self.last_good.map_or(self.entered, |good| good.max(self.entered));
        !self.row.is_empty() || self.peers.bad_since(told).next().is_some()
    }

    /// Raised by each decision that rests on what this process saw.
    pub fn decisions(&self) -> u64 {
        self.told.seq
    }

    /// Whether this process has made a call in the last minute.
    pub fn is_active(&self, now: Instant) -> bool {
        self.asked.is_some_and(|asked| now.duration_since(asked) < ACTIVE)
    }

    /// What this process has to say.
    pub fn report(&self, now: Instant) -> UpstreamReport {
        let age = |at: Instant| millis(now.saturating_duration_since(at));
        let ages = |kind: Bad| {
            self.row.iter().filter(|(_, bad)| *bad == kind).map(|(at, _)| age(*at)).collect()
        };
        let verdict = match self.told.verdict {
            None => Verdict::None,
            Some(Decided::Closed) => Verdict::Closed,
            Some(Decided::Open { until, streak, cause, since }) => {
                // Somebody else may have closed it since.
                let is_open = matches!(self.state, State::Open { .. });
                let until = if is_open { until } else { now };
                let left = millis(until.saturating_duration_since(now));
                Verdict::Open { left, streak, cause, since: age(since) }
            }
        };
        UpstreamReport {
            failed: ages(Bad::Failed),
            slow: ages(Bad::Slow),
            good: self.last_good.map(age),
            verdict,
            seq: self.told.seq,
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::counting::{Outcome, Outcome::*, Refused, Settings};
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Processes that hear everything at once.
    struct Fleet(Vec<Core>, Instant);

    impl Fleet {
        fn new(size: usize) -> Self {
            let now = Instant::now();
            let settings = Settings { jitter: 0.0, ..Settings::default() };
            let mut all: Vec<_> = (0..size).map(|_| Core::new(settings, now)).collect();
            all.iter_mut().for_each(Core::ask_for_leave);
            Self(all, now)
        }

        /// Whether process `n` was let through.
        fn call(&mut self, n: usize, outcome: Outcome) -> Result<(), Refused> {
            self.1 += Duration::from_millis(1);
            let slot = self.0[n].admit(self.1)?;
            self.0[n].record(slot, outcome, self.1);
            self.tell(n);
            Ok(())
        }

        fn tell(&mut self, n: usize) {
            let report = self.0[n].report(self.1);
            for (other, core) in self.0.iter_mut().enumerate().filter(|(other, _)| *other != n) {
                let _ = other;
                core.hear(&n.to_string(), &report, self.1);
            }
        }

        fn open(&self) -> usize {
            self.0.iter().filter(|core| matches!(core.state(), State::Open { .. })).count()
        }
    }

    #[test]
    fn six_processes_open_after_five_failures_in_all() {
        let mut fleet = Fleet::new(6);
        (0..6).for_each(|n| fleet.call(n, Success).unwrap());
        for n in 0..5 {
            assert_eq!(fleet.open(), 0, "{n} failures");
            fleet.call(n, Failure).unwrap();
        }
        assert_eq!(fleet.open(), 6);
    }

    #[test]
    fn slow_answers_count_over_the_fleet_too() {
        let mut fleet = Fleet::new(4);
        for n in 0..8 {
            assert_eq!(fleet.open(), 0, "{n} slow answers");
            fleet.call(n % 4, Slow).unwrap();
        }
        assert_eq!(fleet.open(), 4);
    }

    #[test]
    fn a_good_answer_anywhere_ends_the_row() {
        let mut fleet = Fleet::new(3);
        for _ in 0..20 {
            for (n, outcome) in [(0, Failure), (1, Failure), (2, Success), (0, Success)] {
                fleet.call(n, outcome).unwrap();
            }
            for n in [0, 1, 1] {
                fleet.call(n, Success).unwrap();
            }
        }
        assert_eq!(fleet.open(), 0);
    }

    #[test]
    fn a_process_with_a_broken_way_opens_alone() {
        let mut fleet = Fleet::new(3);
        for _ in 0..5 {
            fleet.call(0, Failure).unwrap();
            // The others do well but tell nobody.
            for n in [1, 2] {
                let slot = fleet.0[n].admit(fleet.1).unwrap();
                fleet.0[n].record(slot, Success, fleet.1 + Duration::from_micros(10));
            }
        }
        assert_eq!(fleet.open(), 1);
    }

    #[test]
    fn one_leave_one_probe_and_its_outcome_is_everybodys() {
        let mut fleet = Fleet::new(3);
        (0..5).for_each(|_| fleet.call(0, Failure).unwrap());
        assert_eq!(fleet.open(), 3);
        fleet.1 += 6 * SECOND;
        for core in &mut fleet.0 {
            assert!(core.admit(fleet.1).is_err(), "no probe without leave");
            assert!(!core.wants_leave(fleet.1));
            core.want(Interest::Called, fleet.1);
            assert!(core.wants_leave(fleet.1));
        }
        assert_eq!(fleet.0[1].grant(fleet.1), Granted::Taken);
        fleet.call(1, Failure).unwrap();
        assert_eq!(fleet.open(), 3);
        let now = fleet.1;
        for core in &fleet.0 {
            let left = core.refusal(now).unwrap();
            assert!(left > 9 * SECOND, "twice as long for all: {left:?}");
        }
        fleet.1 += 11 * SECOND;
        fleet.0[2].want(Interest::Called, fleet.1);
        assert_eq!(fleet.0[2].grant(fleet.1), Granted::Taken);
        fleet.call(2, Success).unwrap();
        assert_eq!(fleet.open(), 0);
    }

    #[test]
    fn a_limit_is_obeyed_by_all_and_outlasts_a_good_probe() {
        let mut fleet = Fleet::new(3);
        (0..3).for_each(|n| fleet.call(n, Success).unwrap());
        fleet.call(0, Limited(Some(60 * SECOND))).unwrap();
        assert_eq!(fleet.open(), 3);
        let closed = UpstreamReport { verdict: Verdict::Closed, seq: 9, ..Default::default() };
        fleet.0[1].hear("stranger", &closed, fleet.1);
        assert_eq!(fleet.open(), 3);
    }

    #[test]
    fn an_unused_leave_goes_back() {
        let mut fleet = Fleet::new(1);
        (0..5).for_each(|_| fleet.call(0, Failure).unwrap());
        let (core, now) = (&mut fleet.0[0], fleet.1 + 6 * SECOND);
        core.want(Interest::Called, now);
        assert_eq!(core.grant(now), Granted::Taken);
        core.return_unused(SECOND, now);
        assert_eq!(core.refusal(now), Some(SECOND));
        assert!(!core.wants_leave(now + SECOND), "the caller is gone");
        core.want(Interest::Standing, now);
        assert!(!core.wants_leave(now + SECOND), "those with a caller go first");
        assert_eq!(core.grant(now + 2 * SECOND), Granted::Taken);
        let _probe = core.admit(now + 2 * SECOND).unwrap();
        core.return_unused(SECOND, now + 2 * SECOND);
        assert_eq!(core.state(), State::HalfOpen, "a probe under way keeps it");
    }

    #[test]
    fn odd_reports_do_no_harm() {
        let mut fleet = Fleet::new(1);
        let verdict = Verdict::Open {
            left: u64::MAX,
            streak: u32::MAX,
            cause: Cause::Limited,
            since: u64::MAX,
        };
        let odd = UpstreamReport {
            failed: vec![u64::MAX; 100],
            slow: vec![u64::MAX],
            good: Some(u64::MAX),
            verdict,
            seq: 1,
        };
        fleet.0[0].hear("odd", &odd, fleet.1);
        assert!(fleet.0[0].refusal(fleet.1).unwrap() <= MAX_HEARD);
    }
}
