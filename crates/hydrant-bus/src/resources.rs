//! The resource document: one value under one key, changed by compare-and-set.

use crate::{
    Bus, BusError,
    kv::{Bucket, Entry},
};
use bytes::Bytes;
use futures::{Stream, StreamExt, future};
use hydrant_proto::subject::CONFIG_KEY;
use jiff::Timestamp;

/// The bucket's revision of a value. Only good for the next compare-and-set: after the bus was
/// restored from an older copy or wiped, revisions begin again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Revision(pub u64);

/// A document as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredDocument {
    pub bytes: Bytes,
    pub revision: Revision,
    pub written_at: Timestamp,
}

/// Reads, writes and watches the resource document.
#[derive(Clone, Debug)]
pub struct ResourceStore {
    bucket: Bucket,
}

impl Bus {
    pub fn resources(&self) -> ResourceStore {
        ResourceStore { bucket: Bucket::config(self) }
    }
}

impl ResourceStore {
    /// `None` when nothing was ever saved.
    pub async fn load(&self) -> Result<Option<StoredDocument>, BusError> {
        Ok(self.bucket.get(CONFIG_KEY).await?.map(StoredDocument::from))
    }

    /// Saves if the document is still the `expected` one (`None`: there is none yet), else
    /// [`BusError::Conflict`]. A write whose answer was lost is recognised by reading back.
    pub async fn save(
        &self,
        bytes: Bytes,
        expected: Option<Revision>,
    ) -> Result<Revision, BusError> {
        let revision = expected.map_or(0, |revision| revision.0);
        match self.bucket.put_if(CONFIG_KEY, bytes.clone(), revision).await {
            Ok(revision) => Ok(Revision(revision)),
            Err(unknown @ BusError::Unknown { .. }) => match self.bucket.get(CONFIG_KEY).await? {
                Some(entry) if entry.revision > revision && entry.value == bytes => {
                    Ok(Revision(entry.revision))
                }
                Some(_) | None => Err(unknown),
            },
            Err(error) => Err(error),
        }
    }

    /// The document now and after each change, for ever: through reconnects and a wiped bus, and
    /// read again every 10 s. Nothing is yielded while there is no document.
    pub fn watch(&self) -> impl Stream<Item = StoredDocument> + Send + use<> {
        let documents = self.bucket.watch(CONFIG_KEY);
        documents.filter_map(|entry| future::ready(entry.map(StoredDocument::from)))
    }
}

impl From<Entry> for StoredDocument {
    fn from(entry: Entry) -> Self {
        let Entry { value, revision, written_at } = entry;
        Self { bytes: value, revision: Revision(revision), written_at }
    }
}
