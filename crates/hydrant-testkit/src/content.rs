//! Bytes that are the same in every run: given, or generated while they are read.

use bytes::Bytes;
use futures::{Stream, stream};
use hydrant_proto::{Algorithm, Digest, Hasher};
use std::{io, ops::Range, sync::OnceLock};

/// Most bytes made at once.
const CHUNK: u64 = 64 * 1024;
/// Most bytes cut from the pool at once.
const SLICE: u64 = 512 * 1024;
/// Bytes of the pool.
const POOL: u64 = 16 * 1024 * 1024;
/// Bytes at the start of pooled content that are its own.
const OWN: u64 = 64;
/// Bytes made by one step of the generator.
const WORD: u64 = 8;

/// The content of a blob. Generated content is never held whole, so it may be larger than memory.
#[derive(Clone, Debug)]
pub enum Content {
    Given(Bytes),
    /// Pseudo-random bytes; every `seed` has its own. Any part can be made without the rest.
    Generated {
        seed: u64,
        length: u64,
    },
    /// A few bytes that are this seed's own, then slices of one pool that the process holds in
    /// memory: it costs no copy and next to no time to make, for servers that others are measured
    /// against.
    Pooled {
        seed: u64,
        length: u64,
    },
}

impl Content {
    pub fn length(&self) -> u64 {
        match self {
            Self::Given(bytes) => bytes.len() as u64,
            Self::Generated { length, .. } | Self::Pooled { length, .. } => *length,
        }
    }

    /// Reads all of it to know its digest.
    pub fn digest(&self) -> Digest {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        self.chunks(0..self.length()).for_each(|chunk| hasher.update(&chunk));
        hasher.finish()
    }

    /// The bytes of `range`, which lies inside, in pieces of at most 512 KiB.
    pub fn chunks(&self, range: Range<u64>) -> impl Iterator<Item = Bytes> + Send + use<> {
        let content = self.clone();
        let mut at = range.start;
        std::iter::from_fn(move || {
            let end = range.end.min(content.piece_end(at));
            (at < end).then(|| {
                let chunk = content.part(at..end);
                at = end;
                chunk
            })
        })
    }

    /// The same as a stream, for a request body.
    pub fn stream(&self) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        stream::iter(self.chunks(0..self.length()).map(Ok))
    }

    /// All of it, held in memory.
    pub fn bytes(&self) -> Bytes {
        self.part(0..self.length())
    }

    fn part(&self, range: Range<u64>) -> Bytes {
        match self {
            Self::Given(bytes) => bytes.slice(index(range.start)..index(range.end)),
            Self::Generated { seed, .. } => generate(*seed, range),
            Self::Pooled { seed, .. } => pooled(*seed, range),
        }
    }

    /// Where a piece that begins at `at` ends at the latest.
    fn piece_end(&self, at: u64) -> u64 {
        match self {
            Self::Given(_) | Self::Generated { .. } => at + CHUNK,
            Self::Pooled { .. } if at < OWN => OWN,
            Self::Pooled { seed, .. } => at + SLICE.min(POOL - place(*seed, at)),
        }
    }
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Self::Given(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Given(bytes.into())
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("the content in memory is addressable")
}

/// Word `n` of the content is a function of the seed and `n` alone.
fn generate(seed: u64, range: Range<u64>) -> Bytes {
    let words = range.start / WORD..range.end.div_ceil(WORD);
    let skipped = index(range.start % WORD);
    let bytes: Vec<u8> = words.flat_map(|n| word(seed, n).to_le_bytes()).collect();
    Bytes::from(bytes).slice(skipped..skipped + index(range.end - range.start))
}

/// Bytes of pooled content: a slice of the pool where the range allows it, else a copy.
fn pooled(seed: u64, range: Range<u64>) -> Bytes {
    if range.end <= OWN {
        return generate(seed, range);
    }
    let (start, length) = (place(seed, range.start), range.end - range.start);
    if range.start >= OWN && start + length <= POOL {
        return pool().slice(index(start)..index(start + length));
    }
    let pieces = Content::Pooled { seed, length: range.end }.chunks(range);
    pieces.flatten().collect()
}

/// Where in the pool the byte `at` of the content of `seed` lies.
fn place(seed: u64, at: u64) -> u64 {
    (word(seed, u64::MAX) % POOL + at) % POOL
}

fn pool() -> &'static Bytes {
    static BYTES: OnceLock<Bytes> = OnceLock::new();
    BYTES.get_or_init(|| generate(0, 0..POOL))
}

/// SplitMix64 (Steele, Lea, Flood 2014), stepped to position `n` of the sequence of `seed`.
fn word(seed: u64, n: u64) -> u64 {
    const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
    let start = seed.wrapping_mul(0xd134_2543_de82_ef95);
    let z = start.wrapping_add(GAMMA.wrapping_mul(n.wrapping_add(1)));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_equals_that_part_of_the_whole() {
        let content = Content::Generated { seed: 7, length: 300_001 };
        let whole = content.bytes();
        for range in [0..1, 3..17, 65_535..65_545, 299_990..300_001, 5..5, 0..300_001] {
            let part: Vec<u8> = content.chunks(range.clone()).flatten().collect();
            assert_eq!(part, whole[index(range.start)..index(range.end)]);
        }
        assert_eq!(content.digest(), Digest::of(&whole));
        assert_ne!(content.digest(), Content::Generated { seed: 8, length: 300_001 }.digest());
    }

    #[test]
    fn pooled_content_may_be_read_from_anywhere() {
        let content = Content::Pooled { seed: 7, length: 2 * POOL + 1 };
        let whole = content.bytes();
        let ranges = [0..1, 3..OWN + 3, OWN..OWN + 9, POOL - 9..POOL + 9, 2 * POOL..2 * POOL + 1];
        for range in ranges {
            let part: Vec<u8> = content.chunks(range.clone()).flatten().collect();
            assert_eq!(part, whole[index(range.start)..index(range.end)]);
        }
        let other = |seed| Content::Pooled { seed, length: 1_000 }.digest();
        assert_ne!(other(1), other(2));
    }
}
