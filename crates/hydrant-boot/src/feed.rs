//! The resources in effect in this process, as a compiled table that changes while it runs.
//!
//! What is given out is always a valid document: a document that does not compile takes no effect,
//! is logged and counted, and the one before it stays.

use crate::{last_known_good::LastKnownGood, merge::merge};
use hydrant_bus::{Revision, StoredDocument};
use hydrant_rules::{Problems, Resources, Table};
use hydrant_telemetry::metrics;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::timeout};

/// The resources in effect. Clones share them.
#[derive(Clone, Debug)]
pub struct ResourceFeed(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    table: watch::Sender<Arc<Table>>,
    /// The last revision that was looked at, whether it took effect or not.
    seen: watch::Sender<Option<Revision>>,
    kept: Option<LastKnownGood>,
    /// Held while a document is looked at, so that an older one never follows a newer one.
    order: Mutex<()>,
}

impl ResourceFeed {
    /// A feed of one table that changes only by [`ResourceFeed::replace`]; for tests.
    pub fn fixed(table: Table) -> Self {
        Self::new(table, None)
    }

    /// A feed that begins with the last known document under the resources of the configuration
    /// file. Where the two clash the file is right alone.
    pub(crate) fn begin(kept: LastKnownGood, file: Option<&Resources>) -> Self {
        let last = kept.load().unwrap_or_default();
        let file = file.cloned().unwrap_or_default();
        let (merged, _) = merge(&last, &file, false);
        let table = [merged, file, last].into_iter().find_map(|base| Table::compile(base).ok());
        Self::new(table.unwrap_or_else(Table::empty), Some(kept))
    }

    fn new(table: Table, kept: Option<LastKnownGood>) -> Self {
        let (table, seen) = (watch::Sender::new(Arc::new(table)), watch::Sender::new(None));
        Self(Arc::new(Inner { table, seen, kept, order: Mutex::new(()) }))
    }

    /// What is in effect now.
    pub fn current(&self) -> Arc<Table> {
        self.0.table.borrow().clone()
    }

    /// What is in effect, and every change of it. The receiver outlives no feed.
    pub fn changed(&self) -> watch::Receiver<Arc<Table>> {
        self.0.table.subscribe()
    }

    /// Puts another table into effect; for tests and for processes without a bus.
    pub fn replace(&self, table: Table) {
        self.0.table.send_replace(Arc::new(table));
    }

    /// Waits until `revision` of the shared document has been looked at here, at most `limit`.
    pub async fn reached(&self, revision: Revision, limit: Duration) -> bool {
        let mut seen = self.0.seen.subscribe();
        let reached = seen.wait_for(|seen| seen.is_some_and(|seen| seen.0 >= revision.0));
        matches!(timeout(limit, reached).await, Ok(Ok(_)))
    }

    /// Takes what is the shared document now; an invalid one has no effect.
    pub(crate) fn take(&self, document: &StoredDocument) {
        let _order = self.0.order.lock().unwrap_or_else(PoisonError::into_inner);
        self.look_at(document);
    }

    /// Takes what this process has just written, unless something newer was seen meanwhile, so
    /// that whoever wrote it reads what it wrote.
    pub(crate) fn take_own(&self, document: &StoredDocument) {
        let _order = self.0.order.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = *self.0.seen.borrow();
        if seen.is_none_or(|seen| seen.0 < document.revision.0) {
            self.look_at(document);
        }
    }

    fn look_at(&self, document: &StoredDocument) {
        let revision = document.revision;
        match compile(&document.bytes) {
            Ok(table) => self.apply(table, document),
            Err(reason) => {
                metrics().config.rejected();
                tracing::error!(
                    revision = revision.0,
                    reason,
                    "the shared configuration is not valid and takes no effect; the one before stays"
                );
            }
        }
        self.0.seen.send_replace(Some(revision));
    }

    fn apply(&self, table: Table, document: &StoredDocument) {
        let revision = document.revision;
        metrics().config.applied(revision.0);
        if *self.current().resources() == *table.resources() {
            return;
        }
        let resources = table.resources();
        tracing::info!(
            revision = revision.0,
            rules = resources.rule.len(),
            upstreams = resources.upstream.len(),
            webhooks = resources.webhook.len(),
            "configuration changed"
        );
        if let Some(kept) = &self.0.kept {
            kept.save(&document.bytes);
        }
        self.replace(table);
    }
}

/// Reads and checks a shared document; the error is for the log.
fn compile(document: &[u8]) -> Result<Table, String> {
    let resources: Resources = serde_json::from_slice(document).map_err(|e| e.to_string())?;
    Table::compile(resources).map_err(|problems: Problems| problems.to_string())
}
