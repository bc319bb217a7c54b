//! The counting behind the breaker: pure, takes the time, no IO.
//!
//! `Closed` counts outcomes over a window. It opens after a run of failures, when enough of enough
//! calls fail or are slow, or when the upstream asks us to stay away. `Open` lets nothing through
//! until its time is up; then `HalfOpen` lets one probe at a time through, each with a deadline. A
//! good probe closes; a bad one opens again for twice as long, up to a cap.

use super::{
    fleet::{Decided, Leave, Told},
    peers::Peers,
};
use hydrant_proto::Cause;
use hydrant_telemetry::metrics::BreakerState as Label;
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// When a breaker opens and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// How far back outcomes count.
    pub window: Duration,
    /// Opens after this many failures in a row, over the whole fleet.
    pub consecutive: u32,
    /// Opens on the rate only when the window holds at least this many calls; opens after this many
    /// bad answers in a row, slow ones too, over the whole fleet.
    pub min_calls: u32,
    /// Opens when this share of the window's calls failed or were slow, 0 to 1.
    pub bad_share: f64,
    /// An answer whose headers took this long was slow.
    pub slow_call: Duration,
    /// How long the first opening lasts.
    pub open_for: Duration,
    /// How long an opening lasts at most, unless the upstream asks for more.
    pub open_max: Duration,
    /// Openings last up to this share longer, at random, so that processes do not probe together.
    pub jitter: f64,
    /// How long a probe may take, whatever the upstream's timeout is.
    pub probe_deadline: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(30),
            consecutive: 5,
            min_calls: 8,
            bad_share: 0.5,
            slow_call: Duration::from_secs(10),
            open_for: Duration::from_secs(5),
            open_max: Duration::from_secs(120),
            jitter: 0.2,
            probe_deadline: Duration::from_secs(10),
        }
    }
}

/// Whether the upstream is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Every call goes through.
    Closed,
    /// No call goes through until then.
    Open { until: Instant },
    /// One call at a time goes through, to see.
    HalfOpen,
}

impl State {
    pub(super) fn label(self) -> Label {
        match self {
            Self::Closed => Label::Closed,
            Self::Open { .. } => Label::Open,
            Self::HalfOpen => Label::HalfOpen,
        }
    }
}

/// How a call went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered; a 401, 403 or 404 is an answer too.
    Success,
    /// Answered, but too late to be useful.
    Slow,
    /// Not answered, or 5xx.
    Failure,
    /// Asked us to stay away, for so long if it said.
    Limited(Option<Duration>),
}

/// What was bad about an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    Failed,
    Slow,
}

/// Bad answers without a good one between them, oldest first.
pub type Row = VecDeque<(Instant, Bad)>;

/// A call let through. It counts only in the epoch it began in: what was asked before an opening
/// says nothing about the upstream after it.
#[derive(Debug, PartialEq, Eq)]
pub struct Slot {
    epoch: u64,
}

/// A call not let through: how long to stay away.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused(pub Duration);

#[derive(Debug)]
pub struct Core {
    pub(super) settings: Settings,
    pub(super) state: State,
    /// When the state began.
    pub(super) entered: Instant,
    /// Raised by each change of the state, and by each probe that takes the place of a late one.
    pub(super) epoch: u64,
    /// Until when the probe of `HalfOpen` keeps its place.
    pub(super) probe: Option<Instant>,
    pub(super) leave: Leave,
    /// Time and badness of the calls inside the window, oldest first.
    pub(super) calls: VecDeque<(Instant, bool)>,
    pub(super) row: Row,
    pub(super) last_good: Option<Instant>,
    /// Openings without a quiet window between them; doubles the next.
    pub(super) streak: u32,
    pub(super) closed_at: Option<Instant>,
    pub(super) cause: Cause,
    pub(super) peers: Peers,
    /// When the last call was let through.
    pub(super) asked: Option<Instant>,
    pub(super) told: Told,
}

/// Most calls remembered; under more traffic the window is shorter, so that a change for the worse
/// shows after at most sixteen bad answers, however much went well before.
const MAX_CALLS: usize = 32;
/// Most bad answers in a row remembered.
const MAX_ROW: usize = 16;
/// How long to stay away while somebody else's probe is under way.
pub const PROBE_PAUSE: Duration = Duration::from_secs(1);

impl Core {
    pub fn new(settings: Settings, now: Instant) -> Self {
        Self {
            settings,
            state: State::Closed,
            entered: now,
            epoch: 0,
            probe: None,
            leave: Leave::NotNeeded,
            calls: VecDeque::new(),
            row: Row::new(),
            last_good: None,
            streak: 0,
            closed_at: None,
            cause: Cause::Failing,
            peers: Peers::default(),
            asked: None,
            told: Told::default(),
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// Lets a call through, or says how long to stay away.
    pub fn admit(&mut self, now: Instant) -> Result<Slot, Refused> {
        self.half_open_if_due(now);
        if let Some(pause) = self.refusal(now) {
            return Err(Refused(pause));
        }
        if self.state == State::HalfOpen {
            self.epoch += 1;
            self.probe = Some(now + self.settings.probe_deadline);
        }
        self.asked = Some(now);
        Ok(Slot { epoch: self.epoch })
    }

    /// How long a call would have to stay away now; `None` when it would be let through.
    pub fn refusal(&self, now: Instant) -> Option<Duration> {
        match (self.state, self.probe) {
            (State::Open { until }, _) if now < until => Some(until - now),
            (State::Open { .. }, _) if self.leave != Leave::NotNeeded => Some(PROBE_PAUSE),
            (State::HalfOpen, Some(deadline)) if now < deadline => Some(PROBE_PAUSE),
            (State::Closed | State::HalfOpen | State::Open { .. }, _) => None,
        }
    }

    /// Until when the call that was just let through must have reported, if it is a probe.
    pub fn deadline(&self) -> Option<Instant> {
        self.probe
    }

    /// The call of `slot` ended without saying anything about the upstream.
    pub fn give_back(&mut self, slot: Slot) {
        if slot.epoch == self.epoch {
            self.probe = None;
        }
    }

    pub fn record(&mut self, slot: Slot, outcome: Outcome, now: Instant) {
        if let Outcome::Limited(pause) = outcome {
            return self.stay_away(pause, now);
        }
        if slot.epoch != self.epoch {
            return;
        }
        match self.state {
            State::Closed => self.count(outcome, now),
            State::HalfOpen if outcome == Outcome::Success => self.close(now),
            State::HalfOpen => self.open(now, self.entered),
            State::Open { .. } => {}
        }
    }

    /// Moves `Open` on when its time is up, unless that needs somebody's leave.
    pub fn half_open_if_due(&mut self, now: Instant) {
        if self.leave == Leave::NotNeeded && self.is_due(now) {
            self.enter(State::HalfOpen, now);
        }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        matches!(self.state, State::Open { until } if now >= until)
    }

    fn count(&mut self, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::Success | Outcome::Limited(_) => {
                self.row.clear();
                self.last_good = Some(now);
            }
            Outcome::Slow => self.row.push_back((now, Bad::Slow)),
            Outcome::Failure => self.row.push_back((now, Bad::Failed)),
        }
        if self.row.len() > MAX_ROW {
            self.row.pop_front();
        }
        self.calls.push_back((now, outcome != Outcome::Success));
        let window = self.settings.window;
        while self.calls.len() > MAX_CALLS
            || self.calls.front().is_some_and(|(at, _)| now.duration_since(*at) > window)
        {
            self.calls.pop_front();
        }
        if self.is_row_too_long() || self.is_share_too_high() {
            let first = self.calls.iter().find(|(_, bad)| *bad).map_or(now, |(at, _)| *at);
            self.open(now, self.row.front().map_or(first, |(at, _)| *at));
        }
    }

    /// Counts over the whole fleet: what others reported since the last good answer that any
    /// process is known to have got.
    pub(super) fn is_row_too_long(&self) -> bool {
        let good = self.last_good.max(self.peers.last_good());
        let since = good.map_or(self.entered, |good| good.max(self.entered));
        let own = self.row.iter().filter(|(at, _)| good.is_none_or(|good| *at >= good));
        let own = own.map(|(_, bad)| *bad);
        let (mut failed, mut all) = (0, 0);
        for bad in own.chain(self.peers.bad_since(since)) {
            failed += u32::from(bad == Bad::Failed);
            all += 1;
        }
        failed >= self.settings.consecutive || all >= self.settings.min_calls
    }

    fn is_share_too_high(&self) -> bool {
        let bad = self.calls.iter().filter(|(_, bad)| *bad).count();
        self.calls.len() >= self.settings.min_calls as usize
            && bad as f64 >= self.settings.bad_share * self.calls.len() as f64
    }

    fn open(&mut self, now: Instant, since: Instant) {
        let until = now + self.next_pause(now);
        self.decide_open(until, Cause::Failing, since, now);
    }

    /// Opens for as long as the upstream asked, which may prolong an opening but never shorten it.
    fn stay_away(&mut self, pause: Option<Duration>, now: Instant) {
        let until = match (self.state, pause) {
            (State::Open { until }, None) if now < until => return,
            (State::Open { until }, Some(pause)) if until >= now + pause => return,
            (_, None) => now + self.next_pause(now),
            (_, Some(pause)) => now + pause,
        };
        self.decide_open(until, Cause::Limited, now, now);
    }

    pub(super) fn decide_open(
        &mut self,
        until: Instant,
        cause: Cause,
        since: Instant,
        now: Instant,
    ) {
        self.cause = cause;
        self.enter(State::Open { until }, now);
        self.told.decide(Decided::Open { until, streak: self.streak, cause, since });
    }

    pub(super) fn next_pause(&mut self, now: Instant) -> Duration {
        let quiet = self.closed_at.is_none_or(|at| now.duration_since(at) > self.settings.window);
        if self.state == State::Closed && quiet {
            self.streak = 0;
        }
        let doubled = self.settings.open_for.saturating_mul(1 << self.streak.min(16));
        self.streak += 1;
        let jitter = 1.0 + self.settings.jitter * rand::random::<f64>();
        doubled.min(self.settings.open_max).mul_f64(jitter)
    }

    fn close(&mut self, now: Instant) {
        self.last_good = Some(now);
        self.be_closed(now);
        self.told.decide(Decided::Closed);
    }

    pub(super) fn be_closed(&mut self, now: Instant) {
        self.closed_at = Some(now);
        self.enter(State::Closed, now);
    }

    pub(super) fn enter(&mut self, state: State, now: Instant) {
        self.state = state;
        self.entered = now;
        self.epoch += 1;
        self.probe = None;
        self.calls.clear();
        self.row.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Outcome::{Failure, Limited, Slow, Success};
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn core() -> Core {
        Core::new(Settings { jitter: 0.0, ..Settings::default() }, Instant::now())
    }

    fn feed(core: &mut Core, outcome: Outcome, now: Instant) {
        let slot = core.admit(now).unwrap();
        core.record(slot, outcome, now);
    }

    /// Seconds until which it is open, if it is.
    fn open_for(core: &Core, now: Instant) -> Option<u64> {
        match core.state() {
            State::Open { until } => Some((until - now).as_secs()),
            State::Closed | State::HalfOpen => None,
        }
    }

    #[test]
    fn what_opens_it() {
        let repeat = |pattern: &[Outcome], times: usize| pattern.repeat(times);
        for (outcomes, opens_for) in [
            (repeat(&[Failure], 4), None),
            (repeat(&[Failure], 5), Some(5)),
            (repeat(&[Success, Failure], 3), None),
            (repeat(&[Success, Failure], 4), Some(5)),
            (repeat(&[Success, Success, Failure], 50), None),
            (repeat(&[Slow], 7), None),
            (repeat(&[Slow], 8), Some(5)),
            (repeat(&[Success], 100), None),
            ([repeat(&[Success], 200), repeat(&[Failure], 5)].concat(), Some(5)),
            (vec![Limited(Some(90 * SECOND))], Some(90)),
            (vec![Limited(None)], Some(5)),
        ] {
            let (mut core, now) = (core(), Instant::now());
            for outcome in &outcomes {
                feed(&mut core, *outcome, now);
            }
            assert_eq!(open_for(&core, now), opens_for, "{outcomes:?}");
        }
    }

    #[test]
    fn old_outcomes_are_forgotten() {
        let (mut core, start) = (core(), Instant::now());
        for i in 0..100 {
            let outcome = if i % 7 == 0 { Success } else { Slow };
            feed(&mut core, outcome, start + 5 * SECOND * i);
        }
        assert_eq!(core.state(), State::Closed);
    }

    #[test]
    fn failed_probes_double_the_pause_up_to_the_cap() {
        let (mut core, mut now) = (core(), Instant::now());
        for _ in 0..5 {
            feed(&mut core, Failure, now);
        }
        for expected in [5, 10, 20, 40, 80, 120, 120] {
            assert_eq!(open_for(&core, now), Some(expected));
            now += Duration::from_secs(expected);
            feed(&mut core, Failure, now);
        }
    }

    #[test]
    fn flapping_does_not_reset_the_pause_but_a_quiet_window_does() {
        let (mut core, mut now) = (core(), Instant::now());
        for (quiet, expected) in [(0, 5), (1, 10), (1, 20), (31, 5)] {
            now += Duration::from_secs(quiet);
            for _ in 0..5 {
                feed(&mut core, Failure, now);
            }
            assert_eq!(open_for(&core, now), Some(expected));
            now += Duration::from_secs(expected);
            feed(&mut core, Success, now);
            assert_eq!(core.state(), State::Closed);
        }
    }

    #[test]
    fn a_late_probe_makes_room_and_no_longer_counts() {
        let (mut core, mut now) = (core(), Instant::now());
        feed(&mut core, Limited(Some(SECOND)), now);
        now += SECOND;
        let late = core.admit(now).unwrap();
        assert_eq!(core.admit(now), Err(Refused(PROBE_PAUSE)));
        now += core.settings.probe_deadline;
        let next = core.admit(now).unwrap();
        core.record(late, Failure, now);
        assert_eq!(core.state(), State::HalfOpen);
        core.record(next, Success, now);
        assert_eq!(core.state(), State::Closed);
    }

    #[test]
    fn calls_from_before_an_opening_do_not_count_after_it() {
        let (mut core, mut now) = (core(), Instant::now());
        let old = [core.admit(now).unwrap(), core.admit(now).unwrap()];
        feed(&mut core, Limited(Some(SECOND)), now);
        now += SECOND;
        core.half_open_if_due(now);
        for (slot, outcome) in old.into_iter().zip([Success, Failure]) {
            core.record(slot, outcome, now);
            assert_eq!(core.state(), State::HalfOpen);
        }
    }

    #[test]
    fn a_limit_prolongs_an_opening_and_never_shortens_it() {
        let (mut core, now) = (core(), Instant::now());
        let slots: Vec<_> = (0..4).map(|_| core.admit(now).unwrap()).collect();
        for (slot, (pause, open)) in
            slots.into_iter().zip([(Some(60), 60), (Some(10), 60), (None, 60), (Some(90), 90)])
        {
            core.record(slot, Limited(pause.map(Duration::from_secs)), now);
            assert_eq!(open_for(&core, now), Some(open));
        }
    }

    proptest! {
        #[test]
        fn ten_failures_always_open_it(history in proptest::collection::vec(0..2u8, 0..300)) {
            let (mut core, now) = (core(), Instant::now());
            for good in history {
                let Ok(slot) = core.admit(now) else { return Ok(()) };
                core.record(slot, if good == 0 { Success } else { Failure }, now);
            }
            for _ in 0..10 {
                let Ok(slot) = core.admit(now) else { return Ok(()) };
                core.record(slot, Failure, now);
            }
            prop_assert!(core.admit(now).is_err());
        }
    }
}
