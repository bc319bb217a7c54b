//! Manifests: staged as content that nobody sees, made visible by a revision link.

use crate::{Store, error::StoreError, key::Key};
use bytes::Bytes;
use hydrant_proto::{Digest, Manifest, RepositoryName, manifest::MAX_MANIFEST_BYTES};

/// What the referrers list of a subject says of one manifest (OCI distribution spec 1.1,
/// "Listing Referrers").
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Referrer {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<serde_json::Map<String, serde_json::Value>>,
}

impl Store {
    /// Stores the bytes of a manifest, visible to nobody. Nothing is written when they are there.
    pub async fn stage_manifest(&self, digest: &Digest, bytes: Bytes) -> Result<(), StoreError> {
        if !digest.matches(&bytes) {
            let found = format!("{} bytes of another digest", bytes.len());
            return Err(StoreError::WrongContent { digest: digest.clone(), found });
        }
        if self.blob_size(digest).await? == Some(bytes.len() as u64) {
            return Ok(());
        }
        self.backend.write(Key::Content(digest), bytes.into()).await
    }

    /// The bytes of a manifest, whether it is visible or not. They prove nothing about who may
    /// see them. Damaged ones are quarantined and count as absent.
    pub async fn staged_manifest(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        let limit = MAX_MANIFEST_BYTES as u64;
        let Some(bytes) = self.backend.read(Key::Content(digest), limit).await? else {
            return Ok(None);
        };
        if digest.matches(&bytes) {
            return Ok(Some(bytes));
        }
        self.quarantine(digest).await?;
        Ok(None)
    }

    /// The bytes of a manifest that is visible in `repository`.
    pub async fn manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<Bytes>, StoreError> {
        if !self.has_manifest(repository, digest).await? {
            return Ok(None);
        }
        self.staged_manifest(digest).await
    }

    /// Whether a manifest is visible in `repository`.
    pub async fn has_manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<bool, StoreError> {
        self.backend.exists(Key::RevisionLink(repository, digest)).await
    }

    /// Makes a staged manifest visible in `repository`. Everything it names must be stored and
    /// linked.
    pub async fn commit_manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<(), StoreError> {
        if self.has_manifest(repository, digest).await? {
            return Ok(());
        }
        let Some(bytes) = self.staged_manifest(digest).await? else {
            let found = "not staged".to_owned();
            return Err(StoreError::WrongContent { digest: digest.clone(), found });
        };
        self.note_referrer(repository, digest, &bytes).await?;
        let link = digest.to_string().into();
        self.backend.write(Key::RevisionLink(repository, digest), link).await
    }

    /// Puts a manifest that has a subject on that subject's list.
    async fn note_referrer(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        bytes: &Bytes,
    ) -> Result<(), StoreError> {
        let Ok(manifest) = Manifest::parse(bytes) else { return Ok(()) };
        let Some(subject) = manifest.subject else { return Ok(()) };
        let referrer = Referrer {
            media_type: manifest.media_type.to_string(),
            digest: digest.clone(),
            size: bytes.len() as u64,
            artifact_type: manifest.artifact_type,
            annotations: annotations(bytes),
        };
        let key = Key::Referrer { repository, subject: &subject.digest, manifest: digest };
        self.backend.write_record(key, &referrer).await
    }
}

fn annotations(bytes: &[u8]) -> Option<serde_json::Map<String, serde_json::Value>> {
    let document: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    document.get("annotations")?.as_object().cloned()
}
