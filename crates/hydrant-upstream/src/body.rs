//! Reading small bodies whole: with a limit on their size and on the time they take.

use bytes::{Bytes, BytesMut};
use hydrant_egress::{Broken, Response};
use std::time::Duration;
use tokio::time::timeout;

/// Why a body could not be read whole.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    #[error("the body has more than {0} bytes")]
    TooLong(usize),
    #[error("the body broke off: {0}")]
    Broken(#[from] Broken),
    #[error("the body took longer than {}s", .0.as_secs())]
    TooSlow(Duration),
}

/// The body of `response`, if it has at most `limit` bytes and ends within `patience`.
pub async fn collect(
    response: Response,
    limit: usize,
    patience: Duration,
) -> Result<Bytes, Unread> {
    timeout(patience, read(response, limit)).await.unwrap_or(Err(Unread::TooSlow(patience)))
}

async fn read(response: Response, limit: usize) -> Result<Bytes, Unread> {
    let mut coming = response.into_body();
    let told = coming.length().unwrap_or(0);
    if told > limit as u64 {
        return Err(Unread::TooLong(limit));
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = coming.chunk().await? {
        if body.len() + chunk.len() > limit {
            return Err(Unread::TooLong(limit));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}
