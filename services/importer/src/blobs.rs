//! The blobs of a closure, made durable and linked: those present are not fetched again, the rest
//! fly concurrently.

use crate::{error::ImportError, progress::Progress};
use futures::{StreamExt, TryStreamExt, stream};
use hydrant_flight::{Flight, Flights, Source};
use hydrant_proto::Descriptor;
use hydrant_rules::Route;
use hydrant_store::Store;
use hydrant_upstream::{Client, Priority};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};

/// Blobs of one job under way at once.
const WIDTH: usize = 4;
/// A flight that brings fewer than [`STALLED_BYTES`] in this time does not keep a worker waiting.
const STALLED_AFTER: Duration = Duration::from_secs(120);
const STALLED_BYTES: u64 = 64 * 1024;

pub(crate) struct Blobs<'a> {
    pub store: &'a Store,
    pub flights: &'a Flights,
    pub client: &'a Arc<Client>,
    pub route: &'a Route,
    pub priority: Priority,
    pub progress: &'a Progress,
}

impl Blobs<'_> {
    /// Makes every blob durable and links it to the repository.
    pub async fn settle(
        &self,
        blobs: impl Iterator<Item = Descriptor>,
    ) -> Result<(), ImportError> {
        stream::iter(blobs)
            .map(|blob| self.settle_one(blob))
            .buffer_unordered(WIDTH)
            .try_collect::<()>()
            .await
    }

    async fn settle_one(&self, blob: Descriptor) -> Result<(), ImportError> {
        let blob = &blob;
        let present = self.store.blob_size(&blob.digest).await? == Some(blob.size);
        if !(present && self.link(blob).await?) {
            self.fly(blob).await?;
        }
        self.progress.blob_done(blob);
        Ok(())
    }

    /// Links a blob that is in storage. That it is there does not say that this repository may
    /// have it: without a link, the upstream is asked, by HEAD. False if the upstream has it not.
    async fn link(&self, blob: &Descriptor) -> Result<bool, ImportError> {
        let repository = &self.route.repository;
        if self.store.has_link(repository, &blob.digest).await? {
            return Ok(true);
        }
        let upstream = &self.route.upstream_repository;
        if self.client.head_blob(upstream, &blob.digest, self.priority).await?.is_none() {
            return Ok(false);
        }
        self.store.link_blob(repository, &blob.digest).await?;
        Ok(true)
    }

    async fn fly(&self, blob: &Descriptor) -> Result<(), ImportError> {
        let source = Source {
            client: self.client.clone(),
            upstream_repository: self.route.upstream_repository.clone(),
            digest: blob.digest.clone(),
            size: Some(blob.size),
            priority: self.priority,
        };
        let flight = self.flights.join_or_start(source, &self.route.repository).await?;
        let stored = async {
            let size = flight.stored().await?;
            if size == blob.size { Ok(()) } else { Err(wrong_size(blob, size)) }
        };
        tokio::select! {
            stored = stored => stored,
            stalled = self.watch(&flight, blob) => Err(stalled),
        }
    }

    /// Reports the flight's progress; returns when it stalls.
    async fn watch(&self, flight: &Flight, blob: &Descriptor) -> ImportError {
        let (mut mark, mut deadline) = (0, Instant::now() + STALLED_AFTER);
        loop {
            match timeout_at(deadline, flight.changed()).await {
                Err(_) => return ImportError::Stalled(STALLED_AFTER),
                Ok(now) => {
                    self.progress.blob(blob, now.spooled);
                    if now.whole || now.spooled >= mark + STALLED_BYTES {
                        (mark, deadline) = (now.spooled, Instant::now() + STALLED_AFTER);
                    }
                }
            }
        }
    }
}

fn wrong_size(blob: &Descriptor, size: u64) -> ImportError {
    let Descriptor { digest, size: said, .. } = blob;
    ImportError::Closure(format!("blob {digest} has {size} bytes where the manifest says {said}"))
}
