//! An upload on S3 that a dead process left, gone on with by another one.
//!
//! What is known of it comes from a record that anybody might have written, so it is compared with
//! what the store has: the upload is open, and has exactly those parts. That the hash in the record is
//! of their bytes shows only in the end, when the whole is read back; see `adopt.rs`.

use crate::{Backend, Store, error::StoreError, key::Key, s3::StoredPart, spooled::Spooled};
use hydrant_proto::{Digest, Hasher};
use object_store::multipart::PartId;
use std::{io, path::Path, sync::Arc};

/// What is stored of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The id of the upload.
    pub upload: String,
    /// How many parts, from the first one on.
    pub parts: u64,
    /// Size in bytes of each.
    pub part_size: u64,
    /// Of their entity tags.
    pub tags: Digest,
}

impl Standing {
    /// Bytes stored.
    pub fn bytes(&self) -> Option<u64> {
        self.parts.checked_mul(self.part_size)
    }
}

/// An open upload, and the hash of what it has.
#[derive(Debug)]
pub struct LeftUpload {
    id: String,
    parts: Vec<StoredPart>,
    bytes: u64,
    hasher: Hasher,
}

impl Store {
    /// The upload of a blob that a dead process left, if it stands as is said, `hash` being the state of
    /// the hash of its bytes. `None` when it does not, or cannot be gone on with.
    pub async fn left_upload(
        &self,
        digest: &Digest,
        standing: &Standing,
        hash: &[u8],
    ) -> Result<Option<Arc<LeftUpload>>, StoreError> {
        let Backend::S3(s3) = &self.backend else { return Ok(None) };
        let hasher = Hasher::resume(digest.algorithm(), hash);
        let (Some(hasher), Some(bytes)) = (hasher, standing.bytes().filter(|bytes| *bytes > 0))
        else {
            return Ok(None);
        };
        let listed = s3.parts(&self.at(Key::Blob(digest)), &standing.upload).await?;
        let parts = listed.and_then(|listed| agreed(listed, standing));
        let id = standing.upload.clone();
        Ok(parts.map(|parts| Arc::new(LeftUpload { id, parts, bytes, hasher })))
    }
}

impl LeftUpload {
    /// Bytes that it has, from the first one on.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn parts(&self) -> impl Iterator<Item = PartId> {
        self.parts.iter().map(StoredPart::id)
    }

    pub(crate) fn hasher(&self) -> Hasher {
        self.hasher.clone()
    }
}

impl Spooled {
    /// A file for what comes after the bytes of an upload that a dead process left.
    pub fn behind(dir: &Path, left: &Arc<LeftUpload>) -> io::Result<Self> {
        Ok(Self::of_rest(tempfile::tempfile_in(dir)?, left))
    }
}

/// The parts that are spoken of, if they are as they should be. Later ones are written again.
fn agreed(mut listed: Vec<StoredPart>, standing: &Standing) -> Option<Vec<StoredPart>> {
    listed.sort_by_key(|part| part.number);
    listed.truncate(usize::try_from(standing.parts).ok()?);
    let in_order = listed.iter().zip(1..).all(|(part, number)| part.number == number);
    let is_whole = listed.len() as u64 == standing.parts
        && listed.iter().all(|part| part.size == standing.part_size);
    let ids: Vec<_> = listed.iter().map(StoredPart::id).collect();
    (in_order && is_whole && tags(&ids) == standing.tags).then_some(listed)
}

/// Of the entity tags of parts, however they are quoted.
pub(crate) fn tags<'a>(parts: impl IntoIterator<Item = &'a PartId>) -> Digest {
    let mut text = String::new();
    for part in parts {
        text.push_str(part.content_id.trim_matches('"'));
        text.push('\n');
    }
    Digest::of(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(number: u64, size: u64, tag: &str) -> StoredPart {
        StoredPart { number, size, tag: tag.to_owned() }
    }

    #[test]
    fn only_parts_that_are_as_was_said_are_gone_on_with() {
        let listed = || vec![part(2, 8, "\"b\""), part(1, 8, "\"a\""), part(3, 8, "\"late\"")];
        let id = |tag: &str| PartId { content_id: tag.to_owned() };
        let standing = |parts, tags| Standing { upload: "u".to_owned(), parts, part_size: 8, tags };
        let right = tags(&[id("a"), id("b")]);
        assert_eq!(agreed(listed(), &standing(2, right.clone())).unwrap().len(), 2);
        let wrong = tags(&[id("a"), id("x")]);
        assert!(agreed(listed(), &standing(2, wrong)).is_none(), "another content");
        assert!(agreed(listed(), &standing(1, right.clone())).is_none(), "another number");
        let missing = vec![part(1, 8, "\"a\""), part(3, 8, "\"b\"")];
        assert!(agreed(missing, &standing(2, right.clone())).is_none(), "one is missing");
        let short = vec![part(1, 8, "\"a\""), part(2, 7, "\"b\"")];
        assert!(agreed(short, &standing(2, right)).is_none(), "one is short");
    }
}
