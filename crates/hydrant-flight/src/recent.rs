//! The last pieces of a flight, in memory: a reader who keeps up is served from here and costs the
//! spool file nothing. What is kept is bounded for each flight and for all of them; whoever is further
//! behind reads the file.

use bytes::Bytes;
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// Most bytes kept of one flight.
const OF_ONE: usize = 1024 * 1024;
/// Most bytes kept of all flights of a process.
const OF_ALL: usize = 16 * 1024 * 1024;

/// What all flights keep, in bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Budget(Arc<AtomicUsize>);

/// The last pieces of one flight, while there are readers.
#[derive(Debug)]
pub(crate) struct Recent {
    budget: Budget,
    readers: AtomicUsize,
    pieces: Mutex<Pieces>,
}

#[derive(Debug, Default)]
struct Pieces {
    /// Offset and bytes of each, one behind the other.
    all: VecDeque<(u64, Bytes)>,
    bytes: usize,
}

impl Recent {
    pub fn new(budget: &Budget) -> Self {
        Self { budget: budget.clone(), readers: AtomicUsize::new(0), pieces: Mutex::default() }
    }

    /// Keeps what came, as the last pieces, if anybody reads.
    pub fn keep(&self, mut at: u64, came: &[Bytes]) {
        let mut pieces = self.pieces();
        for piece in came {
            self.keep_one(&mut pieces, at, piece.clone());
            at += piece.len() as u64;
        }
    }

    fn keep_one(&self, pieces: &mut Pieces, at: u64, piece: Bytes) {
        let room = if self.readers.load(Relaxed) > 0 { OF_ONE } else { 0 };
        while pieces.bytes > 0 && pieces.bytes + piece.len() > room {
            self.forget_first(pieces);
        }
        if piece.len() <= room && self.take(piece.len()) {
            pieces.bytes += piece.len();
            pieces.all.push_back((at, piece));
        }
    }

    /// The bytes from `at` on, as many as one piece has; at most up to `end`.
    pub fn read(&self, at: u64, end: u64) -> Option<Bytes> {
        let pieces = self.pieces();
        let (offset, piece) = pieces
            .all
            .iter()
            .find(|(offset, piece)| *offset <= at && at < *offset + piece.len() as u64)?;
        let to = piece.len().min(usize::try_from(end - offset).unwrap_or(usize::MAX));
        Some(piece.slice(usize::try_from(at - offset).ok()?..to))
    }

    pub fn reader(&self) {
        self.readers.fetch_add(1, Relaxed);
    }

    pub fn reader_left(&self) {
        if self.readers.fetch_sub(1, Relaxed) == 1 {
            self.forget_all();
        }
    }

    fn forget_all(&self) {
        let mut pieces = self.pieces();
        while pieces.bytes > 0 {
            self.forget_first(&mut pieces);
        }
    }

    fn forget_first(&self, pieces: &mut Pieces) {
        let length = pieces.all.pop_front().map_or(0, |(_, piece)| piece.len());
        pieces.bytes -= length;
        self.budget.0.fetch_sub(length, Relaxed);
    }

    fn take(&self, bytes: usize) -> bool {
        let fits = |used: usize| (used + bytes <= OF_ALL).then_some(used + bytes);
        self.budget.0.fetch_update(Relaxed, Relaxed, fits).is_ok()
    }

    fn pieces(&self) -> MutexGuard<'_, Pieces> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Recent {
    fn drop(&mut self) {
        self.forget_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(byte: u8, length: usize) -> Bytes {
        vec![byte; length].into()
    }

    #[test]
    fn the_last_pieces_are_kept_while_anybody_reads_and_no_more_than_allowed() {
        let budget = Budget::default();
        let recent = Recent::new(&budget);
        recent.keep(0, &[piece(0, 10)]);
        assert_eq!(recent.read(0, 10), None, "nobody reads");
        recent.reader();
        for (n, at) in (0_u8..8).zip((0..).step_by(OF_ONE / 4)) {
            recent.keep(at, &[piece(n, OF_ONE / 4)]);
            assert!(budget.0.load(Relaxed) <= OF_ONE);
        }
        let quarter = OF_ONE as u64 / 4;
        assert_eq!(recent.read(3 * quarter, u64::MAX), None, "it is long past");
        assert_eq!(recent.read(5 * quarter - 2, u64::MAX).unwrap(), [4, 4][..]);
        assert_eq!(recent.read(5 * quarter + 1, 5 * quarter + 4).unwrap(), [5, 5, 5][..]);
        assert_eq!(recent.read(8 * quarter, u64::MAX), None, "it is not there yet");
        let others = Recent::new(&budget);
        budget.0.fetch_add(OF_ALL - OF_ONE, Relaxed);
        others.reader();
        others.keep(0, &[piece(9, 1)]);
        assert_eq!(others.read(0, 1), None, "all there may be is kept already");
        recent.reader_left();
        assert_eq!(budget.0.load(Relaxed), OF_ALL - OF_ONE);
    }
}
