//! Every interleaving of importers, a frontend, an operator and a customer who pushes, over an
//! upstream that moves a tag and moves it back, within bounds of moves and writes. They decide by
//! the functions of `next.rs` and number by [`TagRecord::seq_after`]; storage is a double with one
//! record and compare-and-set. A process that is frozen is one whose turn does not come; one that is
//! killed forgets where it was.
//!
//! All of them at once make too many worlds to visit, so they appear in several [`CASTS`]. Each
//! [`Flaw`] breaks one step, and the search has to notice in one of them.

use super::{Follows, Frozen, Owner, Sighting, Steering, TagRecord, Terms, Writer};
use hydrant_proto::{Digest, MediaType};
use jiff::Timestamp;
use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

/// What the tag names at the upstream, one after the other.
const UPSTREAM: [&str; 3] = ["a", "b", "a"];

/// Who takes part, and how much happens.
#[derive(Clone, Copy, Debug)]
struct Cast {
    importers: usize,
    frontend: bool,
    customer: bool,
    /// Of the operator.
    acts: u8,
    writes: usize,
    follows: Follows,
}

const CASTS: [Cast; 4] = [
    Cast {
        importers: 2,
        frontend: true,
        customer: false,
        acts: 0,
        writes: 3,
        follows: Follows::Upstream,
    },
    Cast {
        importers: 1,
        frontend: true,
        customer: false,
        acts: 2,
        writes: 4,
        follows: Follows::Upstream,
    },
    Cast {
        importers: 2,
        frontend: false,
        customer: true,
        acts: 1,
        writes: 3,
        follows: Follows::Upstream,
    },
    Cast {
        importers: 2,
        frontend: true,
        customer: false,
        acts: 0,
        writes: 3,
        follows: Follows::Nothing,
    },
];

/// What can be done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// The upstream is asked before the record is read.
    AsksFirst,
    /// Writes do not compare.
    WritesBlindly,
    /// After a lost race what was seen before it is written over the winner's.
    WritesAgain,
    /// Hydration does not ask whose the tag is.
    IgnoresPush,
    /// Hydration does not ask whether the tag is frozen.
    IgnoresFreeze,
    /// Hydration follows what the rule says is immutable.
    IgnoresRule,
    /// A confirmation is written over whatever is there.
    ConfirmsBlindly,
    /// A move keeps the `seq`.
    SeqStays,
    /// A confirmation raises the `seq`.
    SeqRunsOn,
    /// A move is announced under the terms of the last confirmation.
    TellsLastTerms,
    /// A rollback does not freeze.
    RollbackThaws,
    /// An operator's change is written over whatever is there.
    SteersBlindly,
}

const FLAWS: [Flaw; 12] = [
    Flaw::AsksFirst,
    Flaw::WritesBlindly,
    Flaw::WritesAgain,
    Flaw::IgnoresPush,
    Flaw::IgnoresFreeze,
    Flaw::IgnoresRule,
    Flaw::ConfirmsBlindly,
    Flaw::SeqStays,
    Flaw::SeqRunsOn,
    Flaw::TellsLastTerms,
    Flaw::RollbackThaws,
    Flaw::SteersBlindly,
];

/// How many records had been written when somebody read: the last of them is what was seen.
type Seen = usize;

#[derive(Clone, Debug, Hash)]
struct World {
    upstream: usize,
    /// All that were ever written; the last one stands.
    records: Vec<Arc<Written>>,
    importers: [Process; 2],
    frontend: Process,
    operator: Option<(Act, Seen)>,
    acts: u8,
    customer: Option<Seen>,
    /// Place in [`UPSTREAM`] of the last word that was written down.
    newest: usize,
    /// An operator keeps the tag where it is.
    is_held: bool,
}

/// A record as it was written. Compared by its hash: there are many worlds.
#[derive(Debug)]
struct Written {
    record: TagRecord,
    hash: u64,
    /// How often the tag had come to name something else by then.
    change: usize,
    /// The id of the event that tells of the last move.
    event: Option<String>,
}

impl Hash for Written {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.hash.hash(hasher);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Process {
    Idle,
    Read(Seen),
    /// Only where the upstream is asked too early.
    AskedFirst(usize),
    /// The place of the upstream that was seen, and the record that was read before.
    Asked(Seen, usize),
    /// Somebody else was faster; what was imported is still at hand.
    Lost(usize),
    /// Read again after that.
    ReadAgain(Seen, usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Act {
    Freeze,
    Unfreeze,
    RollBack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Actor {
    /// With the place of the upstream it goes by.
    Hydration(usize),
    Operator(Act),
    Customer,
}

/// What the search came by; without all of it, it would prove little.
#[derive(Clone, Copy, Debug, Default)]
struct Reached {
    conflict: bool,
    moved_back: bool,
    confirmed: bool,
    rolled_back: bool,
    followed_again: bool,
    refused: bool,
    worlds: usize,
}

struct Search {
    flaw: Flaw,
    cast: Cast,
    seen: HashSet<u64>,
    open: Vec<World>,
    reached: Reached,
    wrong: Option<String>,
}

#[test]
fn no_interleaving_takes_a_tag_back_or_from_whom_it_belongs_to() {
    let mut all = Reached::default();
    for cast in CASTS {
        let reached = search(Flaw::None, cast).unwrap_or_else(|wrong| panic!("{cast:?}: {wrong}"));
        assert!(reached.worlds > 1_000, "{cast:?}: {reached:?}");
        all.conflict |= reached.conflict;
        all.moved_back |= reached.moved_back;
        all.confirmed |= reached.confirmed;
        all.rolled_back |= reached.rolled_back;
        all.followed_again |= reached.followed_again;
        all.refused |= reached.refused;
    }
    let Reached { conflict, moved_back, confirmed, rolled_back, followed_again, refused, .. } = all;
    assert!(conflict && moved_back && confirmed, "{all:?}");
    assert!(rolled_back && followed_again && refused, "{all:?}");
}

#[test]
fn every_broken_step_is_noticed() {
    for flaw in FLAWS {
        let noticed = CASTS.into_iter().any(|cast| search(flaw, cast).is_err());
        assert!(noticed, "{flaw:?} goes unnoticed");
    }
}

/// Visits every world that can come about, or stops at the first wrong one.
fn search(flaw: Flaw, cast: Cast) -> Result<Reached, String> {
    let start = World {
        upstream: 0,
        records: Vec::new(),
        importers: [Process::Idle; 2],
        frontend: Process::Idle,
        operator: None,
        acts: 0,
        customer: None,
        newest: 0,
        is_held: false,
    };
    let (seen, reached) = (HashSet::new(), Reached::default());
    let mut search = Search { flaw, cast, seen, open: vec![start], reached, wrong: None };
    while let Some(world) = search.open.pop() {
        search.reached.worlds += 1;
        for next in search.successors(&world) {
            if search.seen.insert(next.fingerprint()) {
                search.open.push(next);
            }
        }
        if let Some(wrong) = search.wrong.take() {
            return Err(wrong);
        }
    }
    Ok(search.reached)
}

impl World {
    /// The same for worlds that differ only in which importer is the first.
    fn fingerprint(&self) -> u64 {
        let mut mirrored = self.clone();
        mirrored.importers.swap(0, 1);
        hash(self).min(hash(&mirrored))
    }

    fn now(&self) -> Seen {
        self.records.len()
    }

    /// The record that somebody saw.
    fn record(&self, seen: Seen) -> Option<&TagRecord> {
        self.records[..seen].last().map(|written| &written.record)
    }

    fn is_pushed(&self, seen: Seen) -> bool {
        self.record(seen).is_some_and(|record| record.owner == Owner::Push)
    }
}

impl Search {
    fn successors(&mut self, world: &World) -> Vec<World> {
        let mut worlds = Vec::new();
        if world.upstream + 1 < UPSTREAM.len() {
            worlds.push(World { upstream: world.upstream + 1, ..world.clone() });
        }
        for index in 0..self.cast.importers {
            if let Some((mut next, process)) = self.import(world, world.importers[index]) {
                next.importers[index] = process;
                worlds.push(next);
            }
            if world.importers[index] != Process::Idle {
                let mut killed = world.clone();
                killed.importers[index] = Process::Idle;
                worlds.push(killed);
            }
        }
        if self.cast.frontend {
            worlds.extend(self.confirm(world));
        }
        worlds.extend(self.steer(world));
        if self.cast.customer {
            worlds.extend(self.push(world));
        }
        worlds
    }

    /// One step of an importer.
    fn import(&mut self, world: &World, process: Process) -> Option<(World, Process)> {
        let (now, place) = (world.now(), world.upstream);
        let process = match process {
            Process::Idle if self.flaw == Flaw::AsksFirst => Process::AskedFirst(place),
            Process::AskedFirst(place) => Process::Asked(now, place),
            Process::Idle => Process::Read(now),
            Process::Read(seen) if self.stays(world, seen) => return None,
            Process::Read(seen) => Process::Asked(seen, place),
            Process::Asked(seen, place) => return self.point(world.clone(), seen, place),
            Process::Lost(place) => Process::ReadAgain(now, place),
            Process::ReadAgain(seen, place) if self.flaw == Flaw::WritesAgain => {
                return self.point(world.clone(), seen, place);
            }
            // Its own word counts only if the upstream, asked once more, still says so.
            Process::ReadAgain(seen, own) if UPSTREAM[own] == UPSTREAM[place] => {
                Process::Asked(seen, place)
            }
            Process::ReadAgain(..) => Process::Idle,
        };
        Some((world.clone(), process))
    }

    fn point(&mut self, mut next: World, seen: Seen, place: usize) -> Option<(World, Process)> {
        let before = self.as_believed(&next, seen);
        let sighting = sighting(UPSTREAM[place], "g1");
        let Ok(record) = TagRecord::sighted(before.as_ref(), &sighting, self.followed()) else {
            self.reached.refused = true;
            return None;
        };
        let blind = self.flaw == Flaw::WritesBlindly;
        let outcome = self.write(&mut next, seen, record, blind, Actor::Hydration(place))?;
        let process = match outcome {
            Outcome::Written => Process::Idle,
            Outcome::Conflict => Process::Lost(place),
        };
        Some((next, process))
    }

    /// The record as an importer with the flaw takes it.
    fn as_believed(&self, world: &World, seen: Seen) -> Option<TagRecord> {
        let record = world.record(seen)?.clone();
        Some(match self.flaw {
            Flaw::IgnoresPush => TagRecord { owner: Owner::Cache, ..record },
            Flaw::IgnoresFreeze => TagRecord { frozen: None, ..record },
            _ => record,
        })
    }

    fn followed(&self) -> Follows {
        if self.flaw == Flaw::IgnoresRule { Follows::Upstream } else { self.cast.follows }
    }

    fn stays(&mut self, world: &World, seen: Seen) -> bool {
        let record = self.as_believed(world, seen);
        let stays = record.is_some_and(|record| record.stays(self.followed()).is_some());
        self.reached.refused |= stays;
        stays
    }

    /// One step of the frontend, which confirms what it served.
    fn confirm(&mut self, world: &World) -> Option<World> {
        let mut next = world.clone();
        next.frontend = match world.frontend {
            Process::Idle if world.now() > 0 => Process::Read(world.now()),
            Process::Read(seen) => Process::Asked(seen, world.upstream),
            Process::Asked(seen, place) => {
                let Sighting { digest, terms, .. } = sighting(UPSTREAM[place], "g2");
                let record = world.record(seen).filter(|record| record.digest == digest);
                let confirmed = record.map(|same| same.confirmed(Timestamp::UNIX_EPOCH, terms));
                if let Some(Ok(confirmed)) = confirmed {
                    let blind = self.flaw == Flaw::ConfirmsBlindly;
                    let actor = Actor::Hydration(place);
                    let outcome = self.write(&mut next, seen, confirmed, blind, actor)?;
                    self.reached.confirmed |= outcome == Outcome::Written;
                }
                Process::Idle
            }
            _ => return None,
        };
        Some(next)
    }

    /// One step of the operator.
    fn steer(&mut self, world: &World) -> Vec<World> {
        let Some((act, seen)) = world.operator else {
            if world.acts == self.cast.acts || world.now() == 0 {
                return Vec::new();
            }
            let begun = |act| World {
                operator: Some((act, world.now())),
                acts: world.acts + 1,
                ..world.clone()
            };
            return [Act::Freeze, Act::Unfreeze, Act::RollBack].map(begun).into();
        };
        let mut next = World { operator: None, ..world.clone() };
        let record = world.record(seen).expect("an operator acts on what is there");
        let now = Timestamp::UNIX_EPOCH;
        let steered = match act {
            Act::Freeze => {
                let steering = Steering::default();
                record.freeze(Frozen { at: now, by: Writer::Api, steering })
            }
            Act::Unfreeze => record.unfreeze(now, Steering::default()),
            Act::RollBack => record.roll_back(&sighting("a", "g1"), Steering::default()),
        };
        let steered = steered.map(|steered| match (act, self.flaw) {
            (Act::RollBack, Flaw::RollbackThaws) => TagRecord { frozen: None, ..steered },
            _ => steered,
        });
        if let Ok(steered) = steered {
            let blind = self.flaw == Flaw::SteersBlindly;
            let outcome = self.write(&mut next, seen, steered, blind, Actor::Operator(act));
            self.reached.rolled_back |= outcome == Some(Outcome::Written) && act == Act::RollBack;
            if outcome.is_none() {
                return Vec::new();
            }
        }
        vec![next]
    }

    /// One step of the customer, who pushes once.
    fn push(&mut self, world: &World) -> Option<World> {
        let mut next = world.clone();
        let Some(seen) = world.customer else {
            next.customer = Some(world.now());
            return Some(next);
        };
        if world.is_pushed(seen) {
            return None;
        }
        let Sighting { digest, media_type, size, asked_at, .. } = sighting("pushed", "");
        let pushed = TagRecord::new(Owner::Push, digest, media_type, size, asked_at);
        // A conflict: the customer's registry reads again.
        if self.write(&mut next, seen, pushed, false, Actor::Customer)? == Outcome::Conflict {
            next.customer = None;
        }
        Some(next)
    }

    /// The compare-and-set, watched; `None` when there are no more writes.
    fn write(
        &mut self,
        world: &mut World,
        seen: Seen,
        record: TagRecord,
        blind: bool,
        actor: Actor,
    ) -> Option<Outcome> {
        if !blind && seen != world.now() {
            self.reached.conflict = true;
            return Some(Outcome::Conflict);
        }
        if world.now() == self.cast.writes {
            return None;
        }
        let before = world.record(seen);
        let last = before.map_or(0, |before| before.seq);
        let seq = match self.flaw {
            Flaw::SeqStays => last.max(1),
            Flaw::SeqRunsOn => last + 1,
            _ => record.seq_after(before, last),
        };
        let mut record = TagRecord { seq, ..record };
        if let (Flaw::TellsLastTerms, Some(moved), Some(last)) =
            (self.flaw, &mut record.moved, &record.generation)
        {
            moved.terms.generation.clone_from(last);
        }
        self.watch(world, &record, actor);
        let written = written(world, record);
        let told = world.records.iter().filter(|other| other.event.is_some());
        let fit = |other: &&Arc<Written>| {
            (other.event == written.event) == (other.change == written.change)
        };
        if written.event.is_some() && !told.into_iter().all(|other| fit(&other)) {
            self.wrong =
                Some(format!("a move has two events, or an event two moves: {written:#?}"));
        }
        world.records.push(Arc::new(written));
        Some(Outcome::Written)
    }

    /// What must hold of every write, and what is to be known after it.
    fn watch(&mut self, world: &mut World, after: &TagRecord, actor: Actor) {
        let before = world.record(world.now()).cloned();
        let mut wrong = |what: &str| {
            self.wrong = Some(format!("{what}: {actor:?} writes {after:#?} over {before:#?}"));
        };
        let changed = before.as_ref().map(names) != Some(names(after));
        let old_seq = before.as_ref().map_or(0, |before| before.seq);
        if world.is_pushed(world.now()) && actor != Actor::Customer {
            wrong("a push is overwritten");
        }
        if after.seq < old_seq || changed != (after.seq > old_seq) {
            wrong("the seq does not tell of the change");
        }
        match actor {
            Actor::Hydration(_) if world.is_held => wrong("a frozen tag is written"),
            Actor::Hydration(place) if place < world.newest => wrong("an older word is written"),
            Actor::Hydration(_)
                if changed && before.is_some() && self.cast.follows == Follows::Nothing =>
            {
                wrong("an immutable tag is moved");
            }
            Actor::Hydration(place) => {
                self.reached.moved_back |= changed && place == 2;
                self.reached.followed_again |= changed && world.acts == 2;
                world.newest = place;
            }
            Actor::Operator(Act::Freeze | Act::Unfreeze) if changed => {
                wrong("an operator moves what was only to be frozen or freed");
            }
            Actor::Operator(act) => world.is_held = act != Act::Unfreeze,
            Actor::Customer => world.is_held = false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Written,
    Conflict,
}

fn written(world: &World, record: TagRecord) -> Written {
    let (name, tag) = ("lab/app".parse().unwrap(), "1".parse().unwrap());
    let last = world.records.last();
    let changed = last.map(|last| names(&last.record)) != Some(names(&record));
    let change = last.map_or(0, |last| last.change) + usize::from(changed);
    let event = record.moved_event(&name, &tag).map(|event| event.id);
    Written { hash: hash(&record), change, event, record }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn names(record: &TagRecord) -> (Owner, &Digest) {
    (record.owner, &record.digest)
}

fn sighting(of: &str, generation: &str) -> Sighting {
    let (rule, upstream) = ("lab".to_owned(), "lab".to_owned());
    Sighting {
        digest: Digest::of(of.as_bytes()),
        media_type: MediaType::OciManifest,
        size: 1,
        asked_at: Timestamp::UNIX_EPOCH,
        terms: Terms { rule, generation: generation.to_owned(), upstream },
    }
}
