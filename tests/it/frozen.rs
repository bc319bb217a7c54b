//! A worker that is frozen in the middle of its job, past its lease and its time, while the tag moves
//! and another takes over: when it wakes it takes nothing back and tells nothing twice.

use crate::{
    audit,
    lab::{SOON, announced, config_with_hook, nothing_pending, role, status},
};
use hydrant_testkit::{FakeUpstream, Fault, ImageBuilder, NatsServer, WebhookSink, until};

const MIB: u64 = 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_wakes_after_its_job_was_done_by_another_rolls_nothing_back() {
    let (upstream, sink, nats) =
        (FakeUpstream::start().await, WebhookSink::start().await, NatsServer::start().await);
    let store = tempfile::tempdir().unwrap();
    let (old, new) = (
        ImageBuilder::new(1).layers(&[8 * MIB]).build(),
        ImageBuilder::new(2).layers(&[MIB]).build(),
    );
    upstream.insert(&old, "app", "1");
    let layer = old.all_blobs().into_iter().max_by_key(|blob| blob.size).unwrap().digest.clone();
    upstream.inject(&format!("*/blobs/{layer}"), Fault::slow(MIB));
    let config = config_with_hook(&upstream.url(), &sink);
    let start = |name| {
        let role = role(name, &config).store(store.path().to_str().unwrap()).nats(&nats.url());
        role.env("HYDRANT_ACK_WAIT", "3s").start()
    };
    let (control, _notifier) = (start("control").await, start("notifier").await);
    let sleeper = start("importer").await;
    control.command(["hydrate", "lab/app:1"]).await.success();
    until("the layer to be under way", SOON, async || {
        (upstream.bytes(&format!("*/blobs/{layer}")) > MIB).then_some(())
    })
    .await;
    sleeper.freeze();
    upstream.insert(&new, "app", "1");
    let heir = start("importer").await;
    let digest = new.digest.to_string();
    let names_the_new = async || {
        let status = status(&control, "lab/app:1").await;
        (status["hydrated"] == true && status["digest"] == digest.as_str()).then_some(())
    };
    until("another worker to bring the new one", SOON, names_the_new).await;
    sleeper.thaw();
    // It goes on where it was, until it has nothing under way any more.
    upstream.heal();
    until("the sleeper to finish", SOON, async || {
        let busy = sleeper.metric("hydrant_flights_active", &[]).await;
        (busy == 0.0).then_some(())
    })
    .await;
    nothing_pending(&nats.url()).await;
    names_the_new().await.expect("the tag was rolled back");
    let told = announced(&sink).remove("lab/app").expect("it was announced");
    assert!(told.iter().all(|id| *id == told[0]), "told as two events: {told:?}");
    drop((sleeper, heir, control));
    audit::directory(store.path());
}
