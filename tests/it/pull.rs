//! One image, cold and warm, through each kind of store, and the way out by a stock registry.

use crate::lab::{SOON, config, config_with_hook, hydrated, no_staging_left, no_upload_left, role};
use hydrant_testkit::{
    FakeUpstream, Hydrant, Image, NatsServer, Registry, SeaweedFs, Skopeo, WebhookSink,
};
use std::path::Path;

const MIB: u64 = 1024 * 1024;

fn image() -> Image {
    Image::multi_arch(7, &["linux/amd64", "linux/arm64"], &[9 * MIB, MIB, 1000])
}

/// Pulls `lab/app:1` cold and hydrated, then with the upstream gone.
async fn cold_then_warm(hydrant: &Hydrant, upstream: &FakeUpstream, image: &Image) {
    let child = image.child("linux/amd64");
    let name = format!("{}/lab/app:1", hydrant.host());
    let cold = Skopeo::pull(&name).platform("linux/amd64").run().await.expect("a cold pull");
    assert_eq!(cold.digest, child.digest);
    hydrated(hydrant, "lab/app:1").await;
    for blob in child.all_blobs() {
        let reads = upstream.gets(&format!("*/blobs/{}", blob.digest));
        assert_eq!(reads, 1, "upstream reads of {}", blob.digest);
    }
    for manifest in [image, child] {
        let by_digest = upstream.gets(&format!("*/manifests/{}", manifest.digest));
        assert!(by_digest <= 1, "upstream reads of {}", manifest.digest);
    }
    assert_eq!(upstream.gets("*/manifests/1"), 1, "the tag is read once");

    upstream.stop().await;
    upstream.forget_requests();
    let warm = Skopeo::pull(&name).platform("linux/amd64").run().await.expect("a warm pull");
    assert_eq!((warm.digest, warm.blobs), (cold.digest.clone(), cold.blobs));
    let by_digest = format!("{}/lab/app@{}", hydrant.host(), cold.digest);
    Skopeo::pull(&by_digest).run().await.expect("a warm pull by digest");
}

async fn stock_registry_serves(registry: &Registry, image: &Image) {
    let child = image.child("linux/amd64");
    let name = format!("{}/lab/app:1", registry.host());
    let pulled = Skopeo::pull(&name).platform("linux/amd64").run().await;
    assert_eq!(pulled.expect("a pull from the stock registry").digest, child.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_store_serves_without_the_upstream_and_so_does_a_stock_registry() {
    let (upstream, store) = (FakeUpstream::start().await, tempfile::tempdir().unwrap());
    let image = image();
    upstream.insert(&image, "app", "1");
    let hydrant =
        role("up", &config(&upstream.url())).store(store.path().to_str().unwrap()).start().await;
    cold_then_warm(&hydrant, &upstream, &image).await;
    no_staging_left(store.path());
    stock_registry_serves(&Registry::on_directory(store.path()).await, &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_serves_without_the_upstream_and_so_does_a_stock_registry() {
    let (upstream, s3) = (FakeUpstream::start().await, SeaweedFs::start().await);
    let image = image();
    upstream.insert(&image, "app", "1");
    let hydrant = role("up", &config(&upstream.url())).s3(&s3, "cache").start().await;
    cold_then_warm(&hydrant, &upstream, &image).await;
    no_upload_left(&s3).await;
    stock_registry_serves(&Registry::on_s3(&s3, "cache").await, &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_four_roles_as_processes_do_what_one_process_does() {
    let (registry, s3, nats) =
        (Registry::start().await, SeaweedFs::start().await, NatsServer::start().await);
    let sink = WebhookSink::start().await;
    let image = image();
    registry.push(&image, "app", "1").await;
    let config = config_with_hook(&registry.url(), &sink);
    let start = |name| role(name, &config).s3(&s3, "cache").nats(&nats.url()).start();
    let (control, notifier) = (start("control").await, start("notifier").await);
    let (importer, mut frontend) = (start("importer").await, start("frontend").await);

    let name = format!("{}/lab/app:1", frontend.host());
    let pulled = Skopeo::pull(&name).platform("linux/arm64").run().await.expect("a cold pull");
    assert_eq!(pulled.digest, image.child("linux/arm64").digest);
    let status = hydrated(&control, "lab/app:1").await;
    assert_eq!(status["completion"]["platforms"], serde_json::json!(["linux/arm64"]));
    let told = sink
        .wait_until("image.hydrated", SOON, |all| {
            all.iter().find(|request| request.kind() == "image.hydrated").cloned()
        })
        .await;
    assert_eq!(told.json()["data"]["digest"], image.digest.to_string());

    drop((importer, notifier, control));
    frontend.terminate().await;
    drop(nats);
    drop(registry);
    let alone = role("frontend", &config).s3(&s3, "cache").nats("nats://127.0.0.1:1").start().await;
    let name = format!("{}/lab/app:1", alone.host());
    let warm = Skopeo::pull(&name).platform("linux/arm64").run().await;
    assert_eq!(warm.expect("a pull with everything else gone").digest, pulled.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_platform_is_hydrated_when_it_is_pulled() {
    let (upstream, store) = (FakeUpstream::start().await, tempfile::tempdir().unwrap());
    let image = image();
    upstream.insert(&image, "app", "1");
    let hydrant = started(&upstream, store.path()).await;
    for platform in ["linux/amd64", "linux/arm64"] {
        let name = format!("{}/lab/app:1", hydrant.host());
        Skopeo::pull(&name).platform(platform).run().await.expect("a pull");
        hydrated(&hydrant, "lab/app:1").await;
    }
    upstream.stop().await;
    let name = format!("{}/lab/app:1", hydrant.host());
    let all = Skopeo::pull(&name).all().run().await.expect("a warm pull of both platforms");
    assert_eq!(all.children.len(), 2);
}

async fn started(upstream: &FakeUpstream, store: &Path) -> Hydrant {
    role("up", &config(&upstream.url())).store(store.to_str().unwrap()).start().await
}
