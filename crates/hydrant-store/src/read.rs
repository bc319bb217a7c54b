//! Streams of stored bytes: resumed when the connection breaks, and verified when read whole.

use crate::{
    Store,
    error::{StoreError, classify},
    pread::read_exact,
};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use hydrant_proto::{Digest, Hasher};
use object_store::{GetOptions, GetRange, GetResult, GetResultPayload, path::Path};
use std::{fs::File, ops::Range, pin::Pin, sync::Arc};
use tokio::task::spawn_blocking;

/// Bytes read from a file at a time. A reader that stands still holds two such: what is on its way
/// out, and what waits for the end to be verified.
const FILE_CHUNK: u64 = 128 * 1024;
/// Breaks in a row, without a byte between them, after which a read gives up.
const MAX_BREAKS: u32 = 3;

pub(crate) type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, StoreError>> + Send>>;

/// The bytes `range` of the object, whose first answer is `opened`. When the body breaks or ends
/// early, the rest is asked for again: content under a key never changes.
pub(crate) fn resumed(
    store: Store,
    path: Path,
    opened: GetResult,
    range: Range<u64>,
) -> impl Stream<Item = Result<Bytes, StoreError>> + Send {
    let reading = Reading {
        store,
        path: path.clone(),
        at: range.start,
        end: range.end,
        body: None,
        breaks: 0,
    };
    stream::once(async move { Reading { body: Some(body(&path, opened)), ..reading } }).flat_map(
        |reading| {
            stream::try_unfold(reading, async |mut reading: Reading| {
                Ok(reading.next().await?.map(|bytes| (bytes, reading)))
            })
        },
    )
}

struct Reading {
    store: Store,
    path: Path,
    at: u64,
    end: u64,
    body: Option<Chunks>,
    breaks: u32,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        while self.at < self.end {
            let broken = match self.chunk().await {
                Ok(Some(bytes)) if self.at + bytes.len() as u64 <= self.end => {
                    self.at += bytes.len() as u64;
                    self.breaks = 0;
                    return Ok(Some(bytes));
                }
                Ok(Some(_)) => self.unavailable("more bytes came than were asked for"),
                Ok(None) => self.unavailable("the body ended early"),
                Err(error) => error,
            };
            self.body = None;
            self.breaks += 1;
            if self.breaks > MAX_BREAKS {
                return Err(broken);
            }
            tracing::debug!(key = %self.path, at = self.at, error = %broken, "read is resumed");
        }
        Ok(None)
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.body.is_none() {
            let range = Some(GetRange::Bounded(self.at..self.end));
            let options = GetOptions { range, ..GetOptions::default() };
            let opened = self.store.get(&self.path, options).await?;
            let opened = opened.ok_or_else(|| self.unavailable("it is gone"))?;
            self.body = Some(body(&self.path, opened));
        }
        self.body.as_mut().expect("set above").next().await.transpose()
    }

    fn unavailable(&self, reason: &'static str) -> StoreError {
        let cause = Arc::new(std::io::Error::other(reason));
        StoreError::Unavailable { key: self.path.to_string(), cause }
    }
}

/// The bytes of one answer. Files are read here, because the library reads them 8 KiB at a time.
fn body(path: &Path, opened: GetResult) -> Chunks {
    let path = path.clone();
    match opened.payload {
        GetResultPayload::Stream(chunks) => {
            Box::pin(chunks.map_err(move |error| classify(&path, error)))
        }
        GetResultPayload::File(file, _) => {
            let unavailable = move |error: std::io::Error| StoreError::Unavailable {
                key: path.to_string(),
                cause: Arc::new(error),
            };
            Box::pin(pieces(file, opened.range).map_err(unavailable))
        }
    }
}

fn pieces(file: File, range: Range<u64>) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
    let file = Arc::new(file);
    stream::try_unfold(range, move |left: Range<u64>| {
        let file = file.clone();
        async move {
            if left.is_empty() {
                return Ok(None);
            }
            let at = left.end.min(left.start + FILE_CHUNK);
            let read = spawn_blocking(move || read_exact(&file, left.start..at));
            let bytes = read.await.expect("reading does not panic")?;
            Ok(Some((bytes, at..left.end)))
        }
    })
}

/// Passes `chunks` on, one behind: the last one only when all of them hash to `digest`. A mismatch
/// ends the stream with an error. `judge` is told at the end whether they did.
pub(crate) fn verified(
    chunks: impl Stream<Item = Result<Bytes, StoreError>> + Send + 'static,
    digest: Digest,
    judge: impl FnOnce(bool) + Send + 'static,
) -> Chunks {
    let checking = Checking {
        chunks: Box::pin(chunks),
        hasher: Some(Hasher::new(digest.algorithm())),
        digest,
        held: None,
        judge: Some(judge),
    };
    Box::pin(stream::try_unfold(checking, async |mut checking: Checking<_>| {
        Ok(checking.next().await?.map(|bytes| (bytes, checking)))
    }))
}

struct Checking<F> {
    chunks: Chunks,
    digest: Digest,
    /// `None` once the end was reached.
    hasher: Option<Hasher>,
    held: Option<Bytes>,
    judge: Option<F>,
}

impl<F: FnOnce(bool)> Checking<F> {
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        while let Some(hasher) = &mut self.hasher {
            match self.chunks.next().await.transpose()? {
                Some(bytes) => {
                    hasher.update(&bytes);
                    if let Some(previous) = self.held.replace(bytes) {
                        return Ok(Some(previous));
                    }
                }
                None => return self.end(),
            }
        }
        Ok(None)
    }

    fn end(&mut self) -> Result<Option<Bytes>, StoreError> {
        let hasher = self.hasher.take().expect("the end is reached once");
        let is_sound = hasher.finish() == self.digest;
        if let Some(judge) = self.judge.take() {
            judge(is_sound);
        }
        if is_sound {
            return Ok(self.held.take());
        }
        let reason = "its bytes hash to another digest".to_owned();
        Err(StoreError::Corrupt { digest: self.digest.clone(), reason })
    }
}
