//! Every interleaving of a few processes that need the same blob, while leaders and followers die and
//! freeze, within bounds ([`CASTS`]). They decide by [`is_near`] and [`best`]; the lease, storage, the links between
//! them and the upstream are doubles. A process that is slow is one whose turn does not come.
//!
//! Each [`Flaw`] breaks one step of claim and resume, and the search has to notice.

use crate::{
    insurance::{AHEAD, is_near},
    offers::{TRIES, WORTH, best},
    peers::Offer,
};
use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
};

/// What arrives at once.
const CHUNK: u64 = AHEAD;
/// What the death of a leader may cost, if somebody read along.
const PART: u64 = 16 * 1024 * 1024;

/// Who takes part, and how much happens.
#[derive(Clone, Copy, Debug)]
struct Cast {
    processes: usize,
    /// Of the blob, in bytes.
    size: u64,
    deaths: u8,
    freezes: u8,
}

const CASTS: [Cast; 2] = [
    Cast { processes: 3, size: 6 * CHUNK, deaths: 2, freezes: 1 },
    Cast { processes: 4, size: 4 * CHUNK, deaths: 1, freezes: 0 },
];

/// What can be done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// A leader does not wait for who reads along.
    LeaderRunsAhead,
    /// Who takes over begins at the first byte.
    TakeoverForgetsItsOwn,
    /// Who takes over does not ask what others have.
    TakeoverAsksNobody,
    /// It takes the least that is offered.
    LeastOfferIsTaken,
    /// It does not look whether the blob was stored meanwhile.
    TakeoverDoesNotLook,
    /// Who finds the lease free does not see that it expired.
    ExpiryGoesUnnoticed,
    /// A leader goes on though its lease is another's.
    DeposedGoesOn,
    /// A follower waits for ever for a leader that is gone.
    FollowerStays,
    /// What is stored is not remembered in the lease.
    NothingIsBequeathed,
}

const FLAWS: [Flaw; 9] = [
    Flaw::LeaderRunsAhead,
    Flaw::TakeoverForgetsItsOwn,
    Flaw::TakeoverAsksNobody,
    Flaw::LeastOfferIsTaken,
    Flaw::TakeoverDoesNotLook,
    Flaw::ExpiryGoesUnnoticed,
    Flaw::DeposedGoesOn,
    Flaw::FollowerStays,
    Flaw::NothingIsBequeathed,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    processes: Vec<Process>,
    lease: Lease,
    /// Storage has the blob.
    stored: bool,
    /// Bytes that the upstream sent.
    sent: u64,
    /// Bytes that nobody had any more when somebody died or froze.
    lost: u64,
    deaths: u8,
    freezes: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Lease {
    Free {
        expired: bool,
    },
    Held(usize),
    /// Nobody's: it says that the blob is stored.
    Stored,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Process {
    role: Role,
    /// Bytes here.
    at: u64,
    frozen: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Role {
    Idle,
    /// It did not find the blob in storage a moment ago.
    Asking,
    /// `near`: it came as close to its leader as that waits for.
    Following {
        leader: usize,
        near: bool,
    },
    Leading {
        assembled: bool,
    },
    /// Its readers have all of it.
    Done,
    Dead,
}

/// What the search came by; without all of it, it would prove little.
#[derive(Clone, Copy, Debug, Default)]
struct Reached {
    worlds: usize,
    taken_over: bool,
    /// By one that did not follow.
    newcomer_took_over: bool,
    offer_taken: bool,
    deposed: bool,
    found_stored: bool,
    resumed: bool,
}

struct Search {
    cast: Cast,
    flaw: Flaw,
    seen: HashSet<u64>,
    open: Vec<World>,
    reached: Reached,
}

#[test]
fn no_byte_is_fetched_twice_that_somebody_still_has_and_all_come_to_an_end() {
    let reached = search(Flaw::None).unwrap_or_else(|wrong| panic!("{wrong}"));
    let Reached {
        taken_over, newcomer_took_over, offer_taken, deposed, found_stored, resumed, ..
    } = reached;
    assert!(taken_over && newcomer_took_over && offer_taken, "{reached:?}");
    assert!(deposed && found_stored && resumed, "{reached:?}");
    assert!(reached.worlds > 10_000, "{reached:?}");
}

#[test]
fn every_broken_step_is_noticed() {
    for flaw in FLAWS {
        assert!(search(flaw).is_err(), "{flaw:?} goes unnoticed");
    }
}

/// Visits every world that can come about in any of the casts, or stops at the first wrong one.
fn search(flaw: Flaw) -> Result<Reached, String> {
    CASTS.iter().try_fold(Reached::default(), |reached, cast| search_cast(*cast, flaw, reached))
}

fn search_cast(cast: Cast, flaw: Flaw, reached: Reached) -> Result<Reached, String> {
    let idle = Process { role: Role::Idle, at: 0, frozen: false };
    let start = World {
        processes: vec![idle; cast.processes],
        lease: Lease::Free { expired: false },
        stored: false,
        sent: 0,
        lost: 0,
        deaths: 0,
        freezes: 0,
    };
    let mut search = Search { cast, flaw, seen: HashSet::new(), open: vec![start], reached };
    while let Some(world) = search.open.pop() {
        search.reached.worlds += 1;
        let next = search.successors(&world)?;
        if next.is_empty() && !world.is_over() {
            return Err(format!("somebody waits for ever: {world:#?}"));
        }
        for next in next {
            check(cast, &world, &next)?;
            if search.seen.insert(hash(&next)) {
                search.open.push(next);
            }
        }
    }
    Ok(search.reached)
}

fn hash(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}

fn check(cast: Cast, before: &World, after: &World) -> Result<(), String> {
    if after.sent > cast.size + after.lost {
        return Err(format!("fetched though it was there: {before:#?} became {after:#?}"));
    }
    for (old, new) in before.processes.iter().zip(&after.processes) {
        if new.role != Role::Dead && new.at < old.at {
            return Err(format!("readers went back: {before:#?} became {after:#?}"));
        }
    }
    Ok(())
}

impl World {
    fn is_over(&self) -> bool {
        self.processes.iter().all(|process| matches!(process.role, Role::Done | Role::Dead))
    }

    fn is_awake(&self, p: usize) -> bool {
        !self.processes[p].frozen && self.processes[p].role != Role::Dead
    }

    fn leads(&self, p: usize) -> bool {
        self.is_awake(p) && matches!(self.processes[p].role, Role::Leading { .. })
    }

    fn follows(&self, p: usize, leader: usize) -> bool {
        let role = self.processes[p].role;
        self.is_awake(p) && matches!(role, Role::Following { leader: whom, .. } if whom == leader)
    }

    /// Where the first of the followers is.
    fn first_follower(&self, leader: usize) -> Option<u64> {
        let followers = (0..self.processes.len()).filter(|&p| self.follows(p, leader));
        followers.map(|p| self.processes[p].at).max()
    }

    fn offers(&self, leader: usize) -> Vec<Offer> {
        let followers = (0..self.processes.len()).filter(|&p| self.follows(p, leader));
        let offer = |p: usize| {
            let address = ([127, 0, 0, 1], 1 + p as u16).into();
            Offer { address, key: String::new(), upto: self.processes[p].at }
        };
        followers.map(offer).collect()
    }

    /// Whether somebody still reads along with one who is gone, or does not know yet that it leads no
    /// more: it will have found the new leader before that stops waiting.
    fn somebody_is_on_the_way(&self) -> bool {
        (0..self.processes.len()).filter(|&p| self.is_awake(p)).any(|p| {
            match self.processes[p].role {
                Role::Following { leader, .. } => self.lease != Lease::Held(leader),
                Role::Leading { .. } => self.lease != Lease::Held(p),
                Role::Idle | Role::Asking | Role::Done | Role::Dead => false,
            }
        })
    }

    /// What nobody has any more when `p` is gone.
    fn loses(&mut self, p: usize) {
        let others = (0..self.processes.len()).filter(|&other| other != p && self.is_awake(other));
        let most = others.map(|other| self.processes[other].at).max().unwrap_or(0);
        self.lost += self.processes[p].at.saturating_sub(most);
    }

    /// Others have to come near again when the one is gone that their leader stayed close to.
    fn forgets_who_is_far(&mut self, gone: usize) {
        for p in 0..self.processes.len() {
            if let Role::Following { leader, near } = self.processes[p].role {
                let ahead = self.processes[leader].at.saturating_sub(self.processes[p].at);
                let near = near && p != gone && ahead <= 2 * CHUNK;
                self.processes[p].role = Role::Following { leader, near };
            }
        }
    }

    /// The role, once the process has come to lead.
    fn seat(&mut self, p: usize, assembled: bool) {
        self.lease = Lease::Held(p);
        self.processes[p].role = Role::Leading { assembled };
    }

    fn finish(&mut self, p: usize, size: u64) {
        self.processes[p].at = size;
        self.processes[p].role = Role::Done;
    }
}

impl Search {
    fn successors(&mut self, world: &World) -> Result<Vec<World>, String> {
        let mut next = Vec::new();
        if let Lease::Held(holder) = world.lease
            && !world.is_awake(holder)
        {
            next.push(World { lease: Lease::Free { expired: true }, ..world.clone() });
        }
        for p in 0..world.processes.len() {
            let process = world.processes[p];
            if process.frozen {
                let mut thawed = world.clone();
                thawed.processes[p].frozen = false;
                next.push(thawed);
                continue;
            }
            match process.role {
                Role::Dead | Role::Done => continue,
                Role::Idle => next.push(self.look(world, p)),
                Role::Asking => next.push(self.take(world, p)),
                Role::Following { leader, near } => {
                    next.extend(self.follow(world, p, leader, near));
                }
                Role::Leading { assembled } => next.extend(self.lead(world, p, assembled)?),
            }
            next.extend(misfortunes(self.cast, world, p)?);
        }
        Ok(next)
    }

    /// Storage first.
    fn look(&self, world: &World, p: usize) -> World {
        let mut next = world.clone();
        match world.stored {
            true => next.finish(p, self.cast.size),
            false => next.processes[p].role = Role::Asking,
        }
        next
    }

    /// Asks for the lead.
    fn take(&mut self, world: &World, p: usize) -> World {
        let mut next = world.clone();
        let followed = matches!(world.processes[p].role, Role::Following { .. });
        match world.lease {
            Lease::Free { expired } => {
                let noticed = expired && self.flaw != Flaw::ExpiryGoesUnnoticed;
                let after = followed || noticed;
                self.reached.taken_over |= followed;
                self.reached.newcomer_took_over |= noticed && !followed;
                next.seat(p, !after);
                if after && world.stored && self.flaw != Flaw::TakeoverDoesNotLook {
                    self.reached.found_stored = true;
                    next.lease = Lease::Stored;
                    next.finish(p, self.cast.size);
                } else if after && self.flaw == Flaw::TakeoverForgetsItsOwn {
                    next.processes[p].at = 0;
                }
            }
            Lease::Held(leader) => {
                next.processes[p].role = Role::Following { leader, near: false };
            }
            Lease::Stored => next.finish(p, self.cast.size),
        }
        next
    }

    fn follow(&mut self, world: &World, p: usize, leader: usize, near: bool) -> Option<World> {
        let at = world.processes[p].at;
        let mut next = world.clone();
        if world.leads(leader) {
            let ahead = world.processes[leader].at.checked_sub(at).filter(|ahead| *ahead > 0)?;
            next.processes[p].at += CHUNK;
            let near = near || ahead <= 2 * CHUNK;
            next.processes[p].role = Role::Following { leader, near };
            return Some(next);
        }
        if self.flaw == Flaw::FollowerStays && world.lease != Lease::Stored {
            return None;
        }
        // It waits as long as the lease of who is gone stands.
        (world.lease != Lease::Held(leader)).then(|| self.take(world, p))
    }

    fn lead(&mut self, world: &World, p: usize, assembled: bool) -> Result<Vec<World>, String> {
        let mut next = world.clone();
        if world.lease != Lease::Held(p) && self.flaw != Flaw::DeposedGoesOn {
            self.reached.deposed = true;
            return Ok(vec![self.take(world, p)]);
        }
        if !assembled {
            return Ok(self.assemble(world, p).into_iter().collect());
        }
        let at = world.processes[p].at;
        if at == self.cast.size {
            next.stored = true;
            if world.stored {
                next.lease = match self.flaw {
                    Flaw::NothingIsBequeathed => Lease::Free { expired: false },
                    _ => Lease::Stored,
                };
                next.finish(p, self.cast.size);
            }
            return Ok(vec![next]);
        }
        let offers = world.offers(p);
        if offers.iter().any(|offer| offer.upto > at + WORTH) {
            next.processes[p].at = self.accepted(&offers, at);
            return Ok(vec![next]);
        }
        let waits = !is_near(world.first_follower(p), at) && self.flaw != Flaw::LeaderRunsAhead;
        if waits {
            return Ok(Vec::new());
        }
        if world.lease != Lease::Held(p) {
            return Err(format!("fetches without a lease: {world:#?}"));
        }
        self.reached.resumed |= at > 0 && world.deaths > 0;
        next.sent += CHUNK;
        next.processes[p].at += CHUNK;
        Ok(vec![next])
    }

    /// Takes what the others have.
    fn assemble(&mut self, world: &World, p: usize) -> Option<World> {
        if world.somebody_is_on_the_way() {
            return None;
        }
        let mut next = world.clone();
        if self.flaw != Flaw::TakeoverAsksNobody {
            next.processes[p].at = self.accepted(&world.offers(p), world.processes[p].at);
        }
        next.processes[p].role = Role::Leading { assembled: true };
        Some(next)
    }

    fn accepted(&mut self, offers: &[Offer], mut at: u64) -> u64 {
        if self.flaw == Flaw::LeastOfferIsTaken {
            let least = offers.iter().map(|offer| offer.upto).min();
            return at.max(least.unwrap_or(0));
        }
        for _ in 0..TRIES {
            let Some(found) = best(offers, at) else { break };
            self.reached.offer_taken = true;
            at = offers[found].upto;
        }
        at
    }
}

/// `p` dies, or freezes.
fn misfortunes(cast: Cast, world: &World, p: usize) -> Result<Vec<World>, String> {
    let mut next = Vec::new();
    if world.deaths < cast.deaths {
        let mut after = world.clone();
        after.loses(p);
        after.deaths += 1;
        after.processes[p].role = Role::Dead;
        after.forgets_who_is_far(p);
        costs_less_than_a_part(world, &after, p)?;
        next.push(after);
    }
    if world.freezes < cast.freezes {
        let mut after = world.clone();
        after.loses(p);
        after.freezes += 1;
        after.processes[p].frozen = true;
        after.forgets_who_is_far(p);
        next.push(after);
    }
    Ok(next)
}

/// Where somebody has come as near as a leader waits for.
fn costs_less_than_a_part(before: &World, after: &World, p: usize) -> Result<(), String> {
    let is_near = |process: &Process| {
        matches!(process.role, Role::Following { leader, near: true } if leader == p)
            && !process.frozen
    };
    let insured = before.leads(p) && !before.stored && before.processes.iter().any(is_near);
    match insured && after.lost - before.lost >= PART {
        true => Err(format!("a death costs more than a part: {before:#?}")),
        false => Ok(()),
    }
}
