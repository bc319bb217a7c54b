//! A sick upstream is left alone, and holds up nobody else.

use crate::lab::{SOON, config_with_hook, hydrated, role};
use hydrant_testkit::{FakeUpstream, Fault, ImageBuilder, WebhookSink};

const IMAGES: u64 = 20;

#[tokio::test(flavor = "multi_thread")]
async fn the_jobs_of_a_sick_upstream_wait_while_those_of_others_are_done() {
    let (sick, well) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let (store, sink) = (tempfile::tempdir().unwrap(), WebhookSink::start().await);
    for n in 0..IMAGES {
        let image = ImageBuilder::new(n).layers(&[1000]).build();
        sick.insert(&image, &format!("app-{n}"), "1");
        well.insert(&image, &format!("app-{n}"), "1");
    }
    sick.inject("*", Fault::status(503));
    let config = format!(
        "{}\n[[upstream]]\nname = \"well\"\nendpoint = \"{}\"\nallow_private = true\n\
         [[rule]]\nname = \"well\"\ndownstream = \"well/*\"\nupstream = \"well\"\n",
        config_with_hook(&sick.url(), &sink),
        well.url()
    );
    let hydrant = role("up", &config).store(store.path().to_str().unwrap()).start().await;
    for n in 0..IMAGES {
        for repository in ["lab", "well"] {
            let image = format!("{repository}/app-{n}:1");
            hydrant.command(["hydrate", &image]).await.success();
        }
    }
    for n in 0..IMAGES {
        hydrated(&hydrant, &format!("well/app-{n}:1")).await;
    }
    let opened = |kind| {
        sink.wait_until(kind, SOON, move |all| {
            all.iter().find(|told| told.kind() == kind).map(|told| told.json()["data"].clone())
        })
    };
    assert_eq!(opened("upstream.breaker.opened").await["upstream"], "lab");
    // It opens within ten failures, after which one probe at a time goes out, ever more seldom.
    let asked = sick.requests().len();
    assert!(asked <= 20, "a sick upstream was asked {asked} times for {IMAGES} images");

    sick.heal();
    for n in 0..IMAGES {
        hydrated(&hydrant, &format!("lab/app-{n}:1")).await;
    }
    assert_eq!(opened("upstream.breaker.closed").await["upstream"], "lab");
    let letters = hydrant.api("/api/v1/dead-letters").await.1;
    assert_eq!(letters.to_string().matches("\"reason\"").count(), 0, "{letters}");
}
