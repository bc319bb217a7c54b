//! What happens in one run: all of it is drawn from the seed. What the threads make of it is not, so
//! a run that failed once is repeated a few times.

use crate::lab::MIB;
use hydrant_proto::Digest;
use hydrant_testkit::{Content, Flow};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use std::{ops::Range, time::Duration};

/// What goes wrong in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    Nothing,
    Deaths,
    Links,
    Bus,
    Upstream,
    Storage,
    Everything,
}

#[derive(Debug)]
pub struct Plan {
    pub trouble: Trouble,
    pub members: usize,
    /// The first is the largest.
    pub blobs: Vec<PlannedBlob>,
    pub readers: Vec<PlannedReader>,
    pub faults: Vec<PlannedFault>,
}

#[derive(Debug)]
pub struct PlannedBlob {
    pub content: Content,
    pub digest: Digest,
    /// Who asks for it knows its size.
    pub described: bool,
    /// Its upstream is read by parallel ranges.
    pub wide: bool,
    pub bytes_per_second: u64,
}

#[derive(Debug)]
pub struct PlannedReader {
    pub member: usize,
    pub blob: usize,
    pub repository: &'static str,
    pub boards: Boards,
    pub wants: Wants,
    pub arrives: Duration,
    /// After each chunk.
    pub pause: Duration,
}

/// How a reader gets on a flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boards {
    /// What it is entitled to is not known yet.
    Unproven,
    Entitled,
}

#[derive(Clone, Debug)]
pub enum Wants {
    Whole,
    Part(Range<u64>),
    /// Leaves when it has so many bytes.
    Some(u64),
}

#[derive(Debug)]
pub struct PlannedFault {
    /// After the one before.
    pub pause: Duration,
    pub fault: Fault,
}

#[derive(Debug)]
pub enum Fault {
    /// Whoever leads the flight of the first blob stops.
    StopLeader,
    CutPeer(usize),
    Peer(usize, Flow, Duration),
    Bus(usize, Flow, Duration),
    BusForAll(Flow, Duration),
    /// One member is off the network, and does not notice.
    Freeze(usize, Duration),
    /// Storage fails.
    Storage(Duration),
    Upstream(usize, Misdeed),
}

/// What the upstream does once.
#[derive(Clone, Copy, Debug)]
pub enum Misdeed {
    Truncates(u64),
    Answers(u16),
    Hesitates(Duration),
}

pub const REPOSITORIES: [&str; 2] = ["lab/one", "lab/two"];

impl Plan {
    pub fn draw(trouble: Trouble, seed: u64) -> Self {
        let mut dice = StdRng::seed_from_u64(seed);
        let members = dice.random_range(3..=4);
        let blobs: Vec<_> = (0..4).map(|n| blob(&mut dice, trouble, seed, n)).collect();
        // Everybody reads the first blob from its beginning; the others are anybody's.
        let mut readers: Vec<_> = (0..members).map(first_reader).collect();
        let more = dice.random_range(8..=16);
        readers.extend((0..more).map(|n| reader(&mut dice, members, &blobs, n % blobs.len())));
        let count = if trouble == Trouble::Deaths { 1..=2 } else { 2..=5 };
        let count = dice.random_range(count);
        let mut faults: Vec<_> =
            (0..count).filter_map(|_| fault(&mut dice, trouble, members, &blobs)).collect();
        // The upstream misbehaves from the beginning, so that somebody meets with it.
        faults.sort_by_key(|planned| !matches!(planned.fault, Fault::Upstream(..)));
        Self { trouble, members, blobs, readers, faults }
    }
}

fn blob(dice: &mut StdRng, trouble: Trouble, seed: u64, n: u64) -> PlannedBlob {
    let length = match (n, trouble) {
        (0, Trouble::Deaths) => 32 * MIB,
        (0, _) => dice.random_range(8 * MIB..=12 * MIB),
        _ => *[0, 1, 300_000, 2 * MIB, dice.random_range(1..=6 * MIB)].choose(dice).unwrap(),
    };
    let content = Content::Generated { seed: seed * 100 + n + 1, length };
    PlannedBlob {
        digest: content.digest(),
        content,
        described: dice.random_bool(0.6),
        wide: dice.random_bool(0.4),
        bytes_per_second: dice.random_range(4 * MIB..=16 * MIB),
    }
}

fn first_reader(member: usize) -> PlannedReader {
    PlannedReader {
        member,
        blob: 0,
        repository: REPOSITORIES[0],
        boards: Boards::Entitled,
        wants: Wants::Whole,
        arrives: Duration::ZERO,
        pause: Duration::ZERO,
    }
}

fn reader(dice: &mut StdRng, members: usize, blobs: &[PlannedBlob], blob: usize) -> PlannedReader {
    let length = blobs[blob].content.length();
    let wants = match dice.random_range(0..4) {
        0 if length > 1 => {
            let from = dice.random_range(0..length - 1);
            Wants::Part(from..dice.random_range(from + 1..=length))
        }
        1 => Wants::Some(dice.random_range(0..=length)),
        _ => Wants::Whole,
    };
    PlannedReader {
        member: dice.random_range(0..members),
        blob,
        repository: REPOSITORIES.choose(dice).unwrap(),
        boards: if dice.random_bool(0.5) { Boards::Unproven } else { Boards::Entitled },
        wants,
        arrives: millis(dice, 0..1_500),
        pause: if dice.random_bool(0.2) { millis(dice, 1..40) } else { Duration::ZERO },
    }
}

fn fault(
    dice: &mut StdRng,
    trouble: Trouble,
    members: usize,
    blobs: &[PlannedBlob],
) -> Option<PlannedFault> {
    let pause = millis(dice, 50..700);
    let member = dice.random_range(0..members);
    let fault = match trouble {
        Trouble::Nothing => return None,
        Trouble::Deaths => Fault::StopLeader,
        Trouble::Links => link_fault(dice, member),
        Trouble::Bus => bus_fault(dice, member),
        Trouble::Upstream => Fault::Upstream(dice.random_range(0..blobs.len()), misdeed(dice)),
        Trouble::Storage => Fault::Storage(millis(dice, 200..2_500)),
        Trouble::Everything => {
            const ANY: [Trouble; 5] = [
                Trouble::Deaths,
                Trouble::Links,
                Trouble::Bus,
                Trouble::Upstream,
                Trouble::Storage,
            ];
            let any = *ANY.choose(dice).unwrap();
            return fault(dice, any, members, blobs);
        }
    };
    Some(PlannedFault { pause, fault })
}

fn link_fault(dice: &mut StdRng, member: usize) -> Fault {
    let lasting = millis(dice, 100..4_000);
    match dice.random_range(0..4) {
        0 => Fault::CutPeer(member),
        1 => Fault::Peer(member, Flow::Hold, lasting),
        2 => Fault::Peer(member, Flow::Refuse, lasting),
        _ => Fault::Freeze(member, lasting),
    }
}

fn bus_fault(dice: &mut StdRng, member: usize) -> Fault {
    let lasting = millis(dice, 100..4_500);
    let flow = *[Flow::Hold, Flow::Refuse, Flow::LoseAnswers].choose(dice).unwrap();
    match dice.random_bool(0.5) {
        true => Fault::Bus(member, flow, lasting),
        false => Fault::BusForAll(flow, lasting),
    }
}

fn misdeed(dice: &mut StdRng) -> Misdeed {
    match dice.random_range(0..3) {
        0 => Misdeed::Truncates(dice.random_range(0..4 * MIB)),
        1 => Misdeed::Answers(*[500, 502, 503].choose(dice).unwrap()),
        _ => Misdeed::Hesitates(millis(dice, 100..1_500)),
    }
}

fn millis(dice: &mut StdRng, range: Range<u64>) -> Duration {
    Duration::from_millis(dice.random_range(range))
}
