//! Secrets go where they belong, and are nowhere else: not in logs at their loudest, metrics, events,
//! messages, records, documents or answers.

use crate::lab::{SOON, hydrated, role};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use hydrant_testkit::{Bearer, FakeUpstream, Fault, ImageBuilder, NatsServer, WebhookSink, until};
use std::{fs, path::Path};

const USER: &str = "team-lab";
const PASSWORD: &str = "correct-horse-battery";
const HOOK: &str = "c2VjcmV0LW9mLXRoZS1ob29rLTMyLWJ5dGVzLWxvbmc=";
const BUS: &str = "bus-login-of-hydrant";
const ADMIN: &str = "admin-token-of-the-lab-0123456789";

/// Every file below a directory.
fn files(root: &Path) -> Vec<(String, Vec<u8>)> {
    let (mut found, mut waiting) = (Vec::new(), vec![root.to_owned()]);
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().flatten().map(|entry| entry.path()));
        } else if let Ok(bytes) = fs::read(&path) {
            found.push((path.display().to_string(), bytes));
        }
    }
    found
}

fn config(upstream: &FakeUpstream, sink: &WebhookSink) -> String {
    format!(
        "[[credential]]\nname='team'\nusername={{env='LAB_USER'}}\npassword={{env='LAB_PASSWORD'}}\n\
         [[upstream]]\nname='lab'\nendpoint='{}'\nallow_private=true\ncredential='team'\n\
         [[rule]]\nname='lab'\ndownstream='lab/*'\nupstream='lab'\n\
         [[webhook]]\nname='ci'\nurl='{}'\nallow_private=true\nsecret={{env='HOOK'}}\n",
        upstream.url(),
        sink.url()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_in_nothing_that_is_written_told_or_answered() {
    let (upstream, sink) = (FakeUpstream::start().await, WebhookSink::start().await);
    let login = format!("authorization {{ user: hydrant, password: \"{BUS}\" }}");
    let nats = NatsServer::options().config(&login).start().await;
    let store = tempfile::tempdir().unwrap();
    let image = ImageBuilder::new(1).layers(&[100_000]).build();
    upstream.insert(&image, "app", "1");
    upstream.require_bearer(Bearer::new().user(USER, PASSWORD));
    let url = nats.url().replace("nats://", &format!("nats://hydrant:{BUS}@"));
    let hydrant = role("up", &config(&upstream, &sink))
        .store(store.path().to_str().unwrap())
        .nats(&url)
        .env("LAB_USER", USER)
        .env("LAB_PASSWORD", PASSWORD)
        .env("HOOK", &format!("whsec_{HOOK}"))
        .env("HYDRANT_LOG", "trace")
        .start()
        .await;
    let get = async |path: &str| {
        let answer = reqwest::get(format!("{}{path}", hydrant.url())).await.unwrap();
        let headers = format!("{:?}", answer.headers());
        headers + &answer.text().await.unwrap_or_default()
    };
    let mut told = vec![("a pull".to_owned(), get("/v2/lab/app/manifests/1").await.into_bytes())];
    hydrant.command(["hydrate", "lab/app:1"]).await.success();
    hydrated(&hydrant, "lab/app:1").await;
    let issued = upstream.requests_of("GET", "*/app/*");
    let token = issued.iter().find_map(|request| request.header("authorization"));
    let token = token.and_then(|text| text.strip_prefix("Bearer ")).expect("a token was sent");

    // An upstream that says what it was sent, and one that refuses it.
    let echo = format!("{USER}:{PASSWORD} {token}");
    upstream.inject("*/echo/*", Fault::status(403).body(echo.clone()));
    upstream.inject("*/limit/*", Fault::status(429).body(echo));
    for path in ["echo", "limit"] {
        told.push((
            path.to_owned(),
            get(&format!("/v2/lab/{path}/manifests/1")).await.into_bytes(),
        ));
        hydrant.command(["hydrate", &format!("lab/{path}:1")]).await.success();
    }
    upstream.require_bearer(Bearer::new().user(USER, "changed"));
    told.push(("refused".to_owned(), get("/v2/lab/other/manifests/1").await.into_bytes()));
    until("an event at the webhook", SOON, async || sink.received().pop().map(drop)).await;

    for path in [
        "credentials",
        "upstreams",
        "webhooks",
        "rules",
        "dead-letters",
        "hydrations",
        "events?since=1h",
        "upstreams/lab/status",
        "webhooks/ci/deliveries",
        "status?image=lab/app:1",
        "openapi.json",
    ] {
        let answer = reqwest::get(format!("{}/api/v1/{path}", hydrant.admin_url())).await.unwrap();
        told.push((path.to_owned(), answer.bytes().await.unwrap().to_vec()));
    }
    told.push(("metrics".to_owned(), hydrant.metrics().await.into_bytes()));
    told.push(("the log".to_owned(), hydrant.log().into_bytes()));
    for request in sink.received() {
        told.push(("a webhook".to_owned(), format!("{request:?}").into_bytes()));
    }
    for place in [store.path(), hydrant.data(), &nats.data()] {
        told.extend(files(place));
    }
    assert!(told.len() > 30, "there is something to look at");
    let basic = BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}"));
    for secret in [PASSWORD, &basic, token, HOOK, BUS] {
        for (place, bytes) in &told {
            let found = bytes.windows(secret.len()).position(|window| window == secret.as_bytes());
            let around = found.map(|at| {
                let (from, to) = (at.saturating_sub(200), (at + 100).min(bytes.len()));
                String::from_utf8_lossy(&bytes[from..to]).into_owned()
            });
            assert_eq!(around, None, "`{secret}` is in {place}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_token_is_asked_for_and_not_told() {
    let store = tempfile::tempdir().unwrap();
    let hydrant = role("up", "")
        .store(store.path().to_str().unwrap())
        .env("HYDRANT_ADMIN_TOKEN", ADMIN)
        .env("HYDRANT_LOG", "trace")
        .start()
        .await;
    let url = format!("{}/api/v1/rules", hydrant.admin_url());
    assert_eq!(reqwest::get(&url).await.unwrap().status(), 401);
    let client = reqwest::Client::new();
    let asked = client.get(&url).bearer_auth(ADMIN).send().await.unwrap();
    assert_eq!(asked.status(), 200);
    for told in [hydrant.log(), hydrant.metrics().await] {
        assert!(!told.contains(ADMIN), "the token was told");
    }
}
