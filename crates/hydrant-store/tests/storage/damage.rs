//! Damaged content is never served.

use crate::{
    bench::{Bench, LIMIT, bytes_of, content_key, drain, put, repository},
    manifests::manifest,
};
use bytes::Bytes;
use hydrant_proto::Digest;
use hydrant_store::{Scrubbed, StoreError};
use hydrant_testkit::until;

fn flipped(bytes: &Bytes) -> Bytes {
    let mut bytes = bytes.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    bytes.into()
}

fn quarantined(digest: &Digest) -> String {
    format!("hydrant/v1/quarantine/sha256/{}", digest.hex())
}

pub async fn a_flipped_manifest_is_quarantined_and_can_be_written_again(bench: &Bench) {
    let (bytes, name) = (manifest(&[], None), repository("lab/app"));
    let digest = Digest::of(&bytes);
    bench.store.stage_manifest(&digest, bytes.clone()).await.unwrap();
    bench.store.commit_manifest(&name, &digest).await.unwrap();
    bench.overwrite(&content_key(&digest), flipped(&bytes)).await;
    assert_eq!(bench.store.manifest(&name, &digest).await.unwrap(), None);
    assert_eq!(bench.read(&quarantined(&digest)).await, Some(flipped(&bytes)));
    assert_eq!(bench.read(&content_key(&digest)).await, None);
    bench.store.stage_manifest(&digest, bytes.clone()).await.unwrap();
    assert_eq!(bench.store.manifest(&name, &digest).await.unwrap(), Some(bytes));
}

pub async fn a_flipped_small_blob_counts_as_absent(bench: &Bench) {
    let bytes = bytes_of(1, 10_000);
    let digest = put(&bench.store, &bytes).await;
    bench.overwrite(&content_key(&digest), flipped(&bytes)).await;
    assert!(bench.store.read_blob(&digest, None).await.unwrap().is_none());
    assert_eq!(bench.store.blob_size(&digest).await.unwrap(), None);
    put(&bench.store, &bytes).await;
    assert_eq!(bench.store.scrub(&digest).await.unwrap(), Scrubbed::Sound);
}

pub async fn a_flipped_large_blob_never_ends_cleanly_and_is_quarantined(bench: &Bench) {
    let bytes = bytes_of(2, 3_000_000);
    let digest = put(&bench.store, &bytes).await;
    bench.overwrite(&content_key(&digest), flipped(&bytes)).await;
    let read = bench.store.read_blob(&digest, None).await.unwrap().unwrap();
    let (got, end) = drain(read).await;
    assert!(matches!(end, Err(StoreError::Corrupt { .. })), "{end:?}");
    assert!(got.len() < bytes.len() && bytes.starts_with(&got));
    until("the blob in quarantine", LIMIT, async || {
        bench.store.blob_size(&digest).await.unwrap().is_none().then_some(())
    })
    .await;
    assert_eq!(bench.read(&quarantined(&digest)).await, Some(flipped(&bytes)));
    assert_eq!(bench.store.scrub(&digest).await.unwrap(), Scrubbed::Missing);
}

pub async fn a_short_or_empty_object_counts_as_absent(bench: &Bench) {
    let bytes = bytes_of(3, 500_000);
    let digest = put(&bench.store, &bytes).await;
    bench.overwrite(&content_key(&digest), bytes.slice(..1_000)).await;
    assert!(!bench.store.has_blob(&digest, 500_000).await.unwrap());
    assert!(bench.store.read_blob(&digest, None).await.unwrap().is_none());
    put(&bench.store, &bytes).await;
    bench.overwrite(&content_key(&digest), Bytes::new()).await;
    assert_eq!(bench.store.blob_size(&digest).await.unwrap(), None);
    assert!(bench.store.read_blob(&digest, None).await.unwrap().is_none());
    assert!(bench.store.read_blob(&digest, Some(0..5)).await.unwrap().is_none());
    put(&bench.store, &bytes).await;
    assert!(bench.store.has_blob(&digest, 500_000).await.unwrap());
}
