//! S3 that throttles, or has no room: pulls pass through, jobs wait and say why, nothing is blamed on
//! the upstream and nothing is lost.

use crate::{
    audit,
    lab::{SOON, config, hydrated, nothing_pending, role, status},
};
use hydrant_testkit::{
    FakeUpstream, Fault, Hydrant, Image, ImageBuilder, NatsServer, S3Front, SeaweedFs, Skopeo,
    Spoiled, Spoiling, Spoilt, until,
};
use serde_json::Value;

struct Lab {
    upstream: FakeUpstream,
    s3: SeaweedFs,
    front: S3Front,
    nats: NatsServer,
    hydrant: Hydrant,
}

impl Lab {
    async fn start() -> Self {
        let (upstream, s3, nats) =
            (FakeUpstream::start().await, SeaweedFs::start().await, NatsServer::start().await);
        let front = S3Front::start(&s3).await;
        let mut options = role("up", &config(&upstream.url())).nats(&nats.url());
        for (name, value) in s3.env_through(&front.endpoint()) {
            options = options.env(name, &value);
        }
        let options = options.env("HYDRANT_SWEEP_AFTER", "1s").env("HYDRANT_SWEEP_EVERY", "2s");
        let hydrant = options.store(&format!("s3://{}/cache", s3.bucket())).start().await;
        Self { upstream, s3, front, nats, hydrant }
    }

    fn insert(&self, repository: &str, tag: &str, seed: u64) -> Image {
        let image = ImageBuilder::new(seed).layers(&[100_000, 1000]).build();
        self.upstream.insert(&image, repository, tag);
        image
    }

    async fn waits(&self, image: &str, fits: impl Fn(&Value) -> bool) {
        until(&format!("{image} to wait"), SOON, async || {
            let status = status(&self.hydrant, image).await;
            let told = &status["hydration"];
            (told["phase"] == "waiting" && fits(told)).then_some(())
        })
        .await;
    }

    /// Writes are refused with this answer while a job is at work and an image is pulled.
    async fn works_without_writes(&self, code: u16, name: &'static str) {
        let seed = 2 * u64::from(code);
        let pulled = self.insert("pulled", name, seed);
        self.insert("wanted", name, seed + 1);
        let [wanted, other] = ["wanted", "pulled"].map(|it| format!("lab/{it}:{name}"));
        // Two attempts fail for another reason; the third meets storage.
        self.upstream.inject("*/wanted/*", Fault::status(500).times(4));
        self.hydrant.command(["hydrate", &wanted]).await.success();
        self.waits(&wanted, |told| told["attempts"] == 2).await;
        let refusals = ["PUT", "POST"]
            .map(|method| self.front.spoil(Spoiling::of(method, "*", Spoilt::Refused(code, name))));
        let through = Skopeo::pull(format!("{}/{other}", self.hydrant.host())).run().await;
        assert_eq!(through.expect("a pull without storage").digest, pulled.digest);
        self.waits(&wanted, |told| told["class"] == "storage" && told["attempts"] == 2).await;
        let state = self.hydrant.metric("hydrant_upstream_breaker_state", &[("upstream", "lab")]);
        assert_eq!(state.await, 0.0, "the upstream is not to blame");
        refusals.iter().for_each(Spoiled::end);
        for image in [wanted, other] {
            hydrated(&self.hydrant, &image).await;
        }
        let letters = self.hydrant.api("/api/v1/dead-letters").await.1;
        assert_eq!(letters["total"], 0, "{letters}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_that_throttles_or_is_full_loses_nothing_and_blames_nobody() {
    let lab = Lab::start().await;
    lab.works_without_writes(503, "SlowDown").await;
    lab.works_without_writes(507, "StorageFull").await;
    nothing_pending(&lab.nats.url()).await;
    drop(lab.hydrant);
    assert!(audit::bucket(&lab.s3, "cache").await >= 4);
}
