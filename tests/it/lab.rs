//! What the scenarios have in common: the configuration of one lab, and what must always hold.

use hydrant_bus::{Bus, BusConfig};
use hydrant_testkit::{Hydrant, HydrantOptions, SeaweedFs, WebhookSink, until};
use serde_json::Value;
use std::{collections::BTreeMap, path::Path, time::Duration};

/// Longest wait for something that takes a second when nothing is wrong.
pub const SOON: Duration = Duration::from_secs(90);

/// Standard Webhooks secret of the lab.
pub const SECRET: &str = "whsec_aHlkcmFudC1sYWItc2VjcmV0LTMyLWJ5dGVzLWxvbmc=";

/// Rules of the lab: `lab/*` leads to `upstream`, hydrated for what is pulled.
pub fn config(upstream: &str) -> String {
    format!(
        r#"
        [[upstream]]
        name = "lab"
        endpoint = "{upstream}"
        allow_private = true
        [[rule]]
        name = "lab"
        downstream = "lab/*"
        upstream = "lab"
        fresh_for = "1h"
        "#
    )
}

/// The same with a webhook for everything that happens.
pub fn config_with_hook(upstream: &str, sink: &WebhookSink) -> String {
    format!(
        r#"{}
        [[webhook]]
        name = "ci"
        url = "{}"
        allow_private = true
        secret = {{ env = "HOOK_SECRET" }}
        "#,
        config(upstream),
        sink.url()
    )
}

/// A role of hydrant with this configuration.
pub fn role(role: &str, config: &str) -> HydrantOptions {
    Hydrant::role(role).config(config).env("HOOK_SECRET", SECRET)
}

/// What `GET /api/v1/status` says of an image.
pub async fn status(control: &Hydrant, image: &str) -> Value {
    control.api(&format!("/api/v1/status?image={image}")).await.1
}

/// Waits until all that is wanted of `image` is local, as the API tells.
pub async fn hydrated(control: &Hydrant, image: &str) -> Value {
    until(&format!("hydration of {image}"), SOON, async || {
        let status = status(control, image).await;
        (status["hydrated"] == true).then_some(status)
    })
    .await
}

/// The ids under which each repository was announced as hydrated.
pub fn announced(sink: &WebhookSink) -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::<_, Vec<_>>::new();
    for request in sink.received().iter().filter(|request| request.kind() == "image.hydrated") {
        let repository = request.json()["data"]["repository"].as_str().unwrap_or("").to_owned();
        found.entry(repository).or_default().push(request.id().to_owned());
    }
    found
}

/// Waits until no job is queued or running.
pub async fn nothing_pending(nats: &str) {
    let config = BusConfig::new(nats, "hydrant-it".to_owned());
    let bus = Bus::connect(config).await.expect("the url is valid");
    until("an empty queue", SOON, async || {
        let depths = bus.queue_depth().await.ok()?;
        depths.iter().all(|depth| depth.waiting + depth.outstanding == 0).then_some(())
    })
    .await;
}

/// Nothing of an unfinished write is left in the bucket.
pub async fn no_upload_left(s3: &SeaweedFs) {
    let open = s3.open_uploads().await;
    assert!(open.is_empty(), "open uploads: {open:?}");
}

/// Nothing of an unfinished write is left in a directory store.
pub fn no_staging_left(root: &Path) {
    let mut left = vec![root.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).expect("the store is readable").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            assert!(!name.contains('#'), "{} was left behind", entry.path().display());
            if entry.path().is_dir() {
                left.push(entry.path());
            }
        }
    }
}
