//! Whether an image that was once local still is: the manifest, the children that were hydrated
//! with it, and every blob they name. Nothing is fetched.

use crate::{Store, error::StoreError};
use futures::{StreamExt, TryStreamExt, stream};
use hydrant_proto::{
    Digest, Manifest, MediaType, RepositoryName,
    manifest::{MAX_CHILDREN, MAX_DEPTH},
};
use std::collections::BTreeMap;

/// Blobs looked at at once.
const AT_ONCE: usize = 16;

/// How an image stands in storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Durability {
    /// All that was hydrated of it is there. Type and size in bytes are the root's.
    Durable { media_type: MediaType, size: u64 },
    /// What is missing, for people.
    Lacks(String),
}

impl Store {
    /// Looks for all that `digest` needs in `repository`. Children of an index that are not visible
    /// were not hydrated; one of them at least must be.
    pub async fn durability(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Durability, StoreError> {
        let Some((root, size)) = self.visible(repository, digest).await? else {
            return Ok(Durability::Lacks(format!("manifest {digest}")));
        };
        let mut blobs = BTreeMap::new();
        let media_type = root.media_type;
        let mut level = vec![root];
        for _ in 0..MAX_DEPTH {
            blobs
                .extend(level.iter().flat_map(Manifest::blobs).map(|b| (b.digest.clone(), b.size)));
            let children = level.iter().flat_map(Manifest::children);
            let children: Vec<_> = children.map(|child| child.digest.clone()).collect();
            if children.is_empty() {
                return Ok(match self.lacking(repository, blobs).await? {
                    Some(blob) => Durability::Lacks(format!("blob {blob}")),
                    None => Durability::Durable { media_type, size },
                });
            }
            level = self.visible_of(repository, children).await?;
            if level.is_empty() {
                return Ok(Durability::Lacks(format!("every child of index {digest}")));
            }
        }
        Ok(Durability::Lacks(format!("an end: indexes nest deeper than {MAX_DEPTH}")))
    }

    async fn visible_of(
        &self,
        repository: &RepositoryName,
        children: Vec<Digest>,
    ) -> Result<Vec<Manifest>, StoreError> {
        let looks = children.into_iter().take(MAX_CHILDREN);
        let looks = looks.map(|digest| async move { self.visible(repository, &digest).await });
        let mut found = stream::iter(looks).buffer_unordered(AT_ONCE);
        let mut manifests = Vec::new();
        while let Some(child) = found.try_next().await? {
            manifests.extend(child.map(|(manifest, _)| manifest));
        }
        Ok(manifests)
    }

    async fn visible(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<(Manifest, u64)>, StoreError> {
        let Some(bytes) = self.manifest(repository, digest).await? else { return Ok(None) };
        Ok(Manifest::parse(&bytes).ok().map(|manifest| (manifest, bytes.len() as u64)))
    }

    /// The first blob that is not readable in the repository.
    async fn lacking(
        &self,
        repository: &RepositoryName,
        blobs: BTreeMap<Digest, u64>,
    ) -> Result<Option<Digest>, StoreError> {
        let looks = blobs.into_iter().map(|(digest, size)| async move {
            let (linked, there) =
                tokio::try_join!(self.has_link(repository, &digest), self.has_blob(&digest, size))?;
            Ok((!linked || !there).then_some(digest))
        });
        let mut missing = stream::iter(looks).buffer_unordered(AT_ONCE);
        while let Some(found) = missing.try_next().await? {
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use serde_json::json;

    async fn blob(store: &Store, name: &RepositoryName, bytes: &'static [u8]) -> serde_json::Value {
        let digest = Digest::of(bytes);
        let mut writer = store.begin_blob(&digest, Some(bytes.len() as u64));
        writer.write(Bytes::from_static(bytes)).await.unwrap();
        writer.commit().await.unwrap();
        store.link_blob(name, &digest).await.unwrap();
        json!({"mediaType": "application/x", "size": bytes.len(), "digest": digest})
    }

    fn described(manifest: &Bytes, kind: &str) -> serde_json::Value {
        json!({"mediaType": kind, "size": manifest.len(), "digest": Digest::of(manifest)})
    }

    #[tokio::test]
    async fn an_image_is_durable_with_all_that_was_hydrated_of_it() {
        let (store, name) = (Store::in_memory(), "lab/app".parse().unwrap());
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let (config, layer) = (blob(&store, &name, b"c").await, blob(&store, &name, b"l").await);
        let child: Bytes = json!({"schemaVersion": 2, "mediaType": kind, "config": config,
            "layers": [layer]})
        .to_string()
        .into();
        let other: Bytes = json!({"schemaVersion": 2, "mediaType": kind, "config": config,
            "layers": []})
        .to_string()
        .into();
        let index: Bytes = json!({"schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [described(&child, kind), described(&other, kind)]})
        .to_string()
        .into();
        let root = Digest::of(&index);
        let lacks = async || match store.durability(&name, &root).await.unwrap() {
            Durability::Lacks(what) => what,
            Durability::Durable { .. } => String::new(),
        };
        assert!(lacks().await.starts_with("manifest"));
        store.stage_manifest(&root, index.clone()).await.unwrap();
        store.commit_manifest(&name, &root).await.unwrap();
        assert!(lacks().await.starts_with("every child"));
        store.stage_manifest(&Digest::of(&child), child.clone()).await.unwrap();
        store.commit_manifest(&name, &Digest::of(&child)).await.unwrap();
        // The other child was never hydrated.
        assert_eq!(lacks().await, "");
        let path = store.at(crate::key::Key::Blob(&Digest::of(b"l")));
        store.delete(&path).await.unwrap();
        assert_eq!(lacks().await, format!("blob {}", Digest::of(b"l")));
    }
}
