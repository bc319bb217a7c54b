//! What was missed, and cannot be had any more, is not kept for ever.

use crate::lab::{SOON, config, hydrated, role, status};
use hydrant_bus::{Bus, BusConfig};
use hydrant_rules::Resources;
use hydrant_testkit::{FakeUpstream, Fault, ImageBuilder, NatsServer, until};
use std::{fs, path::Path};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_missed_of_an_upstream_that_is_gone_is_forgotten() {
    let (upstream, nats) = (FakeUpstream::start().await, NatsServer::start().await);
    let store = tempfile::tempdir().unwrap();
    upstream.insert(&ImageBuilder::new(1).layers(&[1000]).build(), "app", "1");
    upstream.inject("*/blobs/*", Fault::status(503));
    let hydrant = role("up", &config(&upstream.url()))
        .store(store.path().to_str().unwrap())
        .nats(&nats.url())
        .env("HYDRANT_SWEEP_AFTER", "1s")
        .env("HYDRANT_SWEEP_EVERY", "1s")
        .start()
        .await;
    hydrant.command(["hydrate", "lab/app:1"]).await.success();
    until("the job to wait", SOON, async || {
        let status = status(&hydrant, "lab/app:1").await;
        (status["hydration"]["phase"] == "waiting").then_some(())
    })
    .await;
    let misses = || {
        let jobs = fs::read_dir(store.path().join("hydrant/v1/misses")).into_iter().flatten();
        jobs.flatten()
            .filter_map(|job| fs::read_dir(job.path()).ok())
            .map(Iterator::count)
            .sum::<usize>()
    };
    assert_eq!(misses(), 1);
    for (kind, name) in [("rule", "lab"), ("upstream", "lab")] {
        hydrant.command([kind, "delete", name]).await.success();
    }
    until("the miss to be forgotten", SOON, async || (misses() == 0).then_some(())).await;
    let bus = Bus::connect(BusConfig::new(nats.url(), "hydrant-it".to_owned()));
    let bus = bus.await.expect("the url is valid");
    until("its job to leave the queue", SOON, async || {
        let depths = bus.queue_depth().await.ok()?;
        depths.iter().all(|depth| depth.upstream != "lab").then_some(())
    })
    .await;
}

/// The shared configuration may be a newer version's, or not be there after the bus was wiped.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_forgotten_by_who_cannot_read_which_upstreams_there_are() {
    let (upstream, store) = (FakeUpstream::start().await, tempfile::tempdir().unwrap());
    let store = store.path().to_str().unwrap();
    upstream.insert(&ImageBuilder::new(1).layers(&[1000]).build(), "app", "1");
    let document = config(&upstream.url());
    let past = NatsServer::start().await;
    let control = role("control", &document).store(store).nats(&past.url()).start().await;
    control.command(["hydrate", "lab/app:1"]).await.success();
    drop((control, past));

    let nats = NatsServer::start().await;
    let bus = Bus::connect(BusConfig::new(nats.url(), "hydrant-it".to_owned())).await.unwrap();
    bus.connected().wait_for(|up| *up).await.unwrap();
    // As another importer made it, that can read it.
    bus.jobs("lab").attach().await.unwrap();
    let strange = br#"{"unheard_of":[]}"#[..].into();
    let revision = bus.resources().save(strange, None).await.unwrap();
    let _importer = role("importer", "")
        .store(store)
        .nats(&nats.url())
        .env("HYDRANT_SWEEP_AFTER", "1s")
        .env("HYDRANT_SWEEP_EVERY", "1s")
        .start()
        .await;
    until("its job to be queued again", SOON, async || {
        let depths = bus.queue_depth().await.ok()?;
        let lab = depths.iter().filter(|depth| depth.upstream == "lab");
        (lab.map(|depth| depth.waiting).sum::<u64>() == 1).then_some(())
    })
    .await;
    let resources = Resources::from_toml(&document, Path::new("/")).unwrap();
    let bytes = serde_json::to_vec(&resources).unwrap().into();
    bus.resources().save(bytes, Some(revision)).await.unwrap();
    let control = role("control", "").store(store).nats(&nats.url()).start().await;
    hydrated(&control, "lab/app:1").await;
}
