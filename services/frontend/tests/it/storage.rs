//! Storage that is S3, and storage that is away.

use crate::lab::{Lab, SOON, assert_manifest, header};
use hydrant_proto::Digest;
use hydrant_store::{S3Settings, Store, StoreConfig};
use hydrant_testkit::{ImageBuilder, SeaweedFs, until};
use std::time::{Duration, Instant};

fn store(s3: &SeaweedFs) -> Store {
    let url = format!("s3://{}/cache", s3.bucket()).parse().unwrap();
    let s3 = S3Settings::from_vars(s3.env());
    Store::open(&StoreConfig { url, s3, public_endpoint: None }).unwrap()
}

#[tokio::test]
async fn a_rule_can_send_clients_to_storage_itself() {
    let s3 = SeaweedFs::start().await;
    let lab = Lab::setup().store(store(&s3)).rule("delivery = 'redirect'").start().await;
    let image = ImageBuilder::new(1).layer(300_000).build();
    lab.hydrate(&image, "lab/app", "1").await;
    let layer = &image.blobs[1];
    let path = format!("lab/app/blobs/{}", layer.digest);
    let redirect = lab.get(&path).send().await.unwrap();
    assert_eq!(redirect.status(), 307);
    let location = header(redirect.headers(), "location");
    let ranged = lab.client.get(location).header("range", "bytes=5-9").send().await.unwrap();
    assert_eq!(ranged.bytes().await.unwrap(), layer.content.bytes()[5..10]);
    let head = lab.head(&path).send().await.unwrap();
    assert_eq!((head.status().as_u16(), header(head.headers(), "content-length")), (200, "300000"));
    assert_manifest(&lab.pull("lab/app/manifests/1").await, &image);
    assert!(lab.upstream.requests().is_empty());
}

#[tokio::test]
async fn without_storage_pulls_pass_through_and_nothing_is_called_unknown() {
    let mut s3 = SeaweedFs::start().await;
    let lab = Lab::setup().store(store(&s3)).start().await;
    let image = ImageBuilder::new(1).layer(300_000).build();
    let local = ImageBuilder::new(2).layer(300_000).build();
    lab.upstream.insert(&image, "app", "1");
    lab.hydrate(&local, "lab/local", "1").await;
    lab.pull(&format!("lab/local/blobs/{}", local.blobs[1].digest)).await;
    s3.kill9();
    let began = Instant::now();
    assert_manifest(&lab.pull("lab/app/manifests/1").await, &image);
    for blob in &image.blobs {
        let (_, body) = lab.pull(&format!("lab/app/blobs/{}", blob.digest)).await;
        assert_eq!(body, blob.content.bytes());
    }
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    for path in [
        "lab/app/manifests/none".to_owned(),
        format!("lab/app/blobs/{}", Digest::of(b"none")),
        format!("lab/local/blobs/{}", local.blobs[1].digest),
    ] {
        assert_eq!(lab.refusal(&path).await, (503, "storage".to_owned()), "{path}");
    }
}

#[tokio::test]
async fn what_landed_a_moment_ago_is_served_while_storage_stands_still() {
    let s3 = SeaweedFs::start().await;
    let lab = Lab::setup().store(store(&s3)).start().await;
    let image = ImageBuilder::new(3).layer(300_000).build();
    lab.upstream.insert(&image, "app", "1");
    let layer = &image.blobs[1];
    let path = format!("lab/app/blobs/{}", layer.digest);
    lab.pull(&path).await;
    until("the flight to land", SOON, async || {
        lab.flights.landed(&layer.digest).filter(|_| lab.flights.get(&layer.digest).is_none())
    })
    .await;
    s3.freeze();
    let (_, body) = lab.pull(&path).await;
    assert_eq!(body, layer.content.bytes());
    assert_eq!(lab.upstream.gets("*/blobs/*"), 1);
    // To who may not read it, it is no more there than it is in storage.
    let foreign = format!("lab/other/blobs/{}", layer.digest);
    assert_eq!(lab.refusal(&foreign).await, (503, "storage".to_owned()));
    s3.thaw();
}
