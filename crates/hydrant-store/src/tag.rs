//! Tags: hydrant's record decides, by compare-and-set; the links of a stock registry follow it.
//! Which record may follow which is decided in `tag/next.rs`.

mod history;
#[cfg(test)]
mod model;
mod next;
mod record;

pub use history::{MAX_LINES as MAX_TAG_LINES, TagAct, TagLine};
pub use next::{Follows, Sighting, Stays};
pub use record::{Frozen, Move, Owner, Steering, TagRecord, Terms, Unfrozen, Writer};

use crate::{
    Store,
    cas::{MAX_ROUNDS, Stamp, Version},
    error::StoreError,
    key::Key,
    object::{Object, Stored},
};
use bytes::Bytes;
use hydrant_proto::{Digest, Manifest, RepositoryName, Tag, manifest::MAX_MANIFEST_BYTES};
use jiff::Timestamp;
use object_store::path::Path;
use ulid::Ulid;

/// Longest link, in bytes: a SHA-512 digest has 135.
const MAX_LINK_BYTES: u64 = 256;

impl Store {
    /// The record of a tag, tombstones included, and the version to write against. A tag that a
    /// stock registry wrote is adopted: it counts as pushed. A damaged record gives way to what
    /// the links of a stock registry say; the next [`Store::put_tag`] replaces it.
    pub async fn tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<Option<(TagRecord, Version)>, StoreError> {
        match self.get_record::<TagRecord>(&self.at(Key::TagRecord(repository, tag))).await? {
            Some(Stored::Readable(record, stamp)) => {
                let version = Version::of(&record, stamp);
                Ok(Some((record, version)))
            }
            Some(Stored::Unreadable(damaged)) => self.salvage(repository, tag, &damaged).await,
            None => self.adopt(repository, tag).await,
        }
    }

    /// Writes the record if it is still as `expected` (`None`: there is no such tag), sets its
    /// `seq` and `nonce`, and lets the links of a stock registry and the history follow.
    ///
    /// [`StoreError::Conflict`]: somebody else wrote first; observe again. Any other error may
    /// come after the record was written: observe again, or call [`Store::mend_tag_links`].
    pub async fn put_tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        mut record: TagRecord,
        expected: Option<Version>,
    ) -> Result<Version, StoreError> {
        let path = self.at(Key::TagRecord(repository, tag));
        let expected = match expected {
            Some(expected) => expected,
            None => self.vacant(repository, tag, &path).await?,
        };
        let before = expected.before.as_deref();
        record.seq = record.seq_after(before, expected.seq);
        record.nonce = Ulid::new().to_string();
        let stamp = self.compare_and_set_json(&path, &record, &expected.stamp).await?;
        let mended = self.mend_tag_links(repository, tag);
        let noted = self.note_change(repository, tag, before, &record);
        let (mended, ()) = tokio::join!(mended, noted);
        mended?;
        Ok(Version::of(&record, stamp))
    }

    /// The version of a tag that its caller found not to be there; a conflict when it is.
    async fn vacant(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        path: &Path,
    ) -> Result<Version, StoreError> {
        let (is_taken, stamp, seq) = match self.get_record::<TagRecord>(path).await? {
            Some(Stored::Readable(..)) => (true, Stamp::Absent, 0),
            Some(Stored::Unreadable(damaged)) => {
                let adopted = self.adopt(repository, tag).await?;
                (adopted.is_some(), self.stamp(&damaged), seq_above(&damaged))
            }
            // Adopted while the caller believed that there was nothing.
            None => {
                let is_taken = self.current_link(repository, tag).await?.is_some();
                (is_taken, Stamp::Absent, self.seq_floor(repository).await?)
            }
        };
        match is_taken {
            true => Err(StoreError::Conflict { key: path.to_string() }),
            false => Ok(Version { stamp, seq, before: None }),
        }
    }

    /// Makes the links of a stock registry say what the record says. [`Store::put_tag`] does it;
    /// a process that died in the middle leaves it to whoever comes next.
    ///
    /// The link is read before the record and written only if it has not changed since. So
    /// whoever writes it has seen every record that was there when the link was last written,
    /// and a writer that lost the race cannot leave an old digest behind.
    pub async fn mend_tag_links(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<(), StoreError> {
        let path = self.at(Key::TagRecord(repository, tag));
        let mut followed = None;
        for _ in 0..MAX_ROUNDS {
            let link = self.current_link(repository, tag).await?;
            let record = match self.get_record::<TagRecord>(&path).await? {
                Some(Stored::Readable(record, _)) => record,
                // It went with its origin. A link without a record would count as pushed.
                None if let Some(digest) = &followed => {
                    return self.unlink(repository, tag, digest, link).await;
                }
                Some(Stored::Unreadable(_)) | None => return Ok(()),
            };
            match self.follow(repository, tag, &record, link).await {
                Ok(true) => return Ok(()),
                Ok(false) => followed = Some(record.digest),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Conflict { key: path.to_string() })
    }

    /// One step of the link towards the record; `true` when there was none to make.
    async fn follow(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        record: &TagRecord,
        link: Option<(String, Stamp)>,
    ) -> Result<bool, StoreError> {
        let path = self.at(Key::TagLink(repository, tag));
        match link {
            None if record.deleted => Ok(true),
            Some((text, _)) if !record.deleted && text == record.digest.to_string() => Ok(true),
            Some((text, _)) if record.deleted => {
                if let Ok(digest) = text.parse() {
                    self.delete(&self.at(Key::TagIndexLink(repository, tag, &digest))).await?;
                }
                self.delete(&path).await?;
                Ok(false)
            }
            link => {
                let index = self.at(Key::TagIndexLink(repository, tag, &record.digest));
                let stamp = link.map_or(Stamp::Absent, |(_, stamp)| stamp);
                let text = Bytes::from(record.digest.to_string());
                let before = vec![(index, text.clone())];
                self.compare_and_set_after(before, &path, text, &stamp).await?;
                Ok(false)
            }
        }
    }

    /// Takes back a link that was just made to say `digest`, unless it says something else by now.
    async fn unlink(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        digest: &Digest,
        link: Option<(String, Stamp)>,
    ) -> Result<(), StoreError> {
        if link.is_none_or(|(text, _)| text != digest.to_string()) {
            return Ok(());
        }
        self.delete(&self.at(Key::TagIndexLink(repository, tag, digest))).await?;
        self.delete(&self.at(Key::TagLink(repository, tag))).await
    }

    async fn current_link(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<Option<(String, Stamp)>, StoreError> {
        self.get_text(&self.at(Key::TagLink(repository, tag))).await
    }

    /// What a damaged record stood for, as far as the link of a stock registry tells. A record is
    /// written for what was hydrated, unless its bytes still say otherwise; nothing is known of
    /// when the upstream confirmed it, so it is to be asked at once.
    async fn salvage(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        damaged: &Object,
    ) -> Result<Option<(TagRecord, Version)>, StoreError> {
        let says = |what: &[u8]| damaged.bytes.windows(what.len()).any(|window| window == what);
        let owner = if says(br#""owner":"push""#) { Owner::Push } else { Owner::Cache };
        let frozen = says(br#""frozen":{"#).then(|| Frozen {
            at: Timestamp::UNIX_EPOCH,
            by: Writer::Api,
            steering: Steering {
                actor: None,
                reason: Some("why is not known any more: the record was damaged".to_owned()),
            },
        });
        let adopted = self.adopt(repository, tag).await?;
        Ok(adopted.map(|(adopted, _)| {
            let (seq, confirmed_at) = (seq_above(damaged), Timestamp::UNIX_EPOCH);
            let by = if owner == Owner::Push { Writer::Registry } else { Writer::Importer };
            let record = TagRecord { owner, by, seq, confirmed_at, frozen, ..adopted };
            let version = Version::of(&record, self.stamp(damaged));
            (record, version)
        }))
    }

    /// A record for a tag that only a stock registry knows. Nothing is written: the first
    /// compare-and-set against its version creates the record.
    async fn adopt(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<Option<(TagRecord, Version)>, StoreError> {
        let link = self.get_whole(&self.at(Key::TagLink(repository, tag)), MAX_LINK_BYTES).await?;
        let Some(link) = link else {
            return Ok(None);
        };
        // What a former origin brought is nobody's push, however much of it is gone already.
        if self.is_being_cleared(repository).await? {
            return Ok(None);
        }
        let Some(record) = self.adopted(&link).await? else {
            return Ok(None);
        };
        let version = Version::of(&record, Stamp::Absent);
        Ok(Some((record, version)))
    }

    async fn adopted(&self, link: &Object) -> Result<Option<TagRecord>, StoreError> {
        let text = String::from_utf8_lossy(&link.bytes);
        let Ok(digest) = text.trim().parse::<Digest>() else {
            tracing::warn!(key = %link.meta.location, "tag link names no digest");
            return Ok(None);
        };
        let Some(bytes) = self.read_verified(&digest, MAX_MANIFEST_BYTES as u64).await? else {
            return Ok(None);
        };
        let manifest = match Manifest::parse(&bytes) {
            Ok(manifest) => manifest,
            Err(error) => {
                tracing::warn!(key = %link.meta.location, %error, "tag is not adopted");
                return Ok(None);
            }
        };
        let millis = link.meta.last_modified.timestamp_millis();
        let written_at = Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH);
        let (media_type, size) = (manifest.media_type, bytes.len() as u64);
        Ok(Some(TagRecord::new(Owner::Push, digest, media_type, size, written_at)))
    }
}

/// A `seq` that the record did not reach before it was damaged: the second of its last write. Tags
/// move less often than once a second.
fn seq_above(damaged: &Object) -> u64 {
    u64::try_from(damaged.meta.last_modified.timestamp()).unwrap_or_default()
}
