//! Upstreams whose bodies are not what their digests say.

use crate::lab::{config, role, status};
use futures::StreamExt;
use hydrant_testkit::{FakeUpstream, Fault, Hydrant, Image, ImageBuilder, Skopeo};
use std::path::Path;

const MIB: u64 = 1024 * 1024;

/// Reads a blob to its end; `Err` if the body broke off.
async fn read(url: &str) -> Result<u64, reqwest::Error> {
    let mut body = reqwest::get(url).await?.error_for_status()?.bytes_stream();
    let mut length = 0;
    while let Some(chunk) = body.next().await {
        length += chunk?.len() as u64;
    }
    Ok(length)
}

async fn lab(fault: Fault) -> (FakeUpstream, Image, tempfile::TempDir, Hydrant) {
    let (upstream, store) = (FakeUpstream::start().await, tempfile::tempdir().unwrap());
    let image = ImageBuilder::new(1).layers(&[3 * MIB]).build();
    upstream.insert(&image, "app", "1");
    let layer = &image.all_blobs().into_iter().max_by_key(|blob| blob.size).unwrap().digest;
    upstream.inject(&format!("*/blobs/{layer}"), fault);
    let hydrant =
        role("up", &config(&upstream.url())).store(store.path().to_str().unwrap()).start().await;
    (upstream, image, store, hydrant)
}

async fn never_ends_cleanly(fault: Fault) {
    let (upstream, image, store, hydrant) = lab(fault).await;
    let layer = image.all_blobs().into_iter().max_by_key(|blob| blob.size).unwrap();
    let url = format!("{}/v2/lab/app/blobs/{}", hydrant.url(), layer.digest);
    let told = read(&url).await;
    assert!(told.is_err(), "the body ended cleanly after {told:?} bytes");
    let name = format!("{}/lab/app:1", hydrant.host());
    Skopeo::pull(&name).run().await.expect_err("skopeo sees it");
    assert!(!stored(store.path(), layer.digest.hex()), "wrong content was stored");
    assert_eq!(status(&hydrant, "lab/app:1").await["hydrated"], false);

    upstream.heal();
    let pulled = Skopeo::pull(&name).run().await.expect("a pull from the healed upstream");
    assert_eq!(pulled.digest, image.digest);
}

fn stored(root: &Path, hex: &str) -> bool {
    let blobs = root.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex);
    blobs.join("data").exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_another_digest_is_cut_off_and_not_stored() {
    never_ends_cleanly(Fault::wrong_bytes()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_truncated_again_and_again_is_cut_off_and_not_stored() {
    never_ends_cleanly(Fault::truncate(MIB).and(Fault::no_range())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_ends_early_as_if_it_were_whole_is_cut_off_and_not_stored() {
    never_ends_cleanly(Fault::short(MIB)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_body_is_cut_off_and_not_stored() {
    never_ends_cleanly(Fault::endless().method("GET")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_off_is_resumed_where_it_broke() {
    let (upstream, image, _store, hydrant) = lab(Fault::truncate(MIB)).await;
    let layer = image.all_blobs().into_iter().max_by_key(|blob| blob.size).unwrap();
    let url = format!("{}/v2/lab/app/blobs/{}", hydrant.url(), layer.digest);
    assert_eq!(read(&url).await.expect("the body ends cleanly"), layer.size);
    let sent = upstream.bytes(&format!("*/blobs/{}", layer.digest));
    assert!(sent < layer.size + MIB / 2, "{sent} bytes for {}", layer.size);
}
