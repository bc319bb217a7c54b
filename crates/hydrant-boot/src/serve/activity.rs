//! What was asked on a connection, and whether it is answered: hyper closes an idle connection of
//! HTTP/1 by itself, and none of HTTP/2.

use axum::body::Body;
use hyper::body::{Bytes, Frame, SizeHint};
use std::{
    future::pending,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::sleep;

/// The requests of one connection; those over HTTP/1 are not counted.
#[derive(Debug, Default)]
pub(super) struct Activity {
    is_used: AtomicBool,
    begun: AtomicU64,
    ended: AtomicU64,
}

/// A request until it is answered.
#[derive(Debug)]
pub(super) struct Asked(Arc<Activity>);

/// A body with which the answer ends.
struct Ending {
    body: Body,
    _asked: Asked,
}

impl Activity {
    pub fn begins(&self) {
        self.is_used.store(true, Ordering::Relaxed);
    }

    pub fn asked(self: &Arc<Self>) -> Asked {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Asked(self.clone())
    }

    fn counts(&self) -> (u64, u64) {
        (self.begun.load(Ordering::Relaxed), self.ended.load(Ordering::Relaxed))
    }

    /// Returns when nothing was asked within `limit`. hyper's own limit begins with the bytes that tell
    /// HTTP/1 from HTTP/2, and there is none for HTTP/2: who sends nothing would keep a slot for ever.
    pub async fn silence(&self, limit: Duration) {
        sleep(limit).await;
        if self.is_used.load(Ordering::Relaxed) {
            pending().await
        }
    }

    /// Returns when nothing was asked and nothing answered for `limit`, or up to twice as long, after
    /// something was.
    pub async fn idle(&self, limit: Duration) {
        let mut before = self.counts();
        loop {
            sleep(limit).await;
            let now = self.counts();
            if now == before && now.0 == now.1 && now.0 > 0 {
                return;
            }
            before = now;
        }
    }
}

impl Asked {
    pub fn until_end_of(
        self,
        body: Body,
    ) -> impl hyper::body::Body<Data = Bytes, Error = axum::Error> {
        Ending { body, _asked: self }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

impl hyper::body::Body for Ending {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
