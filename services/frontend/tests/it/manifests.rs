//! Manifests, cold and warm.

use crate::lab::{Lab, assert_manifest, directory_store, file_of, header};
use hydrant_testkit::{Fault, Image, ImageBuilder};
use std::sync::Arc;

#[tokio::test]
async fn a_cold_pull_relays_byte_for_byte() {
    let lab = Lab::start().await;
    let index = Image::multi_arch(1, &["linux/amd64", "linux/arm64"], &[1_000]);
    let docker = ImageBuilder::new(2).layer(10).docker().build();
    lab.upstream.insert(&index, "app", "1");
    lab.upstream.insert(&docker, "app", "docker");
    let cold = lab.pull("lab/app/manifests/1").await;
    assert_manifest(&cold, &index);
    assert_eq!(header(&cold.0, "x-hydrant-cache"), "miss");
    assert_manifest(&lab.pull("lab/app/manifests/docker").await, &docker);
    let child = index.child("linux/arm64");
    assert_manifest(&lab.pull(&format!("lab/app/manifests/{}", child.digest)).await, child);
}

#[tokio::test]
async fn content_is_not_converted_to_what_the_client_accepts() {
    let lab = Lab::start().await;
    let image = ImageBuilder::new(1).docker().build();
    lab.upstream.insert(&image, "app", "1");
    let get = lab.get("lab/app/manifests/1").header("accept", "application/json");
    let answer = get.send().await.unwrap();
    assert_eq!(header(answer.headers(), "content-type"), image.media_type.as_str());
    assert_eq!(answer.bytes().await.unwrap(), image.manifest);
}

#[tokio::test]
async fn a_hundred_cold_pulls_are_one_upstream_request() {
    let lab = Arc::new(Lab::start().await);
    let image = ImageBuilder::new(1).layer(10).build();
    lab.upstream.insert(&image, "app", "1");
    lab.upstream.inject("*/manifests/*", Fault::delay(std::time::Duration::from_millis(100)));
    let pulls = (0..100).map(|_| {
        let lab = lab.clone();
        tokio::spawn(async move { lab.pull("lab/app/manifests/1").await })
    });
    for pull in pulls.collect::<Vec<_>>() {
        let (_, body) = pull.await.unwrap();
        assert_eq!(body, image.manifest);
    }
    assert_eq!(lab.upstream.gets("*/manifests/*"), 1);
    assert_eq!(lab.upstream.heads("*/app/*"), 0);
}

#[tokio::test]
async fn a_first_client_that_leaves_does_not_stop_the_fetch() {
    let lab = Lab::start().await;
    let image = ImageBuilder::new(1).layer(10).build();
    lab.upstream.insert(&image, "app", "1");
    lab.upstream
        .inject("*/manifests/*", Fault::delay(std::time::Duration::from_millis(200)).times(1));
    let leaving = lab.get("lab/app/manifests/1").timeout(std::time::Duration::from_millis(50));
    assert!(leaving.send().await.unwrap_err().is_timeout());
    assert_manifest(&lab.pull("lab/app/manifests/1").await, &image);
    assert_eq!(lab.upstream.gets("*/manifests/*"), 1);
}

#[tokio::test]
async fn a_cold_head_is_never_a_get() {
    let lab = Lab::start().await;
    let image = ImageBuilder::new(1).layer(10).build();
    lab.upstream.insert(&image, "app", "1");
    let blob = format!("lab/app/blobs/{}", image.blobs[1].digest);
    for path in ["lab/app/manifests/1", &format!("lab/app/manifests/{}", image.digest), &blob] {
        let answer = lab.head(path).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        assert!(header(answer.headers(), "content-length").parse::<u64>().unwrap() > 0);
        assert!(answer.headers().contains_key("docker-content-digest"));
    }
    assert_eq!(lab.upstream.gets("*/app/*"), 0);
    let unknown = lab.head("lab/app/manifests/none").send().await.unwrap();
    assert_eq!(unknown.status(), 404);
    assert_eq!(header(unknown.headers(), "x-hydrant-error"), "unknown");
}

#[tokio::test]
async fn what_is_local_by_digest_needs_no_upstream() {
    let lab = Lab::start().await;
    let image = ImageBuilder::new(1).layer(70_000).build();
    lab.hydrate(&image, "lab/app", "1").await;
    lab.upstream.stop().await;
    let warm = lab.pull(&format!("lab/app/manifests/{}", image.digest)).await;
    assert_manifest(&warm, &image);
    assert_eq!(header(&warm.0, "x-hydrant-cache"), "hit");
    assert_eq!(header(&warm.0, "cache-control"), "max-age=31536000, immutable");
    let known = lab
        .get(&format!("lab/app/manifests/{}", image.digest))
        .header("if-none-match", header(&warm.0, "etag"));
    assert_eq!(known.send().await.unwrap().status(), 304);
    assert!(lab.upstream.requests().is_empty());
}

#[tokio::test]
async fn a_wrong_manifest_is_refused() {
    let lab = Lab::start().await;
    let (image, other) = (ImageBuilder::new(1).build(), ImageBuilder::new(2).build());
    let digest = image.digest.to_string();
    let media_type = image.media_type.as_str();
    lab.upstream.put_manifest("app", &digest, media_type, other.manifest.clone());
    assert_eq!(
        lab.refusal(&format!("lab/app/manifests/{digest}")).await,
        (502, "integrity".to_owned())
    );
    lab.upstream.insert(&image, "app", "1");
    lab.upstream.inject("*/manifests/1", Fault::html());
    assert_eq!(lab.refusal("lab/app/manifests/1").await, (502, "integrity".to_owned()));
}

#[tokio::test]
async fn a_damaged_local_manifest_is_fetched_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory_store(&directory);
    let lab = Lab::setup().store(store).start().await;
    let image = ImageBuilder::new(1).layer(10).build();
    lab.upstream.insert(&image, "app", "1");
    lab.hydrate(&image, "lab/app", "1").await;
    std::fs::write(file_of(&directory, &image.digest), "damaged").unwrap();
    assert_manifest(&lab.pull("lab/app/manifests/1").await, &image);
    assert_eq!(lab.upstream.gets("*/manifests/*"), 1);
}
