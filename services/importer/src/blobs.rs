//! The blobs of a closure, made durable and linked: those present are not fetched again, the rest
//! fly concurrently.

use crate::{error::ImportError, import::PRIORITY, progress::Progress};
use futures::{StreamExt, TryStreamExt, stream};
use hydrant_flight::{Flight, FlightError, Flights, Grant, Source};
use hydrant_proto::{Descriptor, FailureClass, RepositoryName};
use hydrant_rules::Route;
use hydrant_store::Store;
use hydrant_telemetry::metrics;
use hydrant_upstream::Client;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Blobs of one job under way at once.
const WIDTH: usize = 4;
/// A flight that brings fewer in [`Worker::patience`](crate::worker::Worker) does not keep a worker
/// waiting.
const STALLED_BYTES: u64 = 64 * 1024;
/// Longest wait for storage to say that it is not what stands still.
const STORE_PATIENCE: Duration = Duration::from_secs(3);
/// Flights of one blob that are followed, or waited for, before the worker is needed elsewhere.
const ROUNDS: u32 = 32;
/// Pause before a blob that another process flies for somebody else is looked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What became of a blob's flight.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flown {
    /// None was foreign: the next is ours, or we may join it.
    Ours,
    /// Another process flies it for somebody else.
    Foreign,
    /// It was joined, and refused for a reason that may be of who began it.
    Refused,
    /// It brought the blob into storage.
    Landed,
}

pub(crate) struct Blobs<'a> {
    pub store: &'a Store,
    pub flights: &'a Flights,
    pub client: &'a Arc<Client>,
    pub route: &'a Route,
    pub progress: &'a Progress,
    /// How long a flight may stand still.
    pub patience: Duration,
}

impl Blobs<'_> {
    /// Makes every blob durable and links it to the repository: the first of them first.
    pub async fn settle(&self, blobs: impl Iterator<Item = Descriptor>) -> Result<(), ImportError> {
        stream::iter(blobs)
            .map(|blob| self.settle_one(blob))
            .buffer_unordered(WIDTH)
            .try_collect::<()>()
            .await
    }

    async fn settle_one(&self, blob: Descriptor) -> Result<(), ImportError> {
        let (blob, mut flown) = (&blob, Flown::Ours);
        for _ in 0..ROUNDS {
            if flown == Flown::Landed || self.is_here(blob).await? {
                self.progress.blob_done(blob);
                return Ok(());
            }
            flown = self.fly(blob, flown).await?;
        }
        Err(ImportError::Stalled(self.patience))
    }

    async fn fly(&self, blob: &Descriptor, flown: Flown) -> Result<Flown, ImportError> {
        let (grant, source) = (self.grant(), self.source(blob));
        let (flight, is_joined) = match self.is_entitled(blob, flown).await? {
            true => (Some(self.flights.join_or_start(source, &grant).await?), true),
            // That the upstream delivers it here is the proof.
            false if flown != Flown::Foreign => (self.flights.begin(source, &grant)?, false),
            false => (None, false),
        };
        let Some(flight) = flight else {
            self.wait_for_others(blob).await;
            return Ok(Flown::Ours);
        };
        match self.follow(&flight, blob).await {
            Ok(()) => Ok(Flown::Landed),
            Err(ImportError::Flight(FlightError::Foreign)) => Ok(Flown::Foreign),
            Err(error) if is_joined && is_of_one(error.class()) => Ok(Flown::Refused),
            Err(error) => Err(error),
        }
    }

    /// Stored whole, and readable in the repository.
    async fn is_here(&self, blob: &Descriptor) -> Result<bool, ImportError> {
        Ok(self.store.has_link(self.repository(), &blob.digest).await?
            && self.store.has_blob(&blob.digest, blob.size).await?)
    }

    /// Whether this repository is known to have the blob, so that what others brought may be
    /// shared. That it is stored, or in the air for somebody else, does not say so: the upstream is
    /// asked, by HEAD. Where that cannot tell, or there is nothing to share, a GET decides.
    async fn is_entitled(&self, blob: &Descriptor, flown: Flown) -> Result<bool, ImportError> {
        if flown == Flown::Refused {
            return Ok(false);
        }
        let flight = self.flights.get(&blob.digest);
        if flight.as_ref().is_some_and(|flight| flight.grants(&self.grant())) {
            return Ok(true);
        }
        let here = flight.is_some() || self.store.has_blob(&blob.digest, blob.size).await?;
        if !here && flown == Flown::Ours {
            return Ok(false);
        }
        let upstream = &self.route.upstream_repository;
        match self.client.head_blob(upstream, &blob.digest, PRIORITY).await {
            Ok(found) => Ok(found.is_some()),
            Err(error) if error.retry_after().is_some() => Err(error.into()),
            // Some content stores refuse a HEAD where they allow a GET.
            Err(_) => Ok(false),
        }
    }

    /// Waits for a flight that may not be joined; how it ends is theirs to hear. One of another
    /// process is looked at again a little later.
    async fn wait_for_others(&self, blob: &Descriptor) {
        match self.flights.get(&blob.digest) {
            Some(flight) => drop(flight.stored().await),
            None => sleep(LOOK_AGAIN).await,
        }
    }

    fn repository(&self) -> &RepositoryName {
        &self.route.repository
    }

    fn grant(&self) -> Grant {
        Grant { repository: self.repository().clone(), origin: self.route.origin.clone() }
    }

    fn source(&self, blob: &Descriptor) -> Source {
        Source {
            client: self.client.clone(),
            upstream_repository: self.route.upstream_repository.clone(),
            digest: blob.digest.clone(),
            size: Some(blob.size),
            urgency: PRIORITY.into(),
        }
    }

    /// Waits until the flight has brought the blob into storage.
    async fn follow(&self, flight: &Flight, blob: &Descriptor) -> Result<(), ImportError> {
        let stored = async {
            let size = flight.stored().await?;
            metrics().hydrations.stored(self.client.upstream().name.as_str(), size);
            if size == blob.size { Ok(()) } else { Err(wrong_size(blob, size)) }
        };
        tokio::select! {
            stored = stored => stored,
            stalled = self.watch(flight, blob) => Err(stalled),
        }
    }

    /// Reports the flight's progress; returns when it stalls.
    async fn watch(&self, flight: &Flight, blob: &Descriptor) -> ImportError {
        let (mut mark, mut deadline) = (0, Instant::now() + self.patience);
        loop {
            match timeout_at(deadline, flight.changed()).await {
                Err(_) => return self.stalled(flight, blob).await,
                Ok(now) => {
                    self.progress.blob(blob, now.spooled);
                    if now.whole || now.spooled >= mark + STALLED_BYTES {
                        (mark, deadline) = (now.spooled, Instant::now() + self.patience);
                    }
                }
            }
        }
    }

    /// Whose standstill it is: storage's when all bytes are here, or when it does not answer either.
    async fn stalled(&self, flight: &Flight, blob: &Descriptor) -> ImportError {
        let asked = timeout(STORE_PATIENCE, self.store.has_blob(&blob.digest, blob.size));
        match flight.progress().whole || !matches!(asked.await, Ok(Ok(_))) {
            true => ImportError::StorageStalled(self.patience),
            false => ImportError::Stalled(self.patience),
        }
    }
}

/// Whether it may be about who began the flight, and not about who joined it.
fn is_of_one(class: FailureClass) -> bool {
    match class {
        FailureClass::Denied
        | FailureClass::Unknown
        | FailureClass::UpstreamAuth
        | FailureClass::UpstreamLoop => true,
        FailureClass::UpstreamDown
        | FailureClass::UpstreamLimit
        | FailureClass::BreakerOpen
        | FailureClass::Storage
        | FailureClass::Integrity
        | FailureClass::Unsupported => false,
    }
}

fn wrong_size(blob: &Descriptor, size: u64) -> ImportError {
    let Descriptor { digest, size: said, .. } = blob;
    ImportError::Closure(format!("blob {digest} has {size} bytes where the manifest says {said}"))
}
