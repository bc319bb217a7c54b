//! Blobs: flights, ranges, and bodies that go wrong.

use crate::lab::{Lab, SOON, assert_manifest, directory_store, file_of, header};
use hydrant_testkit::{Fault, Image, ImageBuilder, until};
use std::{sync::Arc, time::Duration};

async fn lab_with_layer(size: u64) -> (Lab, Image, String) {
    let lab = Lab::start().await;
    let image = ImageBuilder::new(1).layer(size).build();
    lab.upstream.insert(&image, "app", "1");
    let path = format!("lab/app/blobs/{}", image.blobs[1].digest);
    (lab, image, path)
}

#[tokio::test]
async fn a_cold_blob_is_streamed_and_kept() {
    let (lab, image, path) = lab_with_layer(3_000_000).await;
    let layer = &image.blobs[1];
    let (headers, body) = lab.pull(&path).await;
    assert_eq!(body, layer.content.bytes());
    assert_eq!(header(&headers, "x-hydrant-cache"), "miss");
    assert_eq!(header(&headers, "docker-content-digest"), layer.digest.to_string());
    assert_eq!(header(&headers, "content-length"), "3000000");
    assert_eq!(header(&headers, "accept-ranges"), "bytes");
    let name = "lab/app".parse().unwrap();
    until("the blob is stored and linked", SOON, async || {
        let linked = lab.store.has_link(&name, &layer.digest).await.unwrap();
        (linked && lab.flights.get(&layer.digest).is_none()).then_some(())
    })
    .await;
    lab.upstream.stop().await;
    let (headers, body) = lab.pull(&path).await;
    assert_eq!((header(&headers, "x-hydrant-cache"), body), ("hit", layer.content.bytes()));
    assert_eq!(lab.upstream.gets("*/blobs/*"), 1);
}

#[tokio::test]
async fn a_pull_asks_the_upstream_once_for_each_thing() {
    let (lab, image, _) = lab_with_layer(100_000).await;
    lab.pull("lab/app/manifests/1").await;
    for blob in &image.blobs {
        lab.pull(&format!("lab/app/blobs/{}", blob.digest)).await;
    }
    assert_eq!((lab.upstream.gets("*/app/*"), lab.upstream.heads("*")), (3, 0));
}

#[tokio::test]
async fn fifty_cold_clients_cost_one_upstream_read() {
    let (lab, image, path) = lab_with_layer(2_000_000).await;
    let lab = Arc::new(lab);
    lab.upstream.inject("*/blobs/*", Fault::slow(4_000_000).method("GET"));
    let pulls: Vec<_> = (0..50)
        .map(|_| {
            let (lab, path) = (lab.clone(), path.clone());
            tokio::spawn(async move { lab.pull(&path).await.1 })
        })
        .collect();
    for pull in pulls {
        assert_eq!(pull.await.unwrap(), image.blobs[1].content.bytes());
    }
    assert_eq!(lab.upstream.gets("*/blobs/*"), 1);
}

#[tokio::test]
async fn the_status_line_goes_out_before_the_body_arrives() {
    let (lab, image, path) = lab_with_layer(100_000).await;
    lab.upstream.inject("*/blobs/*", Fault::late_body(Duration::from_secs(3)).method("GET"));
    let began = std::time::Instant::now();
    let answer = lab.get(&path).send().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(answer.content_length(), Some(100_000));
    assert_eq!(answer.bytes().await.unwrap(), image.blobs[1].content.bytes());
}

#[tokio::test]
async fn a_client_that_leaves_does_not_stop_the_flight() {
    let (lab, image, path) = lab_with_layer(1_000_000).await;
    lab.upstream.inject("*/blobs/*", Fault::slow(2_000_000).method("GET"));
    let mut leaving = lab.get(&path).send().await.unwrap();
    leaving.chunk().await.unwrap().unwrap();
    drop(leaving);
    let digest = &image.blobs[1].digest;
    until("the blob is stored", SOON, async || lab.store.blob_size(digest).await.unwrap()).await;
    assert_eq!(lab.upstream.gets("*/blobs/*"), 1);
}

#[tokio::test]
async fn a_range_on_a_miss_is_answered_from_the_flight() {
    let (lab, image, path) = lab_with_layer(1_000_000).await;
    let whole = image.blobs[1].content.bytes();
    let ranged = lab.get(&path).header("range", "bytes=1000-1999").send().await.unwrap();
    assert_eq!(ranged.status(), 206);
    assert_eq!(header(ranged.headers(), "content-range"), "bytes 1000-1999/1000000");
    assert_eq!(ranged.bytes().await.unwrap(), whole[1000..2000]);
    let tail = lab.get(&path).header("range", "bytes=-10").send().await.unwrap();
    assert_eq!(tail.bytes().await.unwrap(), whole[999_990..]);
    let past = lab.get(&path).header("range", "bytes=1000000-").send().await.unwrap();
    assert_eq!(past.status(), 416);
    assert_eq!(header(past.headers(), "content-range"), "bytes */1000000");
    let many = vec!["0-0"; 1000].join(",");
    let many = lab.get(&path).header("range", format!("bytes={many}")).send().await.unwrap();
    assert_eq!(many.status(), 200);
    assert_eq!(lab.upstream.gets("*/blobs/*"), 1);
}

#[tokio::test]
async fn a_local_blob_is_read_by_ranges_too() {
    let (lab, image, path) = lab_with_layer(1_000_000).await;
    lab.hydrate(&image, "lab/app", "1").await;
    let whole = image.blobs[1].content.bytes();
    for (range, expected) in [
        ("bytes=0-0", &whole[..1]),
        ("bytes=500000-", &whole[500_000..]),
        ("bytes=10-19,20-29", &whole[10..30]),
    ] {
        let answer = lab.get(&path).header("range", range).send().await.unwrap();
        assert_eq!(answer.status(), 206, "{range}");
        assert_eq!(answer.bytes().await.unwrap(), expected, "{range}");
    }
    let head = lab.head(&path).send().await.unwrap();
    assert_eq!(header(head.headers(), "content-length"), "1000000");
    assert!(lab.upstream.requests().is_empty());
}

#[tokio::test]
async fn wrong_bodies_never_end_cleanly_and_are_never_stored() {
    for fault in [
        Fault::wrong_bytes(),
        // The rest of it is asked for, once and again, and is cut off each time.
        Fault::truncate(100_000),
        Fault::short(400_000),
        Fault::long(5),
        Fault::wrong_bytes().header("transfer-encoding", "chunked"),
        Fault::short(400_000).header("transfer-encoding", "chunked"),
        Fault::long(5).header("transfer-encoding", "chunked"),
        Fault::endless(),
    ] {
        let (lab, image, path) = lab_with_layer(500_000).await;
        let told = format!("{fault:?}");
        lab.upstream.inject("*/blobs/*", fault.method("GET"));
        let whole = image.blobs[1].content.bytes();
        if let Ok(answer) = lab.get(&path).send().await {
            let status = answer.status();
            let body = answer.bytes().await;
            let right = body.as_ref().is_ok_and(|body| *body == whole);
            assert!(status != 200 || body.is_err() || right, "{told}: ended cleanly");
        }
        let digest = &image.blobs[1].digest;
        until("the flight is over", SOON, async || lab.flights.get(digest).is_none().then_some(()))
            .await;
        let kept = lab.store.read_blob(digest, None).await.unwrap();
        assert!(kept.is_none_or(|kept| kept.size == 500_000), "{told}");
        lab.upstream.heal();
        until("the upstream is asked again", SOON, async || {
            let answer = lab.get(&path).send().await.ok()?;
            (answer.status() == 200).then_some(())?;
            (answer.bytes().await.ok()? == whole).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_blob_nobody_has_is_404_and_one_nobody_can_tell_of_is_not() {
    let (lab, _, _) = lab_with_layer(10).await;
    let none = hydrant_proto::Digest::of(b"none");
    let path = format!("lab/app/blobs/{none}");
    for _ in 0..3 {
        assert_eq!(lab.refusal(&path).await, (404, "unknown".to_owned()));
    }
    assert_eq!(lab.upstream.requests_of("*", "*/blobs/*").len(), 1, "absence is remembered");
    lab.upstream.stop().await;
    let other = hydrant_proto::Digest::of(b"other");
    assert_eq!(lab.refusal(&format!("lab/app/blobs/{other}")).await.0, 502);
}

#[tokio::test]
async fn blobs_come_from_an_upstream_whose_storage_refuses_head() {
    let (lab, image, path) = lab_with_layer(100_000).await;
    let cdn = hydrant_testkit::FakeUpstream::start().await;
    cdn.insert(&image, "any", "1");
    cdn.inject("*", Fault::status(403).method("HEAD"));
    lab.upstream.redirect_blobs(Some(&cdn.url()));
    let (_, body) = lab.pull(&path).await;
    assert_eq!(body, image.blobs[1].content.bytes());
}

#[tokio::test]
async fn an_empty_blob_works() {
    let lab = Lab::start().await;
    let digest = hydrant_proto::Digest::of(b"");
    lab.upstream.put_blob("app", &digest, "");
    let (headers, body) = lab.pull(&format!("lab/app/blobs/{digest}")).await;
    assert_eq!((header(&headers, "content-length"), body.len()), ("0", 0));
}

#[tokio::test]
async fn too_many_upstream_requests_are_turned_away() {
    let lab = Lab::setup().upstream_requests(1).start().await;
    let image = ImageBuilder::new(1).layer(500_000).build();
    lab.upstream.insert(&image, "app", "1");
    let late = lab.upstream.inject("*/manifests/*", Fault::delay(SOON).method("GET"));
    let waiting = tokio::spawn(lab.get("lab/app/manifests/1").send());
    until("the manifest to be asked for", SOON, async || {
        (lab.upstream.gets("*/manifests/1") > 0).then_some(())
    })
    .await;
    let path = format!("lab/app/blobs/{}", image.blobs[1].digest);
    let refused = lab.get(&path).send().await.unwrap();
    assert_eq!(refused.status(), 429);
    assert!(header(refused.headers(), "retry-after").parse::<u64>().unwrap() >= 1);
    waiting.abort();
    late.remove();
}

#[tokio::test]
async fn a_client_that_reads_slowly_keeps_no_other_from_the_upstream() {
    let lab = Lab::setup().upstream_requests(1).start().await;
    let image = ImageBuilder::new(1).layer(500_000).build();
    lab.upstream.insert(&image, "app", "1");
    lab.upstream.inject("*/blobs/*", Fault::slow(100_000).method("GET"));
    let path = format!("lab/app/blobs/{}", image.blobs[1].digest);
    let mut slow = lab.get(&path).send().await.unwrap();
    slow.chunk().await.unwrap().unwrap();
    assert_manifest(&lab.pull("lab/app/manifests/1").await, &image);
    drop(slow);
}

#[tokio::test]
async fn what_a_read_finds_damaged_is_not_told_of_any_more() {
    let directory = tempfile::tempdir().unwrap();
    let lab = Lab::setup().store(directory_store(&directory)).start().await;
    let image = ImageBuilder::new(1).layer(3_000_000).build();
    lab.hydrate(&image, "lab/app", "1").await;
    let layer = &image.blobs[1];
    let mut damaged = layer.content.bytes().to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(file_of(&directory, &layer.digest), damaged).unwrap();
    let path = format!("lab/app/blobs/{}", layer.digest);
    assert_eq!(lab.head(&path).send().await.unwrap().status(), 200);
    let broken = lab.get(&path).send().await.unwrap();
    assert!(broken.bytes().await.is_err());
    until("its absence is told", SOON, async || {
        (lab.head(&path).send().await.unwrap().status() == 404).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_stored_blob_of_the_wrong_size_is_not_believed_and_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let lab = Lab::setup().store(directory_store(&directory)).start().await;
    let image = ImageBuilder::new(1).layer(300_000).build();
    lab.upstream.insert(&image, "app", "1");
    lab.hydrate(&image, "lab/app", "1").await;
    let layer = &image.blobs[1];
    let whole = layer.content.bytes();
    std::fs::write(file_of(&directory, &layer.digest), &whole[..100_000]).unwrap();
    lab.pull("lab/app/manifests/1").await;
    let path = format!("lab/app/blobs/{}", layer.digest);
    let head = lab.head(&path).send().await.unwrap();
    assert_eq!(header(head.headers(), "content-length"), "300000");
    let part = lab.get(&path).header("range", "bytes=99990-200000").send().await.unwrap();
    assert_eq!(header(part.headers(), "content-range"), "bytes 99990-200000/300000");
    assert_eq!(part.bytes().await.unwrap(), whole[99_990..=200_000]);
    until("it is stored whole", SOON, async || {
        (lab.store.blob_size(&layer.digest).await.unwrap() == Some(300_000)).then_some(())
    })
    .await;
}
