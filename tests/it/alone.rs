//! A frontend that is left alone: NATS, control, importers, the upstream, its token service and the
//! file of the credential are all gone at the same time.

use crate::lab::{SOON, hydrated, role};
use hydrant_testkit::{Bearer, FakeUpstream, Hydrant, Image, ImageBuilder, NatsServer, until};
use std::{fs, path::Path};

/// A rule whose tags are never fresh, behind a credential in a file.
fn config(upstream: &FakeUpstream, secret: &Path) -> String {
    let (url, file) = (upstream.url(), secret.display());
    format!(
        "[[credential]]\nname='team'\nusername={{file='{file}'}}\npassword={{file='{file}'}}\n\
         [[upstream]]\nname='lab'\nendpoint='{url}'\nallow_private=true\ncredential='team'\n\
         [[rule]]\nname='lab'\ndownstream='lab/*'\nupstream='lab'\nfresh_for='0s'\n"
    )
}

/// Everything of the image, by digest and by tag; what the answer by tag warns of.
async fn pull(frontend: &Hydrant, image: &Image) -> String {
    let get = async |path: String| {
        let answer = reqwest::get(format!("{}/v2/lab/app/{path}", frontend.url())).await.unwrap();
        assert_eq!(answer.status(), 200, "{path}: {:?}", answer.headers());
        let warning = answer.headers().get("warning").map(|text| text.to_str().unwrap().to_owned());
        (answer.bytes().await.unwrap(), warning.unwrap_or_default())
    };
    for blob in image.all_blobs() {
        assert_eq!(get(format!("blobs/{}", blob.digest)).await.0, blob.content.bytes());
    }
    let (bytes, warning) = get(format!("manifests/{}", image.digest)).await;
    assert_eq!((bytes, warning.as_str()), (image.manifest.clone(), ""), "a digest is never stale");
    let (bytes, warning) = get("manifests/1".to_owned()).await;
    assert_eq!(bytes, image.manifest);
    warning
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_local_is_served_with_everything_else_down_and_after_a_restart() {
    let (upstream, mut nats) = (FakeUpstream::start().await, NatsServer::start().await);
    let (store, secrets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let secret = secrets.path().join("team");
    fs::write(&secret, "hunter2hunter2").unwrap();
    upstream.require_bearer(Bearer::new().user("hunter2hunter2", "hunter2hunter2"));
    let image = ImageBuilder::new(1).layers(&[300_000, 1000]).build();
    upstream.insert(&image, "app", "1");
    let start = |name, config: &str| {
        role(name, config).store(store.path().to_str().unwrap()).nats(&nats.url()).start()
    };
    let all = config(&upstream, &secret);
    let (control, importer) = (start("control", &all).await, start("importer", &all).await);
    // The frontend knows its rules from the bus alone.
    let mut frontend = start("frontend", "").await;
    control.command(["hydrate", "lab/app:1"]).await.success();
    hydrated(&control, "lab/app:1").await;
    until("the rules to reach the frontend", SOON, async || {
        let url = format!("{}/v2/lab/app/manifests/1", frontend.url());
        (reqwest::get(url).await.ok()?.status() == 200).then_some(())
    })
    .await;

    upstream.forget_requests();
    for blob in image.all_blobs() {
        let url = format!("{}/v2/lab/app/blobs/{}", frontend.url(), blob.digest);
        assert_eq!(reqwest::get(url).await.unwrap().bytes().await.unwrap(), blob.content.bytes());
    }
    assert_eq!(upstream.requests().len(), 0, "what is local by digest asks nobody");
    assert_eq!(pull(&frontend, &image).await, "", "the upstream confirms the tag");

    drop((control, importer));
    nats.kill9();
    upstream.stop().await;
    fs::remove_file(&secret).unwrap();
    let stale = "110 - \"Response is Stale\"";
    assert_eq!(pull(&frontend, &image).await, stale);
    frontend.kill9();
    frontend.restart().await;
    assert_eq!(pull(&frontend, &image).await, stale);
}
