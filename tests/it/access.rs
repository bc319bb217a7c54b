//! Content is had by repository and rule, never by knowing its digest.

use crate::lab::{SOON, config, hydrated, role, status};
use hydrant_testkit::{FakeUpstream, ImageBuilder, until};
use reqwest::StatusCode;

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_names_another_repositorys_blobs_does_not_bring_them() {
    let (private, evil) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let store = tempfile::tempdir().unwrap();
    let image = ImageBuilder::new(1).layers(&[100_000]).build();
    private.insert(&image, "app", "1");
    // The other upstream has a manifest with the same digests, and none of the blobs.
    evil.put_manifest("app", "1", image.media_type.as_str(), image.manifest.clone());
    let config = format!(
        "{}\n[[upstream]]\nname = \"evil\"\nendpoint = \"{}\"\nallow_private = true\n\
         [[rule]]\nname = \"evil\"\ndownstream = \"evil/*\"\nupstream = \"evil\"\n",
        config(&private.url()),
        evil.url()
    );
    let hydrant = role("up", &config).store(store.path().to_str().unwrap()).start().await;
    hydrant.command(["hydrate", "lab/app:1"]).await.success();
    hydrated(&hydrant, "lab/app:1").await;

    hydrant.command(["hydrate", "evil/app:1"]).await.success();
    let status = until("a dead letter", SOON, async || {
        let status = status(&hydrant, "evil/app:1").await;
        (!status["dead_letter"].is_null()).then_some(status)
    })
    .await;
    assert_eq!(status["dead_letter"]["class"], "unknown");
    let random = "sha256:0000000000000000000000000000000000000000000000000000000000000001";
    let layer = image.all_blobs()[0].digest.to_string();
    let mut answers = Vec::new();
    for digest in [layer.as_str(), random] {
        let url = format!("{}/v2/evil/app/blobs/{digest}", hydrant.url());
        let answer = reqwest::get(&url).await.expect("an answer");
        let code = answer.status();
        answers.push((code, answer.text().await.unwrap().replace(digest, "<digest>")));
    }
    assert_eq!(answers[0].0, StatusCode::NOT_FOUND);
    assert_eq!(answers[0], answers[1]);
}
