//! Keeps the feed at the shared document, and in `up` and `control` the shared document at the
//! configuration file.

use crate::{
    edit::{EditError, Editor},
    feed::ResourceFeed,
    merge::merge,
    readiness::Check,
    retry::Schedule,
};
use futures::StreamExt as _;
use hydrant_bus::{Bus, BusError};
use hydrant_rules::Resources;
use hydrant_telemetry::metrics;
use std::{convert::Infallible, time::Duration};
use tokio::sync::watch;

const AGAIN: Schedule = Schedule::doubling(Duration::from_millis(200), Duration::from_secs(5));

/// What the keeper of one process works with.
pub(crate) struct Keeper {
    pub(crate) bus: Bus,
    pub(crate) feed: ResourceFeed,
    pub(crate) editor: Editor,
    /// Resources of the configuration file.
    pub(crate) file: Option<Resources>,
    /// Whether this process writes the shared document.
    pub(crate) writes: bool,
    pub(crate) check: Check,
}

impl Keeper {
    /// Runs for ever. The file is written before anything is read, so that a restart with a
    /// changed file never goes back to the document of before.
    pub(crate) async fn run(self) {
        // From before the first contact on, so that no reconnect is missed.
        let connected = self.bus.connected();
        self.first_contact().await;
        self.check.ok();
        tokio::join!(self.follow(), self.restore_when_lost(connected));
    }

    async fn follow(&self) {
        let mut documents = std::pin::pin!(self.bus.resources().watch());
        while let Some(document) = documents.next().await {
            self.feed.take(&document);
        }
    }

    async fn first_contact(&self) {
        for attempt in 1.. {
            let outcome = if self.writes { self.write_file().await } else { self.read().await };
            let Err(error) = outcome else { return };
            tracing::debug!(%error, "waiting for the shared configuration");
            self.wait(attempt).await;
        }
    }

    async fn read(&self) -> Result<(), BusError> {
        match self.bus.resources().load().await? {
            Some(document) => self.feed.take(&document),
            None => tracing::info!("there is no shared configuration yet"),
        }
        Ok(())
    }

    async fn write_file(&self) -> Result<(), BusError> {
        let Some(file) = &self.file else { return self.restore().await };
        let laid = self.editor.edit(|current| Ok::<_, Infallible>(merge(current, file, false).0));
        let Err(error) = laid.await else { return Ok(()) };
        if let EditError::Bus(error) = error {
            return Err(error);
        }
        metrics().config.rejected();
        tracing::error!(%error, "the configuration file does not fit the shared configuration and \
            takes no effect; change the file, or replace everything with `hydrant apply --prune`");
        self.read().await
    }

    /// Writes what is in effect here where the bus has no document: it is new, or was wiped.
    async fn restore(&self) -> Result<(), BusError> {
        if self.bus.resources().load().await?.is_some() {
            return Ok(());
        }
        let same = |current: &Resources| Ok::<_, Infallible>(current.clone());
        match self.editor.edit(same).await {
            Err(EditError::Bus(error)) => Err(error),
            Err(error) => {
                tracing::warn!(%error, "cannot restore the shared configuration");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    /// Looks at every reconnect whether the document is still there.
    async fn restore_when_lost(&self, mut connected: watch::Receiver<bool>) {
        // It ends only when the bus is gone, and this process with it.
        while self.writes && connected.changed().await.is_ok() {
            for attempt in 1.. {
                if self.restore().await.is_ok() {
                    break;
                }
                self.wait(attempt).await;
            }
        }
    }

    /// Waits for the connection, or on it until the next attempt.
    async fn wait(&self, attempt: u32) {
        let mut connected = self.bus.connected();
        if *connected.borrow_and_update() {
            return tokio::time::sleep(AGAIN.delay(attempt)).await;
        }
        // It ends early only when the bus is gone, and this process with it.
        let _ = connected.wait_for(|connected| *connected).await;
    }
}
