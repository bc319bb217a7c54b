//! Tags: a record changed by compare-and-set, and the links a stock registry reads.
//!
//! The record is the truth. The links follow it: whoever writes them reads the record again
//! afterwards and goes on until the two agree, so that of two writers neither leaves a link that is
//! older than the record.

use crate::{Store, error::StoreError, key::Key, record::Version};
use hydrant_proto::{Digest, Manifest, MediaType, RepositoryName, Tag};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

/// Who decides what a tag names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// The upstream: hydrant follows it.
    Cache,
    /// A customer who pushed it: hydrant never touches it.
    Push,
}

/// What a tag names, and since when that is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRecord {
    pub owner: Owner,
    /// The rule that brought it, and its generation then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<String>,
    pub digest: Digest,
    pub media_type: MediaType,
    /// Size of the manifest in bytes.
    pub size: u64,
    /// Raised whenever the digest or the owner changes.
    pub seq: u64,
    /// When the upstream was asked that first named this digest.
    pub observed_at: Timestamp,
    /// When the upstream was last asked and named this digest.
    pub confirmed_at: Timestamp,
    /// The digest before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Digest>,
    /// Deleted by a customer; a tombstone, so that no hydration brings it back.
    #[serde(default)]
    pub deleted: bool,
    /// Tells this write from every other. Set by [`Store::put_tag`].
    #[serde(default)]
    pub nonce: String,
}

impl Store {
    /// The record of a tag. One that a stock registry wrote is the customer's own.
    pub async fn tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<Option<(TagRecord, Option<Version>)>, StoreError> {
        match self.backend.read_record(Key::TagRecord(repository, tag)).await? {
            Some((record, version)) => Ok(Some((record, Some(version)))),
            None => Ok(self.adopted(repository, tag).await?.map(|record| (record, None))),
        }
    }

    /// Writes a record over the one that was read with `expected` (`None`: there was none), then
    /// the links. [`StoreError::Conflict`] means that another writer was faster.
    pub async fn put_tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        record: &TagRecord,
        expected: Option<Version>,
    ) -> Result<(), StoreError> {
        let record = TagRecord { nonce: Ulid::new().to_string(), ..record.clone() };
        let key = Key::TagRecord(repository, tag);
        self.backend.swap_record(key, &record, expected).await?;
        self.follow(repository, tag, record).await
    }

    /// Brings the links to what the record says, until it says the same afterwards.
    async fn follow(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        mut record: TagRecord,
    ) -> Result<(), StoreError> {
        loop {
            self.write_links(repository, tag, &record).await?;
            let key = Key::TagRecord(repository, tag);
            let Some((now, _)) = self.backend.read_record::<TagRecord>(key).await? else {
                return Ok(());
            };
            if (&now.digest, now.deleted) == (&record.digest, record.deleted) {
                return Ok(());
            }
            record = now;
        }
    }

    async fn write_links(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        record: &TagRecord,
    ) -> Result<(), StoreError> {
        let current = Key::TagCurrent(repository, tag);
        if record.deleted {
            return self.backend.delete(&current.path()).await;
        }
        let link = record.digest.to_string();
        let known = self.backend.read(current, 256).await?;
        if known.is_some_and(|known| known == link.as_bytes()) {
            return Ok(());
        }
        let index = Key::TagIndex(repository, tag, &record.digest);
        self.backend.write(index, link.clone().into()).await?;
        self.backend.write(current, link.into()).await
    }

    /// A tag with a link and no record.
    async fn adopted(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<Option<TagRecord>, StoreError> {
        let Some(link) = self.backend.read(Key::TagCurrent(repository, tag), 256).await? else {
            return Ok(None);
        };
        let digest = std::str::from_utf8(&link).ok().and_then(|text| text.trim().parse().ok());
        let Some(digest): Option<Digest> = digest else { return Ok(None) };
        let Some(bytes) = self.manifest(repository, &digest).await? else { return Ok(None) };
        let Ok(manifest) = Manifest::parse(&bytes) else { return Ok(None) };
        Ok(Some(TagRecord {
            owner: Owner::Push,
            rule: None,
            generation: None,
            digest,
            media_type: manifest.media_type,
            size: bytes.len() as u64,
            seq: 0,
            observed_at: Timestamp::UNIX_EPOCH,
            confirmed_at: Timestamp::UNIX_EPOCH,
            previous: None,
            deleted: false,
            nonce: String::new(),
        }))
    }
}
