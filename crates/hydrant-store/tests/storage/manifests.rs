//! Manifests: staged, then visible in one repository and no other.

use crate::bench::{Bench, repository};
use bytes::Bytes;
use hydrant_proto::Digest;
use hydrant_store::StoreError;

/// An image manifest with these layers; its subject, if it has one.
pub fn manifest(layers: &[Bytes], subject: Option<&Digest>) -> Bytes {
    let descriptor = |bytes: &[u8]| {
        format!(r#"{{"mediaType":"x/y","digest":"{}","size":{}}}"#, Digest::of(bytes), bytes.len())
    };
    let layers: Vec<_> = layers.iter().map(|layer| descriptor(layer)).collect();
    let subject = subject.map_or_else(String::new, |digest| {
        format!(
            r#""annotations":{{"made":"here"}},"artifactType":"a/b","subject":{{"mediaType":"x/y","digest":"{digest}","size":1}},"#
        )
    });
    format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",{subject}"config":{},"layers":[{}]}}"#,
        descriptor(b"{}"),
        layers.join(",")
    )
    .into()
}

pub async fn a_staged_manifest_is_visible_only_after_its_commit(bench: &Bench) {
    let (bytes, name) = (manifest(&[], None), repository("lab/app"));
    let digest = Digest::of(&bytes);
    let wrong = bench.store.stage_manifest(&Digest::of(b"x"), bytes.clone()).await;
    assert!(matches!(wrong, Err(StoreError::Mismatch { .. })));
    bench.store.stage_manifest(&digest, bytes.clone()).await.unwrap();
    assert_eq!(bench.store.staged_manifest(&digest).await.unwrap(), Some(bytes.clone()));
    assert_eq!(bench.store.manifest(&name, &digest).await.unwrap(), None);
    bench.store.commit_manifest(&name, &digest).await.unwrap();
    bench.store.commit_manifest(&name, &digest).await.unwrap();
    assert_eq!(bench.store.manifest(&name, &digest).await.unwrap(), Some(bytes));
    assert_eq!(bench.store.manifest(&repository("lab/other"), &digest).await.unwrap(), None);
    assert!(!bench.store.has_link(&name, &digest).await.unwrap());
    bench.store.link_blob(&name, &digest).await.unwrap();
    assert!(bench.store.has_link(&name, &digest).await.unwrap());
}

pub async fn a_manifest_that_was_not_staged_cannot_be_committed(bench: &Bench) {
    let (name, digest) = (repository("lab/app"), Digest::of(b"never staged"));
    let commit = bench.store.commit_manifest(&name, &digest).await;
    assert!(matches!(commit, Err(StoreError::Missing { .. })));
    let layer = Bytes::from_static(b"not a manifest");
    let digest = Digest::of(&layer);
    bench.store.put_blob_bytes(&digest, layer).await.unwrap();
    let commit = bench.store.commit_manifest(&name, &digest).await;
    assert!(matches!(commit, Err(StoreError::Mismatch { .. })));
    assert!(!bench.store.has_manifest(&name, &digest).await.unwrap());
}

pub async fn referrers_are_found_once_visible(bench: &Bench) {
    let (name, subject) = (repository("lab/app"), Digest::of(b"subject"));
    let bytes = manifest(&[], Some(&subject));
    let digest = Digest::of(&bytes);
    assert!(bench.store.referrers(&name, &subject).await.unwrap().is_empty());
    bench.store.stage_manifest(&digest, bytes.clone()).await.unwrap();
    assert!(bench.store.referrers(&name, &subject).await.unwrap().is_empty());
    bench.store.commit_manifest(&name, &digest).await.unwrap();
    let found = bench.store.referrers(&name, &subject).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((&found[0].digest, found[0].size), (&digest, bytes.len() as u64));
    assert_eq!(found[0].artifact_type.as_deref(), Some("a/b"));
    assert_eq!(found[0].annotations["made"], "here");
    assert!(bench.store.referrers(&repository("other"), &subject).await.unwrap().is_empty());
}
