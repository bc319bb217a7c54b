//! The bus is away when something is missed.

use crate::lab::{config, hydrated, role};
use hydrant_testkit::{FakeUpstream, ImageBuilder, NatsServer, Skopeo};

#[tokio::test(flavor = "multi_thread")]
async fn a_miss_without_the_bus_is_served_and_hydrated_when_the_bus_returns() {
    let (upstream, store) = (FakeUpstream::start().await, tempfile::tempdir().unwrap());
    let image = ImageBuilder::new(1).layers(&[100_000, 1000]).build();
    upstream.insert(&image, "app", "1");
    let mut nats = NatsServer::options().durable().start().await;
    let hydrant = role("up", &config(&upstream.url()))
        .store(store.path().to_str().unwrap())
        .nats(&nats.url())
        .start()
        .await;
    nats.kill9();
    let name = format!("{}/lab/app:1", hydrant.host());
    let pulled = Skopeo::pull(&name).run().await.expect("a pull without the bus");
    assert_eq!(pulled.digest, image.digest);
    nats.restart().await;
    hydrated(&hydrant, "lab/app:1").await;
    upstream.stop().await;
    Skopeo::pull(&name).run().await.expect("a warm pull");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miss_survives_the_loss_of_the_whole_bus_and_of_the_frontend() {
    let (upstream, store) = (FakeUpstream::start().await, tempfile::tempdir().unwrap());
    let image = ImageBuilder::new(1).layers(&[100_000]).build();
    upstream.insert(&image, "app", "1");
    let config = config(&upstream.url());
    let directory = store.path().to_str().unwrap();
    let (first, second) = (NatsServer::start().await, NatsServer::start().await);
    let start = |name| {
        role(name, &config)
            .store(directory)
            .env("HYDRANT_SWEEP_AFTER", "1s")
            .env("HYDRANT_SWEEP_EVERY", "2s")
    };
    let frontend = start("frontend").nats(&first.url()).start().await;
    Skopeo::pull(format!("{}/lab/app:1", frontend.host())).run().await.expect("a cold pull");
    let misses = store.path().join("hydrant/v1/misses");
    hydrant_testkit::until("a miss record", crate::lab::SOON, async || {
        std::fs::read_dir(&misses).ok()?.next().map(drop)
    })
    .await;
    drop((frontend, first));

    let control = start("control").nats(&second.url()).start().await;
    let _importer = start("importer").nats(&second.url()).start().await;
    hydrated(&control, "lab/app:1").await;
}
