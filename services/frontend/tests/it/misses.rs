//! What is written down behind an answer, and what it asks to be hydrated.

use crate::lab::{Lab, SOON, assert_manifest, directory_store, file_of, reference};
use hydrant_proto::{HydrationRequested, Lane};
use hydrant_store::Wanted;
use hydrant_testkit::{Image, ImageBuilder, NatsServer, until};
use std::time::Duration;

/// Jobs on the queue that nobody works on.
async fn depth(lab: &Lab) -> u64 {
    if lab.bus.jobs("lab").attach().await.is_err() {
        return 0;
    }
    let depths = lab.bus.queue_depth().await.unwrap_or_default();
    depths.iter().map(|depth| depth.waiting).sum()
}

#[tokio::test]
async fn a_miss_is_staged_recorded_and_published() {
    let nats = NatsServer::start().await;
    let lab = Lab::setup().nats(nats.url()).start().await;
    lab.bus.connected().wait_for(|connected| *connected).await.unwrap();
    let image = ImageBuilder::new(1).layer(10).build();
    lab.upstream.insert(&image, "app", "1");
    lab.pull("lab/app/manifests/1").await;
    let misses = lab.misses(1).await;
    let HydrationRequested { rule, upstream, repository, reference: named, lane, .. } =
        &misses[0].request;
    assert_eq!((rule.as_str(), upstream.as_str()), ("lab", "lab"));
    assert_eq!((repository.as_str(), named), ("lab/app", &reference("1")));
    assert_eq!((*lane, &misses[0].wanted), (Lane::Interactive, &Wanted::Whole));
    assert_eq!(lab.store.staged_manifest(&image.digest).await.unwrap().unwrap(), image.manifest);
    let name = "lab/app".parse().unwrap();
    assert_eq!(lab.store.manifest(&name, &image.digest).await.unwrap(), None, "not yet visible");
    until("the job is queued", SOON, async || (depth(&lab).await == 1).then_some(())).await;
}

#[tokio::test]
async fn a_childs_miss_is_a_miss_of_what_the_user_named() {
    let nats = NatsServer::start().await;
    let lab = Lab::setup().nats(nats.url()).start().await;
    lab.bus.connected().wait_for(|connected| *connected).await.unwrap();
    let index = Image::multi_arch(1, &["linux/amd64", "linux/arm64"], &[10]);
    lab.upstream.insert(&index, "app", "1");
    // As containerd does: HEAD of the tag, then everything by digest.
    lab.head("lab/app/manifests/1").send().await.unwrap();
    lab.pull(&format!("lab/app/manifests/{}", index.digest)).await;
    let child = index.child("linux/arm64");
    assert_manifest(&lab.pull(&format!("lab/app/manifests/{}", child.digest)).await, child);
    let misses = lab.misses(2).await;
    assert!(misses.iter().all(|miss| miss.request.reference == reference("1")), "{misses:?}");
    let platform = Wanted::Platform("linux/arm64".parse().unwrap());
    assert!(misses.iter().any(|miss| miss.wanted == platform));
    assert!(misses.iter().any(|miss| miss.wanted == Wanted::Whole));
    // The child makes the job go out at once, well before the index alone would have.
    until("the job is queued", Duration::from_secs(5), async || {
        (depth(&lab).await == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_image_asked_for_by_digest_is_hydrated_by_digest() {
    let lab = Lab::start().await;
    let image = ImageBuilder::new(1).build();
    lab.upstream.insert(&image, "app", "1");
    lab.pull(&format!("lab/app/manifests/{}", image.digest)).await;
    let misses = lab.misses(1).await;
    assert_eq!(misses[0].request.reference, reference(&image.digest.to_string()));
}

#[tokio::test]
async fn without_the_bus_pulls_are_fine_and_the_job_comes_later() {
    let mut nats = NatsServer::start().await;
    nats.kill9();
    let lab = Lab::setup().nats(nats.url()).start().await;
    let image = ImageBuilder::new(1).build();
    lab.upstream.insert(&image, "app", "1");
    let began = std::time::Instant::now();
    assert_manifest(&lab.pull("lab/app/manifests/1").await, &image);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    lab.misses(1).await;
    nats.restart().await;
    until("the job is queued", SOON, async || (depth(&lab).await == 1).then_some(())).await;
}

#[tokio::test]
async fn a_stopping_frontend_writes_down_what_it_has() {
    let nats = NatsServer::start().await;
    let mut lab = Lab::setup().nats(nats.url()).start().await;
    lab.bus.connected().wait_for(|connected| *connected).await.unwrap();
    let index = Image::multi_arch(1, &["linux/amd64"], &[10]);
    lab.upstream.insert(&index, "app", "1");
    lab.pull("lab/app/manifests/1").await;
    lab.stop().await;
    assert_eq!(lab.misses(1).await.len(), 1);
    assert_eq!(depth(&lab).await, 1, "an index does not wait for its child any more");
}

#[tokio::test]
async fn a_manifest_that_got_lost_is_staged_again_soon() {
    let directory = tempfile::tempdir().unwrap();
    let lab = Lab::setup().store(directory_store(&directory)).start().await;
    let image = ImageBuilder::new(1).build();
    lab.upstream.insert(&image, "app", "1");
    lab.pull("lab/app/manifests/1").await;
    lab.misses(1).await;
    std::fs::remove_file(file_of(&directory, &image.digest)).unwrap();
    until("it is staged again", SOON, async || {
        lab.pull("lab/app/manifests/1").await;
        lab.store.staged_manifest(&image.digest).await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn head_is_no_miss() {
    let mut lab = Lab::start().await;
    lab.upstream.insert(&ImageBuilder::new(1).build(), "app", "1");
    lab.head("lab/app/manifests/1").send().await.unwrap();
    lab.stop().await;
    assert!(lab.misses(0).await.is_empty());
}
