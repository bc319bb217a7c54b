//! What is stored is served by others than hydrant.

use crate::{
    bench::{Bench, Place, bytes_of, put, repository, tag},
    manifests::manifest,
    races::record,
};
use bytes::Bytes;
use hydrant_proto::Digest;
use hydrant_testkit::Registry;
use std::time::Duration;

async fn get(url: &str) -> (u16, Bytes) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let accept = "application/vnd.oci.image.manifest.v1+json";
    let answer = client.get(url).header("accept", accept).send().await.unwrap();
    (answer.status().as_u16(), answer.bytes().await.unwrap())
}

pub async fn a_stock_registry_serves_what_was_stored(bench: &Bench) {
    let (store, name) = (&bench.store, repository("lab/app"));
    let (config, layer) = (Bytes::from_static(b"{}"), bytes_of(9, 9_000_000));
    for blob in [&config, &layer] {
        store.link_blob(&name, &put(store, blob).await).await.unwrap();
    }
    let bytes = manifest(std::slice::from_ref(&layer), None);
    let digest = Digest::of(&bytes);
    store.stage_manifest(&digest, bytes.clone()).await.unwrap();
    store.commit_manifest(&name, &digest).await.unwrap();
    let mut record = record("x");
    record.digest = digest.clone();
    store.put_tag(&name, &tag("v1"), record, None).await.unwrap();
    let registry = match &bench.place {
        Place::Memory => return,
        Place::Directory(directory) => Registry::on_directory(directory.path()).await,
        Place::S3 { server, prefix } => Registry::on_s3(server, prefix).await,
    };
    let base = format!("{}/v2/lab/app", registry.url());
    assert_eq!(get(&format!("{base}/manifests/v1")).await, (200, bytes.clone()));
    assert_eq!(get(&format!("{base}/manifests/{digest}")).await, (200, bytes));
    let (status, served) = get(&format!("{base}/blobs/{}", Digest::of(&layer))).await;
    assert!(status == 200 && served == layer, "{status}, {} bytes", served.len());
    let (_, tags) = get(&format!("{base}/tags/list")).await;
    assert!(tags.starts_with(br#"{"name":"lab/app","tags":["v1"]}"#), "{tags:?}");
}

pub async fn a_presigned_url_gives_the_blob_to_anybody(bench: &Bench) {
    let bytes = bytes_of(1, 100_000);
    let digest = put(&bench.store, &bytes).await;
    let url = bench.store.presign(&digest, Duration::from_secs(60)).await.unwrap().unwrap();
    assert_eq!(get(url.as_str()).await, (200, bytes));
    let mut unsigned = url;
    unsigned.set_query(None);
    assert_eq!(get(unsigned.as_str()).await.0, 403);
}
