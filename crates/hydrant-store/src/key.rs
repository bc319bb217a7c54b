//! Every object key, each built here and nowhere else.
//!
//! Content lies where CNCF distribution lays it (`registry/storage/paths.go` of
//! `distribution/distribution`), so that a stock registry serves it; hydrant's own records lie
//! beside it under `hydrant/v1/`. Components of a repository name never begin with `_`, so no
//! repository collides with another's records.

use crate::{dead_letter::DeadLetterId, miss::Wanted};
use hydrant_proto::{Digest, JobId, RepositoryName, Tag};

const CONTENT: &str = "docker/registry/v2";
const RECORDS: &str = "hydrant/v1";

/// The place of one object, below the prefix of the store.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Key<'a> {
    /// Bytes of a blob or manifest.
    Blob(&'a Digest),
    /// Makes a blob readable in a repository.
    LayerLink(&'a RepositoryName, &'a Digest),
    /// Makes a manifest readable in a repository.
    RevisionLink(&'a RepositoryName, &'a Digest),
    /// What a tag names, for a stock registry.
    TagLink(&'a RepositoryName, &'a Tag),
    /// What a tag has named, for a stock registry.
    TagIndexLink(&'a RepositoryName, &'a Tag, &'a Digest),
    /// What a tag names, for hydrant.
    TagRecord(&'a RepositoryName, &'a Tag),
    /// What became of a tag over time.
    TagHistory(&'a RepositoryName, &'a Tag),
    /// That the second manifest refers to the first (`subject`).
    Referrer(&'a RepositoryName, &'a Digest, &'a Digest),
    /// Where the content of a repository comes from.
    Origin(&'a RepositoryName),
    Completion(&'a JobId),
    /// What was missed; with a digest, what was missed of that later.
    Miss(&'a JobId, &'a Wanted, Option<&'a Digest>),
    DeadLetter(&'a DeadLetterId),
    /// Damaged content, kept for people to look at.
    Quarantined(&'a Digest),
    /// Version of the layout.
    Layout,
    /// Scratch object of the start-up probe.
    Probe(&'a str),
}

impl Key<'_> {
    pub(crate) fn path(&self) -> String {
        match self {
            Self::Blob(digest) => {
                let hex = digest.hex();
                format!("{}/{}/{hex}/data", blobs(digest), &hex[..2])
            }
            Self::LayerLink(repository, digest) => {
                format!("{}/_layers/{}/link", content_of(repository), split(digest))
            }
            Self::RevisionLink(repository, digest) => {
                format!("{}/_manifests/revisions/{}/link", content_of(repository), split(digest))
            }
            Self::TagLink(repository, tag) => format!("{}/{tag}/current/link", tags_of(repository)),
            Self::TagIndexLink(repository, tag, digest) => {
                format!("{}/{tag}/index/{}/link", tags_of(repository), split(digest))
            }
            Self::Origin(repository) => format!("{}/_origin.json", records_of(repository)),
            Self::TagRecord(repository, tag) => {
                format!("{}/_tags/{tag}.json", records_of(repository))
            }
            Self::TagHistory(repository, tag) => {
                format!("{}/_history/{tag}.json", records_of(repository))
            }
            Self::Referrer(repository, subject, digest) => {
                format!("{}/{}.json", referrers_of(repository, subject), flat(digest))
            }
            Self::Completion(job) => format!("{}/{job}.json", completions()),
            // Most misses: no folder is made for one that is gone again in a moment.
            Self::Miss(job, Wanted::Whole, None) => format!("{}/{job}.json", misses()),
            Self::Miss(job, wanted, None) => format!("{}/{}.json", wishes_of(job), wanted.key()),
            Self::Miss(job, wanted, Some(digest)) => {
                format!("{}/{}.{}.json", wishes_of(job), wanted.key(), flat(digest))
            }
            Self::DeadLetter(id) => format!("{}/{id}.json", dead_letters()),
            Self::Quarantined(digest) => format!("{RECORDS}/quarantine/{}", split(digest)),
            Self::Layout => format!("{RECORDS}/layout.json"),
            Self::Probe(name) => format!("{RECORDS}/probe/{name}"),
        }
    }
}

/// Where all blobs lie, uploads of them included.
pub(crate) fn all_blobs() -> String {
    format!("{CONTENT}/blobs")
}

/// Where all repositories lie.
pub(crate) fn repositories() -> String {
    format!("{CONTENT}/repositories")
}

/// Where the tags of a repository lie, one directory each.
pub(crate) fn tags_of(repository: &RepositoryName) -> String {
    format!("{}/_manifests/tags", content_of(repository))
}

pub(crate) fn referrers_of(repository: &RepositoryName, subject: &Digest) -> String {
    format!("{}/_referrers/{}", records_of(repository), flat(subject))
}

pub(crate) fn misses() -> String {
    format!("{RECORDS}/misses")
}

/// Where what was missed of one job lies, except the whole of it.
pub(crate) fn wishes_of(job: &JobId) -> String {
    format!("{}/{job}", misses())
}

pub(crate) fn completions() -> String {
    format!("{RECORDS}/completions")
}

pub(crate) fn dead_letters() -> String {
    format!("{RECORDS}/dead-letters")
}

/// Lock files of a directory store.
pub(crate) fn locks() -> String {
    format!("{RECORDS}/locks")
}

/// Spool files of a directory store.
pub(crate) fn spool() -> String {
    format!("{RECORDS}/spool")
}

/// Whether a key, without the prefix of the store, is one of ours.
pub(crate) fn is_known(path: &str) -> bool {
    path.starts_with(CONTENT) || path.starts_with(RECORDS)
}

fn blobs(digest: &Digest) -> String {
    format!("{}/{}", all_blobs(), digest.algorithm().as_str())
}

fn content_of(repository: &RepositoryName) -> String {
    format!("{}/{repository}", repositories())
}

/// The folders of all that makes content visible in one repository, in the order in which they are
/// cleared. A tag's link without its record would count as pushed, so links go first; and once more
/// after the records, for a writer that had one in its hands meanwhile.
pub(crate) fn visible_in(repository: &RepositoryName) -> [String; 6] {
    let (content, records) = (content_of(repository), records_of(repository));
    let manifests = format!("{content}/_manifests");
    [
        manifests.clone(),
        format!("{records}/_tags"),
        manifests,
        format!("{records}/_history"),
        format!("{records}/_referrers"),
        format!("{content}/_layers"),
    ]
}

fn records_of(repository: &RepositoryName) -> String {
    format!("{RECORDS}/repositories/{repository}")
}

fn split(digest: &Digest) -> String {
    format!("{}/{}", digest.algorithm().as_str(), digest.hex())
}

fn flat(digest: &Digest) -> String {
    format!("{}.{}", digest.algorithm().as_str(), digest.hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_lies_where_a_stock_registry_looks() {
        let digest = Digest::of(b"");
        let hex = digest.hex();
        let (repository, tag) = ("lab/app".parse().unwrap(), "v1".parse().unwrap());
        let content = "docker/registry/v2/repositories/lab/app";
        for (key, expected) in [
            (Key::Blob(&digest), format!("docker/registry/v2/blobs/sha256/e3/{hex}/data")),
            (Key::LayerLink(&repository, &digest), format!("{content}/_layers/sha256/{hex}/link")),
            (
                Key::RevisionLink(&repository, &digest),
                format!("{content}/_manifests/revisions/sha256/{hex}/link"),
            ),
            (Key::TagLink(&repository, &tag), format!("{content}/_manifests/tags/v1/current/link")),
            (
                Key::TagIndexLink(&repository, &tag, &digest),
                format!("{content}/_manifests/tags/v1/index/sha256/{hex}/link"),
            ),
        ] {
            assert_eq!(key.path(), expected);
        }
    }

    #[test]
    fn records_of_one_repository_are_not_inside_another() {
        let tag = "v1".parse().unwrap();
        let (outer, inner) = ("a".parse().unwrap(), "a/tags".parse().unwrap());
        assert_eq!(Key::TagRecord(&outer, &tag).path(), "hydrant/v1/repositories/a/_tags/v1.json");
        assert!(
            Key::TagRecord(&inner, &tag).path().starts_with("hydrant/v1/repositories/a/tags/_")
        );
    }
}
