//! One reader: it gets on a flight as frontends do, and compares every byte that it is given.

use crate::{
    lab::Member,
    plan::{Boards, PlannedReader, Wants},
};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use hydrant_flight::{Flight, FlightError, Grant, Opened, Source};
use hydrant_store::Store;
use std::{ops::Range, pin::pin};

/// How a reading ended.
#[derive(Debug)]
pub enum End {
    /// With every byte that was wanted.
    Clean,
    Left,
    Failed(String),
}

/// What is read, and where.
pub struct Reading<'a> {
    pub member: &'a Member,
    pub store: &'a Store,
    pub source: Source,
    pub grant: Grant,
    /// What the blob is.
    pub bytes: Bytes,
}

impl Reading<'_> {
    /// Panics on a byte that is not the blob's, and on a clean end that comes too early.
    pub async fn run(&self, plan: &PlannedReader) -> End {
        tokio::time::sleep(plan.arrives).await;
        let size = self.bytes.len() as u64;
        let wanted = match &plan.wants {
            Wants::Part(range) => range.clone(),
            Wants::Whole | Wants::Some(_) => 0..size,
        };
        match self.board(plan.boards).await {
            Err(error) => End::Failed(error.to_string()),
            Ok((_, Opened::Stored { size: told })) => {
                assert_eq!(told, size, "size of what is stored");
                self.stored(plan, wanted).await
            }
            Ok((flight, Opened::Flying { size: told })) => {
                assert_eq!(told, Some(size), "size of what flies");
                let end = Some(wanted.end).filter(|_| matches!(plan.wants, Wants::Part(_)));
                self.follow(plan, wanted.clone(), flight.read(wanted.start, end)).await
            }
        }
    }

    /// What is in flight for others may be joined by who is entitled, which every reader here is.
    async fn board(&self, mut boards: Boards) -> Result<(Flight, Opened), FlightError> {
        loop {
            let flights = &self.member.flights;
            let begun = match boards {
                Boards::Unproven => flights.begin(self.source.clone(), &self.grant)?,
                Boards::Entitled => None,
            };
            let flight = match begun {
                Some(flight) => flight,
                None => flights.join_or_start(self.source.clone(), &self.grant).await?,
            };
            match flight.opened().await {
                Ok(opened) => return Ok((flight, opened)),
                Err(FlightError::Foreign) => boards = Boards::Entitled,
                Err(error) => return Err(error),
            }
        }
    }

    async fn stored(&self, plan: &PlannedReader, wanted: Range<u64>) -> End {
        let range = Some(wanted.clone()).filter(|_| matches!(plan.wants, Wants::Part(_)));
        match self.store.read_blob(&self.source.digest, range).await {
            Ok(Some(found)) => self.follow(plan, wanted, found.stream).await,
            Ok(None) => End::Failed("it is not stored after all".to_owned()),
            Err(error) => End::Failed(error.to_string()),
        }
    }

    async fn follow<E: std::fmt::Display>(
        &self,
        plan: &PlannedReader,
        wanted: Range<u64>,
        stream: impl Stream<Item = Result<Bytes, E>>,
    ) -> End {
        let expected = self.bytes.slice(index(wanted.start)..index(wanted.end));
        let mut stream = pin!(stream);
        let mut at = 0;
        loop {
            if matches!(plan.wants, Wants::Some(enough) if at as u64 >= enough) {
                return End::Left;
            }
            match stream.next().await {
                Some(Ok(chunk)) => {
                    let right = expected.get(at..at + chunk.len());
                    assert!(right == Some(&*chunk), "wrong bytes at {at} of {wanted:?}");
                    at += chunk.len();
                }
                Some(Err(error)) => {
                    assert!(at < expected.len() || at == 0, "all of it, and an error: {error}");
                    return End::Failed(error.to_string());
                }
                None => {
                    assert_eq!(at, expected.len(), "a clean end");
                    return End::Clean;
                }
            }
            tokio::time::sleep(plan.pause).await;
        }
    }
}

fn index(at: u64) -> usize {
    usize::try_from(at).unwrap()
}
