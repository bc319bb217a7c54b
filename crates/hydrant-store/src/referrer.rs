//! Referrers: local manifests by the subject they refer to (OCI distribution spec 1.1, "Listing
//! referrers").

use crate::{Store, error::StoreError, key, key::Key};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use hydrant_proto::{Digest, Manifest, MediaType, RepositoryName};
use object_store::PutMode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Links looked at once.
const AT_ONCE: usize = 8;

/// One manifest that refers to another; serialises as the descriptor of the referrers answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Referrer {
    pub media_type: MediaType,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The annotations of the manifest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Annotated {
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl Store {
    /// The manifests visible in a repository whose subject is `subject`, by digest.
    pub async fn referrers(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
    ) -> Result<Vec<Referrer>, StoreError> {
        let recorded = self.records::<Referrer>(key::referrers_of(repository, subject), None);
        let recorded: Vec<_> = recorded.try_collect().await?;
        let visible = stream::iter(recorded)
            .map(|referrer| async move {
                let visible = self.has_manifest(repository, &referrer.digest).await?;
                Ok::<_, StoreError>(visible.then_some(referrer))
            })
            .buffer_unordered(AT_ONCE)
            .try_filter_map(async |referrer| Ok(referrer));
        let mut visible: Vec<_> = visible.try_collect().await?;
        visible.sort_by(|a, b| a.digest.cmp(&b.digest));
        Ok(visible)
    }

    /// Written before the manifest becomes visible, so that a crash between leaves a record that
    /// is passed over, and not a referrer that is never listed.
    pub(crate) async fn record_referrer(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        manifest: &Manifest,
        bytes: &Bytes,
    ) -> Result<(), StoreError> {
        let Some(subject) = &manifest.subject else {
            return Ok(());
        };
        let annotated = serde_json::from_slice(bytes).unwrap_or(Annotated { annotations: None });
        let referrer = Referrer {
            media_type: manifest.media_type,
            digest: digest.clone(),
            size: bytes.len() as u64,
            artifact_type: manifest.artifact_type.clone(),
            annotations: annotated.annotations.unwrap_or_default(),
        };
        let path = self.at(Key::Referrer(repository, &subject.digest, digest));
        self.put_json(&path, &referrer, PutMode::Overwrite).await
    }
}
