//! Every interleaving of two processes, a server and a network that delays, reorders and loses,
//! within bounds of time and number of writes. The processes decide by [`Claim`]; the rest is a
//! double. A process that is frozen is one whose turn does not come.
//!
//! Each [`Flaw`] breaks one step, and the search has to notice.

use super::{Attempt, Claim};
use std::{
    collections::HashSet,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash},
    time::Duration,
};
use tokio::time::Instant;

const TICK: Duration = Duration::from_secs(1);
const TTL: Duration = Duration::from_secs(2);
const LAST_TICK: Duration = Duration::from_secs(4);
const WRITES: u64 = 4;
/// Packets on the way at once.
const WIRE: usize = 2;

/// What can be done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// The first write does not ask whether there is a value.
    CreateOverwrites,
    /// A release does not ask whose value it removes.
    ReleaseRemovesAny,
    /// The lifetime is measured from when the answer came.
    ClockStartsAtAnswer,
    /// A write without an answer is taken for done.
    SilenceIsConsent,
    /// Having found one's own value lengthens the claim.
    FindingLengthens,
    /// An answer that comes too late makes the claim valid again.
    LateAnswerRevives,
    /// The server forgets a value sooner than its writer thinks.
    LifetimeRoundedDown,
}

#[derive(Clone, Debug, Hash)]
struct World {
    now: Instant,
    server: Server,
    wire: Vec<Packet>,
    processes: [Process; 2],
    writes: u64,
}

/// One key of the bucket.
#[derive(Clone, Debug, Default, Hash)]
struct Server {
    last_revision: u64,
    stored: Option<Stored>,
}

#[derive(Clone, Debug, Hash)]
struct Stored {
    revision: u64,
    /// `None` marks a value that expired or was removed.
    value: Option<Value>,
}

#[derive(Clone, Debug, Hash)]
struct Value {
    nonce: u64,
    expires: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Packet {
    Write { from: usize, attempt: Attempt, blind: bool },
    Remove { expected: u64, blind: bool },
    Read { from: usize },
    Answer { to: usize, nonce: u64, revision: Option<u64> },
    Found { to: usize, value: Option<(u64, u64)> },
}

#[derive(Clone, Debug, Hash)]
enum Process {
    Idle,
    /// The first write is under way; `checking`: it was not answered, and is looked for.
    Claiming {
        attempt: Attempt,
        checking: bool,
    },
    Holding {
        claim: Claim,
        waiting: Waiting,
    },
}

#[derive(Clone, Debug, Hash)]
enum Waiting {
    Nothing,
    Answer(Attempt),
    Find,
}

/// What the search came by; without all of it, it would prove little.
#[derive(Clone, Copy, Debug, Default)]
struct Reached {
    taken_over: bool,
    recognised: bool,
    lost: bool,
    released: bool,
    /// An answer came to a claim that had run out.
    late: bool,
    worlds: usize,
}

struct Search {
    flaw: Flaw,
    seen: HashSet<u64>,
    open: Vec<World>,
    reached: Reached,
}

#[test]
fn at_most_one_process_believes_it_holds() {
    let reached = search(Flaw::None).unwrap_or_else(|wrong| panic!("{wrong}"));
    let Reached { taken_over, recognised, lost, released, late, worlds } = reached;
    assert!(taken_over && recognised && lost && released && late, "{reached:?}");
    assert!(worlds > 10_000, "{reached:?}");
}

#[test]
fn every_broken_step_is_noticed() {
    for flaw in [
        Flaw::CreateOverwrites,
        Flaw::ReleaseRemovesAny,
        Flaw::ClockStartsAtAnswer,
        Flaw::SilenceIsConsent,
        Flaw::FindingLengthens,
        Flaw::LateAnswerRevives,
        Flaw::LifetimeRoundedDown,
    ] {
        assert!(search(flaw).is_err(), "{flaw:?} goes unnoticed");
    }
}

/// Visits every world that can come about, or stops at the first wrong one.
fn search(flaw: Flaw) -> Result<Reached, String> {
    let start = World {
        now: Instant::now(),
        server: Server::default(),
        wire: Vec::new(),
        processes: [Process::Idle, Process::Idle],
        writes: 0,
    };
    let end = start.now + LAST_TICK;
    let (seen, reached) = (HashSet::new(), Reached::default());
    let mut search = Search { flaw, seen, open: vec![start], reached };
    while let Some(world) = search.open.pop() {
        search.reached.worlds += 1;
        for next in search.successors(&world, end) {
            check(&world, &next)?;
            if search.seen.insert(next.fingerprint()) {
                search.open.push(next);
            }
        }
    }
    Ok(search.reached)
}

fn check(before: &World, after: &World) -> Result<(), String> {
    if (0..2).filter(|&p| after.believes(p)).count() > 1 {
        return Err(format!("two holders: {before:#?} became {after:#?}"));
    }
    for p in 0..2 {
        if let (Process::Holding { claim: old, .. }, Process::Holding { claim: new, .. }) =
            (&before.processes[p], &after.processes[p])
            && !old.is_valid(before.now)
            && new.is_valid(after.now)
        {
            return Err(format!("a claim came back to life: {before:#?} became {after:#?}"));
        }
    }
    Ok(())
}

impl World {
    fn believes(&self, process: usize) -> bool {
        match &self.processes[process] {
            Process::Holding { claim, .. } => claim.is_valid(self.now),
            Process::Idle | Process::Claiming { .. } => false,
        }
    }

    /// The same for worlds that differ only in the order of packets or in who is the first of the
    /// two processes.
    fn fingerprint(&self) -> u64 {
        let views = [0, 1].map(|first| {
            let number = |process: usize| process ^ first;
            let mut wire: Vec<u64> = self.wire.iter().map(|p| hash(&p.seen_by(number))).collect();
            wire.sort_unstable();
            let processes = [&self.processes[number(0)], &self.processes[number(1)]];
            hash(&(self.now, &self.server, wire, processes, self.writes))
        });
        views[0].min(views[1])
    }

    fn send(&mut self, packet: Packet) {
        self.wire.push(packet);
    }

    /// The process no longer listens for an answer. What it wrote is still on its way.
    fn hang_up(&mut self, process: usize) {
        self.wire.retain(|packet| match packet {
            Packet::Write { .. } | Packet::Remove { .. } => true,
            Packet::Read { from: party }
            | Packet::Answer { to: party, .. }
            | Packet::Found { to: party, .. } => *party != process,
        });
    }

    /// Whether the process listens for the answer to its write `nonce`.
    fn awaits(&self, process: usize, nonce: u64) -> bool {
        match &self.processes[process] {
            Process::Claiming { attempt, checking: false }
            | Process::Holding { waiting: Waiting::Answer(attempt), .. } => attempt.nonce == nonce,
            Process::Idle | Process::Claiming { .. } | Process::Holding { .. } => false,
        }
    }

    fn nonce(&mut self) -> u64 {
        self.writes += 1;
        self.writes
    }

    fn has_room(&self) -> bool {
        self.wire.len() < WIRE
    }
}

impl Search {
    fn successors(&mut self, world: &World, end: Instant) -> Vec<World> {
        let mut worlds = Vec::new();
        if world.now < end {
            worlds.push(World { now: world.now + TICK, ..world.clone() });
        }
        worlds.extend(expired(world));
        for process in 0..2 {
            self.act(world, process, &mut worlds);
        }
        for packet in 0..world.wire.len() {
            let mut lost = world.clone();
            let arrived = lost.wire.remove(packet);
            let mut next = lost.clone();
            worlds.push(lost);
            self.arrive(&mut next, arrived);
            worlds.push(next);
        }
        worlds
    }

    /// What `process` may do of itself.
    fn act(&mut self, world: &World, process: usize, worlds: &mut Vec<World>) {
        let mut next = world.clone();
        let may_write = world.has_room() && world.writes < WRITES;
        match &mut next.processes[process] {
            Process::Idle if may_write => worlds.extend(self.claim(world, process)),
            // No answer in time.
            Process::Claiming { checking: checking @ false, .. } if world.has_room() => {
                *checking = true;
                next.hang_up(process);
                next.send(Packet::Read { from: process });
                worlds.push(next);
            }
            claiming @ Process::Claiming { checking: true, .. } => {
                *claiming = Process::Idle;
                next.hang_up(process);
                worlds.push(next);
            }
            Process::Holding { claim, waiting: Waiting::Nothing } => {
                let revision = claim.revision();
                if may_write && claim.is_valid(world.now) {
                    worlds.push(beat(world.clone(), process));
                }
                if may_write {
                    next.writes += 1;
                    next.processes[process] = Process::Idle;
                    let blind = self.flaw == Flaw::ReleaseRemovesAny;
                    next.send(Packet::Remove { expected: revision, blind });
                    worlds.push(next);
                }
            }
            Process::Holding { claim, waiting } => {
                if let (Waiting::Answer(attempt), Flaw::SilenceIsConsent) = (&waiting, self.flaw) {
                    claim.confirm(&attempt.clone(), claim.revision(), world.now);
                }
                *waiting = Waiting::Nothing;
                next.hang_up(process);
                worlds.push(next);
            }
            Process::Idle | Process::Claiming { .. } => {}
        }
    }

    /// The first write of a process, if it has a chance: revisions only rise, so that a write which
    /// expects another than the last one is refused whenever it arrives.
    fn claim(&self, world: &World, process: usize) -> Option<World> {
        let blind = self.flaw == Flaw::CreateOverwrites;
        if world.server.value().is_some() && !blind {
            return None;
        }
        let mut next = world.clone();
        let expected = next.server.revision();
        let attempt = Attempt::new(next.nonce(), expected, next.now);
        next.send(Packet::Write { from: process, attempt: attempt.clone(), blind });
        next.processes[process] = Process::Claiming { attempt, checking: false };
        Some(next)
    }

    fn arrive(&mut self, world: &mut World, packet: Packet) {
        match packet {
            Packet::Write { from, attempt, blind } => {
                let accepted = blind || world.server.is_at(attempt.expected);
                let revision = accepted.then(|| {
                    let ttl = match self.flaw {
                        Flaw::LifetimeRoundedDown => TTL - TICK,
                        _ => TTL,
                    };
                    let value = Value { nonce: attempt.nonce, expires: world.now + ttl };
                    world.server.store(Some(value))
                });
                if world.awaits(from, attempt.nonce) {
                    world.send(Packet::Answer { to: from, nonce: attempt.nonce, revision });
                }
            }
            Packet::Remove { expected, blind } => {
                if blind || world.server.is_at(expected) {
                    self.reached.released = true;
                    world.server.store(None);
                }
            }
            Packet::Read { from } => {
                let value = world.server.value();
                world.send(Packet::Found { to: from, value });
            }
            Packet::Answer { to, revision, .. } => self.answered(world, to, revision),
            Packet::Found { to, value } => self.found(world, to, value),
        }
    }

    fn answered(&mut self, world: &mut World, to: usize, revision: Option<u64>) {
        let now = world.now;
        match (&mut world.processes[to], revision) {
            (Process::Claiming { attempt, .. }, Some(revision)) => {
                let attempt = self.dated(attempt, now);
                self.win(world, to, &attempt, revision);
            }
            (claiming @ Process::Claiming { .. }, None) => *claiming = Process::Idle,
            (Process::Holding { claim, waiting }, revision) => {
                self.reached.late |= !claim.is_valid(now);
                if let (Waiting::Answer(attempt), Some(revision)) = (&waiting, revision) {
                    let attempt = self.dated(attempt, now);
                    claim.confirm(&attempt, revision, now);
                    if self.flaw == Flaw::LateAnswerRevives {
                        claim.valid_until = attempt.sent_at + TTL;
                    }
                    *waiting = Waiting::Nothing;
                } else {
                    *waiting = Waiting::Find;
                    world.send(Packet::Read { from: to });
                }
            }
            (Process::Idle, _) => {}
        }
    }

    fn found(&mut self, world: &mut World, to: usize, value: Option<(u64, u64)>) {
        let now = world.now;
        match (&mut world.processes[to], value) {
            (Process::Claiming { attempt, .. }, Some((nonce, revision)))
                if attempt.nonce == nonce =>
            {
                let attempt = self.dated(attempt, now);
                self.win(world, to, &attempt, revision);
            }
            (claiming @ Process::Claiming { .. }, _) => *claiming = Process::Idle,
            (Process::Holding { claim, waiting }, value) => {
                *waiting = Waiting::Nothing;
                if claim.recognise(value) {
                    self.reached.recognised = true;
                    if self.flaw == Flaw::FindingLengthens {
                        claim.valid_until = now + TTL;
                    }
                } else {
                    self.reached.lost = true;
                    world.processes[to] = Process::Idle;
                }
            }
            (Process::Idle, _) => {}
        }
    }

    fn win(&mut self, world: &mut World, process: usize, attempt: &Attempt, revision: u64) {
        let claim = Claim::won(attempt, revision, TTL);
        let other = &world.processes[1 - process];
        self.reached.taken_over |=
            claim.is_valid(world.now) && matches!(other, Process::Holding { .. });
        world.processes[process] = Process::Holding { claim, waiting: Waiting::Nothing };
    }

    fn dated(&self, attempt: &Attempt, now: Instant) -> Attempt {
        match self.flaw {
            Flaw::ClockStartsAtAnswer => Attempt { sent_at: now, ..attempt.clone() },
            _ => attempt.clone(),
        }
    }
}

fn beat(mut world: World, process: usize) -> World {
    let (nonce, now) = (world.nonce(), world.now);
    if let Process::Holding { claim, waiting } = &mut world.processes[process] {
        let attempt = claim.attempt(nonce, now);
        *waiting = Waiting::Answer(attempt.clone());
        world.send(Packet::Write { from: process, attempt, blind: false });
    }
    world
}

/// The server may be late with what it forgets, never early.
fn expired(world: &World) -> Option<World> {
    let due = |value: &Value| value.expires <= world.now;
    world.server.stored.as_ref()?.value.as_ref().is_some_and(due).then(|| {
        let mut next = world.clone();
        next.server.store(None);
        next
    })
}

impl Packet {
    fn seen_by(&self, number: impl Fn(usize) -> usize) -> Self {
        let mut packet = self.clone();
        match &mut packet {
            Self::Write { from: process, .. }
            | Self::Read { from: process }
            | Self::Answer { to: process, .. }
            | Self::Found { to: process, .. } => *process = number(*process),
            Self::Remove { .. } => {}
        }
        packet
    }
}

fn hash(value: &impl Hash) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(value)
}

impl Server {
    fn is_at(&self, revision: u64) -> bool {
        self.revision() == revision
    }

    fn revision(&self) -> u64 {
        self.stored.as_ref().map_or(0, |stored| stored.revision)
    }

    fn store(&mut self, value: Option<Value>) -> u64 {
        self.last_revision += 1;
        self.stored = Some(Stored { revision: self.last_revision, value });
        self.last_revision
    }

    /// Nonce and revision, as a reader sees them.
    fn value(&self) -> Option<(u64, u64)> {
        let stored = self.stored.as_ref()?;
        stored.value.as_ref().map(|value| (value.nonce, stored.revision))
    }
}
