//! A layer that is larger than any memory a process may take.

use crate::lab::{config, hydrated, role};
use futures::StreamExt;
use hydrant_testkit::{FakeUpstream, ImageBuilder, SeaweedFs};

const GIB: u64 = 1024 * 1024 * 1024;
const MIB: u64 = 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_2_gib_hydrates_and_serves_in_less_than_128_mib() {
    let (upstream, s3) = (FakeUpstream::start().await, SeaweedFs::start().await);
    let image = ImageBuilder::new(1).layers(&[2 * GIB]).build();
    upstream.insert(&image, "app", "1");
    let hydrant = role("up", &config(&upstream.url())).s3(&s3, "cache").start().await;
    let layer = image.all_blobs().into_iter().max_by_key(|blob| blob.size).unwrap();
    let asked = hydrant.command(["hydrate", "lab/app:1", "--wait"]).await;
    asked.success();
    hydrated(&hydrant, "lab/app:1").await;
    upstream.stop().await;

    let url = format!("{}/v2/lab/app/blobs/{}", hydrant.url(), layer.digest);
    let mut body = reqwest::get(&url).await.expect("an answer").bytes_stream();
    let mut hasher = hydrant_proto::Hasher::new(hydrant_proto::Algorithm::Sha256);
    while let Some(chunk) = body.next().await {
        hasher.update(&chunk.expect("the body does not break off"));
    }
    assert_eq!(hasher.finish(), layer.digest);
    let peak = hydrant.peak_memory();
    assert!(peak < 128 * MIB, "peak memory was {} MiB", peak / MIB);
}
