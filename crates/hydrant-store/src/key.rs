//! Every object key, each built here and nowhere else.
//!
//! Content is laid out as CNCF distribution lays it out (registry/storage/paths.go, version 2), so
//! that a stock registry pointed at the same root serves it. hydrant's own records lie beside it
//! under `hydrant/v1/`. A component that begins with `_` is never part of a repository name.

use hydrant_proto::{Digest, JobId, Reference, RepositoryName, Tag};
use object_store::path::Path;

const REGISTRY: &str = "docker/registry/v2";
const RECORDS: &str = "hydrant/v1";

/// What an object is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Key<'a> {
    /// The bytes of a blob or manifest.
    Content(&'a Digest),
    /// Makes a blob readable in a repository.
    LayerLink(&'a RepositoryName, &'a Digest),
    /// Makes a manifest readable in a repository.
    RevisionLink(&'a RepositoryName, &'a Digest),
    TagCurrent(&'a RepositoryName, &'a Tag),
    TagIndex(&'a RepositoryName, &'a Tag, &'a Digest),
    TagRecord(&'a RepositoryName, &'a Tag),
    Completion(&'a RepositoryName, &'a Reference),
    Referrer {
        repository: &'a RepositoryName,
        subject: &'a Digest,
        manifest: &'a Digest,
    },
    Miss(&'a JobId, &'a str),
    DeadLetter(&'a str),
    /// A multipart upload under way.
    Upload(&'a str),
    /// Content that was found damaged, kept for inspection.
    Quarantine(&'a Digest),
    Probe(&'a str),
}

impl Key<'_> {
    pub fn path(self) -> Path {
        let text = match self {
            Self::Content(digest) => {
                let (algorithm, hex) = (digest.algorithm().as_str(), digest.hex());
                format!("{REGISTRY}/blobs/{algorithm}/{}/{hex}/data", &hex[..2])
            }
            Self::LayerLink(name, digest) => {
                format!("{REGISTRY}/repositories/{name}/_layers/{}/link", folders(digest))
            }
            Self::RevisionLink(name, digest) => {
                format!("{}/{}/link", revisions(name), folders(digest))
            }
            Self::TagCurrent(name, tag) => format!("{}/{tag}/current/link", tags(name)),
            Self::TagIndex(name, tag, digest) => {
                format!("{}/{tag}/index/{}/link", tags(name), folders(digest))
            }
            Self::TagRecord(name, tag) => format!("{RECORDS}/repositories/{name}/_tags/{tag}.json"),
            Self::Completion(name, Reference::Tag(tag)) => {
                format!("{RECORDS}/repositories/{name}/_complete/tag/{tag}.json")
            }
            Self::Completion(name, Reference::Digest(digest)) => {
                format!("{RECORDS}/repositories/{name}/_complete/{}.json", folders(digest))
            }
            Self::Referrer { repository, subject, manifest } => {
                format!("{}/{}", referrers(repository, subject), folders(manifest))
            }
            Self::Miss(job, wanted) => format!("{}/{wanted}.json", misses(job)),
            Self::DeadLetter(id) => format!("{DEAD_LETTERS}/{id}.json"),
            Self::Upload(id) => format!("{UPLOADS}/{id}.json"),
            Self::Quarantine(digest) => format!("{RECORDS}/quarantine/{}", folders(digest)),
            Self::Probe(id) => format!("{RECORDS}/probe/{id}"),
        };
        Path::from(text)
    }
}

pub(crate) const MISSES: &str = "hydrant/v1/misses";
pub(crate) const DEAD_LETTERS: &str = "hydrant/v1/dead-letters";
pub(crate) const UPLOADS: &str = "hydrant/v1/uploads";
pub(crate) const REPOSITORIES: &str = "docker/registry/v2/repositories";

pub(crate) fn misses(job: &JobId) -> String {
    format!("{MISSES}/{job}")
}

/// The folder of a repository's tags; each is a folder in it.
pub(crate) fn tags(name: &RepositoryName) -> String {
    format!("{REPOSITORIES}/{name}/_manifests/tags")
}

fn revisions(name: &RepositoryName) -> String {
    format!("{REPOSITORIES}/{name}/_manifests/revisions")
}

/// The folder of the manifests that refer to `subject`.
pub(crate) fn referrers(name: &RepositoryName, subject: &Digest) -> String {
    format!("{RECORDS}/repositories/{name}/_referrers/{}", folders(subject))
}

fn folders(digest: &Digest) -> String {
    format!("{}/{}", digest.algorithm().as_str(), digest.hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_lies_where_a_stock_registry_looks_for_it() {
        let digest = Digest::of(b"");
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let (name, tag) = ("lab/app".parse().unwrap(), "1.0_x".parse().unwrap());
        let root = "docker/registry/v2";
        let app = format!("{root}/repositories/lab/app");
        for (key, expected) in [
            (Key::Content(&digest), format!("{root}/blobs/sha256/e3/{hex}/data")),
            (Key::LayerLink(&name, &digest), format!("{app}/_layers/sha256/{hex}/link")),
            (
                Key::RevisionLink(&name, &digest),
                format!("{app}/_manifests/revisions/sha256/{hex}/link"),
            ),
            (Key::TagCurrent(&name, &tag), format!("{app}/_manifests/tags/1.0_x/current/link")),
            (
                Key::TagIndex(&name, &tag, &digest),
                format!("{app}/_manifests/tags/1.0_x/index/sha256/{hex}/link"),
            ),
        ] {
            assert_eq!(key.path().as_ref(), expected);
        }
    }
}
