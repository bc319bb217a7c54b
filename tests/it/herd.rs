//! Many requests at once, and workers that share them.

use crate::{
    audit,
    lab::{SECRET, SOON, announced, config_with_hook, no_upload_left, nothing_pending, role},
};
use hydrant_testkit::{FakeUpstream, ImageBuilder, NatsServer, SeaweedFs, WebhookSink, until};
use standardwebhooks::Webhook;

const IMAGES: u64 = 100;

#[tokio::test(flavor = "multi_thread")]
async fn each_of_a_hundred_images_requested_twice_is_hydrated_and_announced_once() {
    let (upstream, s3, nats) =
        (FakeUpstream::start().await, SeaweedFs::start().await, NatsServer::start().await);
    let sink = WebhookSink::start().await;
    for n in 0..IMAGES {
        let image = ImageBuilder::new(n).layers(&[64 * 1024, 1024]).build();
        upstream.insert(&image, &format!("app-{n}"), "1");
    }
    let config = config_with_hook(&upstream.url(), &sink);
    let start = |name| role(name, &config).s3(&s3, "cache").nats(&nats.url()).start();
    let (control, _notifier) = (start("control").await, start("notifier").await);
    let _importers = [start("importer").await, start("importer").await, start("importer").await];

    let client = reqwest::Client::new();
    let requests = (0..2 * IMAGES).map(|n| {
        let body = serde_json::json!({ "image": format!("lab/app-{}:1", n % IMAGES) });
        client.post(format!("{}/api/v1/hydrations", control.admin_url())).json(&body).send()
    });
    for answer in futures::future::join_all(requests).await {
        assert_eq!(answer.expect("the API answers").status(), 202);
    }

    let told = until("the announcement of every image", 2 * SOON, async || {
        let told = announced(&sink);
        (told.len() as u64 == IMAGES).then_some(told)
    })
    .await;
    nothing_pending(&nats.url()).await;
    for (image, ids) in told {
        assert!(ids.iter().all(|id| *id == ids[0]), "{image} was announced as {ids:?}");
    }
    let verifier = Webhook::new(SECRET).unwrap();
    for request in sink.received() {
        verifier.verify(&request.body, &request.headers).expect("every signature is valid");
    }
    // Layers and configs differ from image to image, so a read per blob is all there may be.
    assert_eq!(upstream.gets("*/blobs/*") as u64, 3 * IMAGES);
    assert_eq!(upstream.gets("*/manifests/*") as u64, IMAGES);
    no_upload_left(&s3).await;
    assert_eq!(audit::bucket(&s3, "cache").await as u64, IMAGES);
}
