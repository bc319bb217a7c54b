//! Changes the shared resource document: read, change, check whole, compare and set.

use crate::feed::ResourceFeed;
use bytes::Bytes;
use hydrant_bus::{BusError, ResourceStore, Revision, StoredDocument};
use hydrant_rules::{Problems, Resources, Table};
use jiff::Timestamp;

/// Tries before a change gives up against other writers.
const TRIES: usize = 8;

/// Writes the shared document. Clones share it.
#[derive(Clone, Debug)]
pub struct Editor {
    document: ResourceStore,
    feed: ResourceFeed,
}

/// A change that is in the shared document.
#[derive(Debug)]
pub struct Edited {
    pub resources: Resources,
    /// Absent when there was nothing to write and there is no document yet.
    pub revision: Option<Revision>,
}

/// Why a change was not made. `R` is the reason the change itself gave.
#[derive(Debug, thiserror::Error)]
pub enum EditError<R> {
    /// The change does not want to be made to what is there.
    #[error("refused")]
    Refused(R),
    /// What came out is not valid; nothing was written.
    #[error("{0}")]
    Invalid(Problems),
    /// The shared document itself is damaged; only a whole document can replace it.
    #[error("the shared configuration is not readable: {0}")]
    Unreadable(String),
    /// Others kept writing. Try again.
    #[error("the shared configuration is being changed by others; try again")]
    Contended,
    #[error("the shared configuration cannot be reached: {0}")]
    Bus(#[from] BusError),
}

impl Editor {
    pub fn new(document: ResourceStore, feed: ResourceFeed) -> Self {
        Self { document, feed }
    }

    /// The shared document as it is now. Where there is none, because the bus is new or was wiped,
    /// what is in effect here stands for it.
    pub async fn read(&self) -> Result<(Resources, Option<Revision>), EditError<()>> {
        self.load().await
    }

    /// Makes `change` to the shared document. `change` may run several times, each time on what is
    /// there then, and says `Err` to leave it as it is. Nothing invalid is ever written.
    pub async fn edit<R>(
        &self,
        change: impl Fn(&Resources) -> Result<Resources, R>,
    ) -> Result<Edited, EditError<R>> {
        for _ in 0..TRIES {
            let (current, revision) = self.load().await?;
            let wanted = change(&current).map_err(EditError::Refused)?;
            if revision.is_some() && wanted == current {
                return Ok(Edited { resources: wanted, revision });
            }
            let table = Table::compile(wanted).map_err(EditError::Invalid)?;
            if let Some(revision) = self.save(table.resources(), revision).await? {
                return Ok(Edited {
                    resources: table.resources().clone(),
                    revision: Some(revision),
                });
            }
        }
        Err(EditError::Contended)
    }

    /// Replaces the whole document, readable or not.
    pub async fn replace(&self, wanted: &Resources) -> Result<Edited, EditError<()>> {
        let table = Table::compile(wanted.clone()).map_err(EditError::Invalid)?;
        for _ in 0..TRIES {
            let expected = self.document.load().await?.map(|stored| stored.revision);
            if let Some(revision) = self.save(table.resources(), expected).await? {
                return Ok(Edited { resources: wanted.clone(), revision: Some(revision) });
            }
        }
        Err(EditError::Contended)
    }

    async fn load<R>(&self) -> Result<(Resources, Option<Revision>), EditError<R>> {
        match self.document.load().await? {
            None => Ok((self.feed.current().resources().clone(), None)),
            Some(stored) => {
                let resources = serde_json::from_slice(&stored.bytes)
                    .map_err(|error| EditError::Unreadable(error.to_string()))?;
                Ok((resources, Some(stored.revision)))
            }
        }
    }

    /// `None` when somebody else wrote in between.
    async fn save(
        &self,
        wanted: &Resources,
        expected: Option<Revision>,
    ) -> Result<Option<Revision>, BusError> {
        let bytes = serde_json::to_vec(wanted).expect("resources are strings, numbers and lists");
        let bytes = Bytes::from(bytes);
        match self.document.save(bytes.clone(), expected).await {
            Ok(revision) => {
                let written_at = Timestamp::now();
                self.feed.take_own(&StoredDocument { bytes, revision, written_at });
                Ok(Some(revision))
            }
            Err(BusError::Conflict { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
