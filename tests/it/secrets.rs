//! Secrets go where they belong, and are nowhere else: not in logs at their loudest, metrics, events,
//! messages, records, documents or answers.

use crate::lab::{SOON, hydrated, role};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use hydrant_testkit::{
    Bearer, FakeUpstream, Fault, Hydrant, ImageBuilder, NatsServer, WebhookSink, until,
};
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

/// What was told where: places and bytes.
#[derive(Default)]
struct Told(Vec<(String, Vec<u8>)>);

impl Told {
    fn add(&mut self, place: &str, bytes: impl Into<Vec<u8>>) {
        self.0.push((place.to_owned(), bytes.into()));
    }

    /// The answer of `base` to `path`, with its headers.
    async fn ask(&mut self, base: &str, path: &str) {
        let answer = reqwest::get(format!("{base}{path}")).await.unwrap();
        let headers = format!("{:?}", answer.headers());
        self.add(path, headers + &answer.text().await.unwrap_or_default());
    }

    fn holds_nothing_of(&self, secret: &str) {
        for (place, bytes) in &self.0 {
            let found = bytes.windows(secret.len()).position(|window| window == secret.as_bytes());
            let around = found.map(|at| {
                let (from, to) = (at.saturating_sub(200), (at + 100).min(bytes.len()));
                String::from_utf8_lossy(&bytes[from..to]).into_owned()
            });
            assert_eq!(around, None, "`{secret}` is in {place}");
        }
    }
}

const ADMIN_PATHS: [&str; 11] = [
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
];

/// A hydrant with a login for its upstream, one for the bus and a webhook's key.
async fn with_secrets(
    upstream: &FakeUpstream,
    sink: &WebhookSink,
    nats: &NatsServer,
    store: &Path,
) -> Hydrant {
    upstream.require_bearer(Bearer::new().user(USER, PASSWORD));
    let url = nats.url().replace("nats://", &format!("nats://hydrant:{BUS}@"));
    role("up", &config(upstream, sink))
        .store(store.to_str().unwrap())
        .nats(&url)
        .env("LAB_USER", USER)
        .env("LAB_PASSWORD", PASSWORD)
        .env("HOOK", &format!("whsec_{HOOK}"))
        .env("HYDRANT_LOG", "trace")
        .start()
        .await
}

/// The token that hydrant was given and has used.
fn issued(upstream: &FakeUpstream) -> String {
    let asked = upstream.requests_of("GET", "*/app/*");
    let token = asked.iter().find_map(|request| request.header("authorization"));
    token.and_then(|text| text.strip_prefix("Bearer ")).expect("a token was sent").to_owned()
}

/// An upstream that says what it was sent, and then one that refuses it.
async fn provoke(upstream: &FakeUpstream, hydrant: &Hydrant, token: &str, told: &mut Told) {
    let echo = format!("{USER}:{PASSWORD} {token}");
    upstream.inject("*/echo/*", Fault::status(403).body(echo.clone()));
    upstream.inject("*/limit/*", Fault::status(429).body(echo));
    for name in ["echo", "limit"] {
        told.ask(&hydrant.url(), &format!("/v2/lab/{name}/manifests/1")).await;
        hydrant.command(["hydrate", &format!("lab/{name}:1")]).await.success();
    }
    upstream.require_bearer(Bearer::new().user(USER, "changed"));
    told.ask(&hydrant.url(), "/v2/lab/other/manifests/1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_in_nothing_that_is_written_told_or_answered() {
    let (upstream, sink) = (FakeUpstream::start().await, WebhookSink::start().await);
    let login = format!("authorization {{ user: hydrant, password: \"{BUS}\" }}");
    let nats = NatsServer::options().config(&login).start().await;
    let store = tempfile::tempdir().unwrap();
    let image = ImageBuilder::new(1).layers(&[100_000]).build();
    upstream.insert(&image, "app", "1");
    let hydrant = with_secrets(&upstream, &sink, &nats, store.path()).await;
    let mut told = Told::default();
    told.ask(&hydrant.url(), "/v2/lab/app/manifests/1").await;
    hydrant.command(["hydrate", "lab/app:1"]).await.success();
    hydrated(&hydrant, "lab/app:1").await;
    let token = issued(&upstream);
    provoke(&upstream, &hydrant, &token, &mut told).await;
    until("an event at the webhook", SOON, async || sink.received().pop().map(drop)).await;

    for path in ADMIN_PATHS {
        told.ask(&hydrant.admin_url(), &format!("/api/v1/{path}")).await;
    }
    told.add("metrics", hydrant.metrics().await);
    told.add("the log", hydrant.log());
    for request in sink.received() {
        told.add("a webhook", format!("{request:?}"));
    }
    for place in [store.path(), hydrant.data(), &nats.data()] {
        told.0.extend(files(place));
    }
    assert!(told.0.len() > 30, "there is something to look at");
    let basic = BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}"));
    for secret in [PASSWORD, &basic, &token, HOOK, BUS] {
        told.holds_nothing_of(secret);
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
