//! `kill -9` of the importer at every step between taking a job and settling it.

use crate::{
    audit,
    lab::{SOON, announced, config_with_hook, hydrated, no_upload_left, nothing_pending, role},
};
use hydrant_testkit::{
    FakeUpstream, Fault, ImageBuilder, NatsServer, Registry, SeaweedFs, Skopeo, WebhookSink, until,
};

const MIB: u64 = 1024 * 1024;
const STEPS: [&str; 8] = [
    "Claimed",
    "Resolved",
    "BlobsDurable",
    "ManifestsDurable",
    "TagPointed",
    "Completed",
    "Announced",
    "Forgotten",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_worker_dies_at_any_step_is_finished_by_the_next_worker() {
    let (upstream, s3, nats) =
        (FakeUpstream::start().await, SeaweedFs::start().await, NatsServer::start().await);
    let sink = WebhookSink::start().await;
    let config = config_with_hook(&upstream.url(), &sink);
    let start =
        |name| role(name, &config).s3(&s3, "cache").nats(&nats.url()).env("HYDRANT_ACK_WAIT", "3s");
    let (control, _notifier) = (start("control").start().await, start("notifier").start().await);
    for (n, step) in STEPS.into_iter().enumerate() {
        let image = ImageBuilder::new(n as u64).layers(&[17 * MIB, 1000]).build();
        let (repository, name) = (format!("app-{n}"), format!("lab/app-{n}:1"));
        upstream.insert(&image, &repository, "1");
        let mut victim = start("importer").env("HYDRANT_ABORT_AT", step).start().await;
        let asked = control.command(["hydrate", &name]).await;
        asked.success();
        let status = victim.ended(SOON).await;
        assert!(!status.success(), "the worker died at {step}");
        // Whatever it came to, what it left is whole.
        let shown = audit::bucket(&s3, "cache").await;
        assert!(shown == n || shown == n + 1, "{step}: {shown} manifests are visible");

        // The next worker gets the job when the dead one has been silent for `ack_wait`.
        let heir = start("importer").start().await;
        hydrated(&control, &name).await;
        nothing_pending(&nats.url()).await;
        let ids = until(&format!("the announcement after {step}"), SOON, async || {
            announced(&sink).remove(&format!("lab/{repository}"))
        })
        .await;
        assert!(ids.iter().all(|id| *id == ids[0]), "{step}: {ids:?}");
        no_upload_left(&s3).await;
        drop(heir);
    }
    let registry = Registry::on_s3(&s3, "cache").await;
    for n in 0..STEPS.len() {
        let image = ImageBuilder::new(n as u64).layers(&[17 * MIB, 1000]).build();
        let pulled = Skopeo::pull(format!("{}/lab/app-{n}:1", registry.host())).run().await;
        assert_eq!(pulled.expect("the stock registry serves it").digest, image.digest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_in_the_middle_of_a_blob_leaves_nothing_behind() {
    let (upstream, s3, nats) =
        (FakeUpstream::start().await, SeaweedFs::start().await, NatsServer::start().await);
    let image = ImageBuilder::new(1).layers(&[40 * MIB]).build();
    upstream.insert(&image, "app", "1");
    upstream.inject("*/blobs/*", Fault::slow(10 * MIB));
    let config = crate::lab::config(&upstream.url());
    let start = |name| {
        let role = role(name, &config).s3(&s3, "cache").nats(&nats.url());
        role.env("HYDRANT_ACK_WAIT", "3s").start()
    };
    let control = start("control").await;
    let mut victim = start("importer").await;
    control.command(["hydrate", "lab/app:1"]).await.success();
    until("a part in storage", SOON, async || (!s3.open_uploads().await.is_empty()).then_some(()))
        .await;
    victim.kill9();
    upstream.heal();
    assert_eq!(audit::bucket(&s3, "cache").await, 0, "nothing of it is visible");
    let _heir = start("importer").await;
    hydrated(&control, "lab/app:1").await;
    nothing_pending(&nats.url()).await;
    no_upload_left(&s3).await;
    assert_eq!(audit::bucket(&s3, "cache").await, 1);
}
