//! A body on its way here, in pieces worth a thread's while: what comes in small chunks is gathered
//! for a moment, since hashing, writing and waking readers cost as much for a little as for a lot. Only
//! short ones are copied for that.

use crate::{
    crowd::{Crowd, Member},
    error::FlightError,
    load::Body,
};
use bytes::{Buf, Bytes, BytesMut};
use futures::{StreamExt, stream::BoxStream};
use std::{mem, time::Duration};
use tokio::time::{Instant, timeout_at};

/// Chunks shorter than this are copied, in bytes: the read buffer that they are of stays in memory as
/// long as they do, and is twice as large at most then (64 KiB, `hydrant-egress`).
const SHORT: usize = 32 * 1024;
/// Most bytes of short ones in one.
const TOGETHER: usize = 64 * 1024;
/// Longest wait for the rest of a piece. What has come so far keeps its readers waiting for so long.
const LINGER: Duration = Duration::from_millis(2);

/// The next bytes, and how the body ended, if it has.
pub(crate) struct Piece {
    pub bytes: Gathered,
    pub end: Option<End>,
}

/// Bytes one behind the other, as the chunks in which they came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gathered {
    chunks: Vec<Bytes>,
    /// The last ones, while they are short.
    short: BytesMut,
    length: usize,
}

#[derive(Debug)]
pub(crate) enum End {
    Clean,
    Broken(FlightError),
}

pub(crate) struct Intake {
    chunks: BoxStream<'static, Result<Bytes, FlightError>>,
    /// Bytes at the beginning that are here already.
    skip: u64,
    /// What came beyond the last piece.
    rest: Bytes,
    /// Where the next piece begins in the blob.
    at: u64,
    linger: Duration,
    crowd: Member,
}

impl Intake {
    /// `here` bytes of the blob are here already.
    pub fn new(body: Body, here: u64, crowd: &Crowd) -> Result<Self, FlightError> {
        let gap = || format!("it begins at {}, where {here} bytes are here", body.offset);
        let skip = here.checked_sub(body.offset).ok_or_else(|| FlightError::Integrity(gap()))?;
        Ok(Self {
            chunks: body.stream,
            skip,
            rest: Bytes::new(),
            at: here,
            // Readers wait for their first byte.
            linger: Duration::ZERO,
            crowd: crowd.join(),
        })
    }

    /// The next piece: a full one, or what has come within a moment of its first byte. Bytes are
    /// lost when it is not waited for to the end.
    pub async fn next(&mut self) -> Piece {
        // It ends at a multiple of its length in the blob, so that files are written in whole pages.
        let most = self.crowd.piece();
        let full = most - usize::try_from(self.at % most as u64).unwrap_or(0);
        let mut gathered = Gathered::default();
        let mut until = None;
        let end = loop {
            let skipped = self.skipped();
            self.rest.advance(skipped);
            let taken = self.rest.len().min(full - gathered.len());
            if taken > 0 && gathered.is_empty() {
                until = Some(Instant::now() + self.linger);
            }
            gathered.push(self.rest.split_to(taken));
            if gathered.len() == full {
                break None;
            }
            let next = match until {
                None => self.chunks.next().await,
                Some(until) => match timeout_at(until, self.chunks.next()).await {
                    Ok(next) => next,
                    Err(_) => break None,
                },
            };
            match next {
                Some(Ok(chunk)) => self.rest = chunk,
                Some(Err(error)) => break Some(End::Broken(error)),
                None => break Some(End::Clean),
            }
        };
        self.linger = LINGER;
        self.at += gathered.len() as u64;
        Piece { bytes: gathered, end }
    }

    /// How many bytes of the chunk at hand are here already.
    fn skipped(&mut self) -> usize {
        let skipped = self.rest.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
        self.skip -= skipped as u64;
        skipped
    }
}

impl Gathered {
    fn push(&mut self, chunk: Bytes) {
        self.length += chunk.len();
        let is_short = chunk.len() < SHORT;
        if !is_short || self.short.len() + chunk.len() > TOGETHER {
            self.settle();
        }
        match is_short {
            true => self.short.extend_from_slice(&chunk),
            false => self.chunks.push(chunk),
        }
    }

    /// Makes a chunk of the short ones so far.
    fn settle(&mut self) {
        if !self.short.is_empty() {
            self.chunks.push(mem::take(&mut self.short).freeze());
        }
    }

    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub fn into_chunks(mut self) -> Vec<Bytes> {
        self.settle();
        self.chunks
    }
}

impl From<Bytes> for Gathered {
    fn from(bytes: Bytes) -> Self {
        let mut gathered = Self::default();
        gathered.push(bytes);
        gathered
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crowd::PIECE;
    use futures::stream;
    use tokio::time::sleep;

    fn intake(chunks: Vec<(u64, Result<Vec<u8>, FlightError>)>, here: u64) -> Intake {
        let stream = stream::iter(chunks).then(|(millis, chunk)| async move {
            sleep(Duration::from_millis(millis)).await;
            chunk.map(Bytes::from)
        });
        Intake::new(Body { offset: 2, stream: stream.boxed() }, here, &Crowd::default()).unwrap()
    }

    async fn all(mut intake: Intake) -> Vec<Bytes> {
        let mut all = Vec::new();
        loop {
            let Piece { bytes, end } = intake.next().await;
            all.extend(bytes.into_chunks());
            if end.is_some() {
                return all;
            }
        }
    }

    async fn lengths(mut intake: Intake) -> (Vec<usize>, End) {
        let mut lengths = Vec::new();
        loop {
            let Piece { bytes, end } = intake.next().await;
            lengths.extend((!bytes.is_empty()).then_some(bytes.len()));
            if let Some(end) = end {
                return (lengths, end);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_within_a_moment_is_one_piece_and_the_first_is_not_kept_waiting() {
        let chunk = |millis, length| (millis, Ok(vec![0; length]));
        let chunks = vec![chunk(9, 3), chunk(1, 5), chunk(1, 7), chunk(9, 2), chunk(0, 4)];
        let (pieces, end) = lengths(intake(chunks, 3)).await;
        assert_eq!(pieces, [2, 12, 6], "one byte is here already");
        assert!(matches!(end, End::Clean));
    }

    #[tokio::test(start_paused = true)]
    async fn pieces_are_no_larger_than_that_and_all_comes_before_the_error() {
        let chunks = vec![(0, Ok(vec![0; 2 * PIECE + 5])), (0, Err(FlightError::Stopping))];
        let (pieces, end) = lengths(intake(chunks, 2)).await;
        assert_eq!(pieces, [PIECE - 2, PIECE, 7], "they end where pages do");
        assert!(matches!(end, End::Broken(FlightError::Stopping)));
    }

    #[tokio::test(start_paused = true)]
    async fn only_short_chunks_are_copied() {
        let large = vec![1; SHORT];
        let lies = large.as_ptr();
        let mut chunks = vec![(0, Ok(vec![0; 7])); 3];
        chunks.extend([(0, Ok(large)), (0, Ok(vec![2; SHORT - 1])), (0, Ok(vec![3; 2]))]);
        let bytes = all(intake(chunks, 2)).await;
        let lengths: Vec<_> = bytes.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [21, SHORT, SHORT + 1]);
        assert_eq!(bytes[1].as_ptr(), lies);
    }

    #[test]
    fn a_body_that_begins_behind_what_is_here_is_refused() {
        let body = Body { offset: 2, stream: stream::empty().boxed() };
        assert!(matches!(Intake::new(body, 1, &Crowd::default()), Err(FlightError::Integrity(_))));
    }
}
