//! Manifests: staged as content, then made visible in a repository by a link.

use crate::{Store, error::StoreError, key::Key};
use bytes::Bytes;
use hydrant_proto::{Digest, Manifest, RepositoryName, manifest::MAX_MANIFEST_BYTES};

impl Store {
    /// Stores the bytes of a manifest. They are visible in no repository yet.
    pub async fn stage_manifest(&self, digest: &Digest, bytes: Bytes) -> Result<(), StoreError> {
        if bytes.len() > MAX_MANIFEST_BYTES {
            let reason = format!("it has {} bytes, too many for a manifest", bytes.len());
            return Err(StoreError::Mismatch { digest: digest.clone(), reason });
        }
        self.put_blob_bytes(digest, bytes).await
    }

    /// The bytes of a manifest, visible or not, verified against the digest. `None` when it is not
    /// there, is too long to be a manifest, or was damaged and is now quarantined.
    pub async fn staged_manifest(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        self.read_verified(digest, MAX_MANIFEST_BYTES as u64).await
    }

    /// Makes a staged manifest visible in a repository. The caller has seen that all it needs is
    /// durable and linked. A manifest with a subject is found by [`Store::referrers`] from now on.
    pub async fn commit_manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<(), StoreError> {
        let Some(bytes) = self.staged_manifest(digest).await? else {
            return Err(StoreError::Missing { digest: digest.clone() });
        };
        let manifest = Manifest::parse(&bytes).map_err(|error| StoreError::Mismatch {
            digest: digest.clone(),
            reason: error.to_string(),
        })?;
        self.record_referrer(repository, digest, &manifest, &bytes).await?;
        self.put_link(&self.at(Key::RevisionLink(repository, digest)), digest).await
    }

    /// The bytes of a manifest that is visible in a repository, verified as by
    /// [`Store::staged_manifest`].
    pub async fn manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<Bytes>, StoreError> {
        let visible = self.has_manifest(repository, digest);
        let (visible, bytes) = tokio::join!(visible, self.staged_manifest(digest));
        match visible? {
            true => bytes,
            false => Ok(None),
        }
    }

    /// Whether a manifest is visible in a repository, as far as its link says.
    pub async fn has_manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<bool, StoreError> {
        Ok(self.head(&self.at(Key::RevisionLink(repository, digest))).await?.is_some())
    }
}
