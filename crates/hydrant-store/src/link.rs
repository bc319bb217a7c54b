//! Links: small objects that make a blob or manifest readable in a repository. Their text is the
//! digest, as a stock registry writes it.

use crate::{Store, error::StoreError, key::Key};
use hydrant_proto::{Digest, RepositoryName};
use object_store::{PutMode, path::Path};

impl Store {
    /// Makes a blob readable in a repository.
    pub async fn link_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<(), StoreError> {
        self.put_link(&self.at(Key::LayerLink(repository, digest)), digest).await
    }

    /// Whether a blob is readable in a repository, as far as its link says.
    pub async fn has_link(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<bool, StoreError> {
        Ok(self.head(&self.at(Key::LayerLink(repository, digest))).await?.is_some())
    }

    /// Always the same text under the same key, so writing it again is harmless.
    pub(crate) async fn put_link(&self, path: &Path, digest: &Digest) -> Result<(), StoreError> {
        self.put(path, digest.to_string().into(), PutMode::Overwrite).await
    }
}
