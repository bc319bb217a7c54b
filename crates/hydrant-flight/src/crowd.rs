//! How large the pieces are in which bodies come in: those of a crowd take no more memory than those of
//! a few.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Bytes of a piece, unless there is a crowd: as many as make it worth handing over to a thread.
pub(crate) const PIECE: usize = 256 * 1024;
/// Bytes of a piece in the largest crowd.
const SMALLEST: usize = 32 * 1024;
/// What one piece of each body comes to at most, until pieces are at their smallest.
const OF_ALL: usize = 16 * 1024 * 1024;

/// The bodies on their way into this process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Crowd(Arc<AtomicUsize>);

/// One of them, until this is dropped.
#[derive(Debug)]
pub(crate) struct Member(Crowd);

impl Crowd {
    pub fn join(&self) -> Member {
        self.0.fetch_add(1, Relaxed);
        Member(self.clone())
    }
}

impl Member {
    /// Most bytes of a piece at the moment: a power of two.
    pub fn piece(&self) -> usize {
        let share = OF_ALL / self.0.0.load(Relaxed).max(1);
        (1 << share.max(1).ilog2()).clamp(SMALLEST, PIECE)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_crowd_are_smaller_and_come_to_no_more() {
        let crowd = Crowd::default();
        let mut members = vec![crowd.join()];
        for (count, piece) in [(1, PIECE), (64, PIECE), (65, PIECE / 2), (500, SMALLEST)] {
            members.resize_with(count, || crowd.join());
            assert_eq!(members[0].piece(), piece, "{count}");
            assert!(count * piece <= OF_ALL, "{count}");
        }
        members.truncate(1);
        assert_eq!(members[0].piece(), PIECE);
    }
}
