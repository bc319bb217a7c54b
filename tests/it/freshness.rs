//! How long tags are fresh, what happens after that, and how people steer them.

use crate::lab::{SOON, hydrated, role, status};
use hydrant_testkit::{
    FakeUpstream, Fault, Hydrant, Image, ImageBuilder, NatsServer, SeaweedFs, WebhookSink, until,
};
use reqwest::{Client, Response};
use serde_json::Value;
use std::time::Duration;

fn image(seed: u64) -> Image {
    ImageBuilder::new(seed).layers(&[1000]).build()
}

/// A rule for `lab/*` with these lines, and a webhook that hears of moves.
fn config(upstream: &FakeUpstream, sink: &WebhookSink, lines: &str) -> String {
    format!(
        "[[upstream]]\nname = 'lab'\nendpoint = '{}'\nallow_private = true\n\
         [[webhook]]\nname = 'ci'\nurl = '{}'\nallow_private = true\nevents = ['tag.moved']\n\
         secret = {{ env = 'HOOK_SECRET' }}\n\
         [[rule]]\nname = 'lab'\ndownstream = 'lab/*'\nupstream = 'lab'\n{lines}\n",
        upstream.url(),
        sink.url()
    )
}

async fn get(hydrant: &Hydrant, path: &str) -> Response {
    Client::new().get(format!("{}/v2/{path}", hydrant.url())).send().await.expect("it answers")
}

fn header<'r>(answer: &'r Response, name: &str) -> &'r str {
    answer.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

/// What a tag names now, as a client gets it.
async fn named(hydrant: &Hydrant, path: &str) -> (u16, String, String) {
    let answer = get(hydrant, path).await;
    let text = |name| header(&answer, name).to_owned();
    (answer.status().as_u16(), text("docker-content-digest"), text("warning"))
}

/// Pulls the tag until it names `digest`.
async fn comes_to(hydrant: &Hydrant, path: &str, digest: &str) {
    until(&format!("{path} to be {digest}"), SOON, async || {
        (named(hydrant, path).await.1 == digest).then_some(())
    })
    .await;
}

async fn moves(sink: &WebhookSink, count: usize) -> Vec<(String, String)> {
    sink.wait_until("tag.moved", SOON, |all| {
        let told: Vec<_> = all.iter().filter(|request| request.kind() == "tag.moved").collect();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let pairs = told.iter().map(|request| {
            let data = &request.json()["data"];
            (text(&data["previous_digest"]), text(&data["digest"]))
        });
        (told.len() >= count).then(|| pairs.collect())
    })
    .await
}

async fn up(
    upstream: &FakeUpstream,
    sink: &WebhookSink,
    lines: &str,
) -> (Hydrant, tempfile::TempDir) {
    let store = tempfile::tempdir().unwrap();
    let hydrant = role("up", &config(upstream, sink, lines))
        .store(store.path().to_str().unwrap())
        .start()
        .await;
    (hydrant, store)
}

async fn local(hydrant: &Hydrant, image: &str) {
    hydrant.command(["hydrate", image, "--wait"]).await.success();
    hydrated(hydrant, image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_upstream_does_not_hold_up_a_pull_and_its_answer_is_followed_up() {
    let (upstream, sink) = (FakeUpstream::start().await, WebhookSink::start().await);
    let (old, new) = (image(1), image(2));
    upstream.insert(&old, "app", "1");
    let (hydrant, _store) = up(&upstream, &sink, "fresh_for = '0s'\ncheck_within = '1s'").await;
    local(&hydrant, "lab/app:1").await;
    upstream.insert(&new, "app", "1");
    upstream.forget_requests();
    let slow = upstream.inject("*/manifests/*", Fault::delay(Duration::from_secs(4)));
    let (status, digest, warning) = named(&hydrant, "lab/app/manifests/1").await;
    assert_eq!((status, digest), (200, old.digest.to_string()));
    assert_eq!(warning, "110 - \"Response is Stale\"");
    assert_eq!(upstream.heads("*/manifests/1"), 1, "the check is still under way");
    // Nobody pulls any more, and yet the new one is brought here and announced.
    slow.remove();
    let expected = (old.digest.to_string(), new.digest.to_string());
    assert_eq!(moves(&sink, 1).await, [expected]);
    let found = hydrant.api("/api/v1/tags/history?image=lab/app:1").await.1;
    let seen: Vec<_> =
        found["items"].as_array().unwrap().iter().map(|line| &line["digest"]).collect();
    assert_eq!(seen, [&new.digest.to_string(), &old.digest.to_string()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_upstream_a_tag_is_stale_until_its_bound_and_then_503() {
    let (upstream, sink) = (FakeUpstream::start().await, WebhookSink::start().await);
    upstream.insert(&image(1), "app", "1");
    let lines = "fresh_for = '1s'\nstale_for = '4s'\n\
                 [[rule.tags]]\npattern = 'gone-*'\nfresh_for = '0s'\nwhen_gone = 'refuse'";
    let (hydrant, _store) = up(&upstream, &sink, lines).await;
    upstream.insert(&image(2), "app", "gone-1");
    local(&hydrant, "lab/app:gone-1").await;
    upstream.remove_tag("app", "gone-1");
    assert_eq!(named(&hydrant, "lab/app/manifests/gone-1").await.0, 404);
    local(&hydrant, "lab/app:1").await;
    upstream.stop().await;
    let digest = image(1).digest;
    let stale = until("a stale answer", SOON, async || {
        let answer = get(&hydrant, "lab/app/manifests/1").await;
        (header(&answer, "warning") == "110 - \"Response is Stale\"").then_some(answer)
    })
    .await;
    assert_eq!(
        (stale.status().as_u16(), header(&stale, "docker-content-digest")),
        (200, &*digest.to_string())
    );
    assert!(header(&stale, "age").parse::<u64>().unwrap() >= 1);
    let refused = until("the bound", SOON, async || {
        let answer = get(&hydrant, "lab/app/manifests/1").await;
        (answer.status() != 200).then_some(answer)
    })
    .await;
    assert_eq!(refused.status(), 503);
    assert!(!header(&refused, "retry-after").is_empty());
    assert_eq!(named(&hydrant, &format!("lab/app/manifests/{digest}")).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_frontends_whose_window_ends_at_once_ask_once() {
    let (upstream, sink) = (FakeUpstream::start().await, WebhookSink::start().await);
    let (s3, nats) = (SeaweedFs::start().await, NatsServer::start().await);
    upstream.insert(&image(1), "app", "1");
    let config = config(&upstream, &sink, "fresh_for = '3s'");
    let start = |name| role(name, &config).s3(&s3, "cache").nats(&nats.url()).start();
    let (control, _importer) = (start("control").await, start("importer").await);
    let frontends = [start("frontend").await, start("frontend").await, start("frontend").await];
    local(&control, "lab/app:1").await;
    upstream.forget_requests();
    upstream.inject("*/manifests/*", Fault::delay(Duration::from_millis(300)));
    let confirmed = async || status(&control, "lab/app:1").await["tag"]["fresh"] == true;
    assert!(confirmed().await);
    for frontend in &frontends {
        assert_eq!(named(frontend, "lab/app/manifests/1").await.0, 200);
    }
    assert_eq!(upstream.heads("*/manifests/1"), 0, "no question inside the window");
    until("the end of the window", SOON, async || (!confirmed().await).then_some(())).await;
    let pulls = (0..30).map(|n| named(&frontends[n % 3], "lab/app/manifests/1"));
    for (status, digest, warning) in futures::future::join_all(pulls).await {
        assert_eq!((status, digest), (200, image(1).digest.to_string()));
        assert_eq!(warning, "");
    }
    assert_eq!(upstream.heads("*/manifests/1"), 1);
    assert_eq!(upstream.gets("*/manifests/1"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_immutable_tag_is_never_asked_about_until_somebody_refreshes_it() {
    let (upstream, sink) = (FakeUpstream::start().await, WebhookSink::start().await);
    upstream.insert(&image(1), "app", "v1.2.3");
    let lines = "fresh_for = '0s'\n[[rule.tags]]\npattern = 'semver'\nimmutable = true";
    let (hydrant, _store) = up(&upstream, &sink, lines).await;
    local(&hydrant, "lab/app:v1.2.3").await;
    upstream.forget_requests();
    upstream.insert(&image(2), "app", "v1.2.3");
    for _ in 0..3 {
        let (_, digest, warning) = named(&hydrant, "lab/app/manifests/v1.2.3").await;
        assert_eq!((digest, warning), (image(1).digest.to_string(), String::new()));
    }
    local(&hydrant, "lab/app:v1.2.3").await;
    assert_eq!(upstream.requests().len(), 0, "zero requests");
    let shown = hydrant.command(["status", "lab/app:v1.2.3"]).await.success();
    assert!(shown.text().contains("cached, immutable, fresh"), "{}", shown.text());
    hydrant.command(["tag", "refresh", "lab/app:v1.2.3", "--wait"]).await.success();
    comes_to(&hydrant, "lab/app/manifests/v1.2.3", &image(2).digest.to_string()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_freezes_rolls_back_and_lets_go() {
    let (upstream, sink) = (FakeUpstream::start().await, WebhookSink::start().await);
    let digests = [1, 2, 3].map(|seed| image(seed).digest.to_string());
    let path = "lab/app/manifests/1";
    upstream.insert(&image(1), "app", "1");
    let (hydrant, _store) = up(&upstream, &sink, "fresh_for = '0s'").await;
    let tag = async |args: &[&str]| {
        let args = ["tag"].iter().chain(args).copied();
        hydrant.command(args.collect::<Vec<_>>()).await
    };
    let absent = tag(&["freeze", "lab/none:1"]).await;
    assert!(absent.stderr.contains("lab/none:1 is not local"), "{}", absent.stderr);
    local(&hydrant, "lab/app:1").await;
    let unmoved = tag(&["rollback", "lab/app:1"]).await;
    assert!(unmoved.stderr.contains("has not moved yet"), "{}", unmoved.stderr);
    upstream.insert(&image(2), "app", "1");
    tag(&["refresh", "lab/app:1", "--wait"]).await.success();
    comes_to(&hydrant, path, &digests[1]).await;

    let back = tag(&["rollback", "lab/app:1", "--reason", "2 is broken"]).await.success();
    assert!(
        back.text().contains(&digests[0]) && back.text().contains("unfreeze"),
        "{}",
        back.text()
    );
    comes_to(&hydrant, path, &digests[0]).await;
    let refused = tag(&["refresh", "lab/app:1"]).await;
    assert!(refused.stderr.contains("the tag is frozen; let it go first"), "{}", refused.stderr);
    upstream.insert(&image(3), "app", "1");
    local(&hydrant, "lab/app:1").await;
    upstream.forget_requests();
    assert_eq!(named(&hydrant, path).await.1, digests[0], "frozen");
    assert_eq!(upstream.requests().len(), 0);

    tag(&["unfreeze", "lab/app:1", "--reason", "3 mends it"]).await.success();
    comes_to(&hydrant, path, &digests[2]).await;
    let [one, two, three] = digests.clone();
    let expected = [(one.clone(), two.clone()), (two, one.clone()), (one, three)];
    assert_eq!(moves(&sink, 3).await, expected);
    let history = tag(&["history", "lab/app:1", "-o", "json"]).await.success();
    let history: Value = serde_json::from_str(&history.text()).unwrap();
    let items = history["items"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let acts: Vec<_> = items
        .map(|line| ["act", "by", "actor", "reason"].map(|field| text(&line[field])).join(" "))
        .collect();
    let expected = [
        "seen importer - -",
        "unfrozen api this-machine 3 mends it",
        "rolled-back api this-machine 2 is broken",
        "seen importer - -",
        "refreshed api this-machine -",
        "seen importer - -",
    ];
    assert_eq!(acts, expected);
    let shown = tag(&["history", "lab/app:1"]).await.success().text();
    assert!(shown.contains("ACTOR") && shown.contains("this-machine"), "{shown}");
    assert!(shown.contains("3 mends it"), "{shown}");
    let far = format!("sha256:{}", "0".repeat(64));
    let unknown = tag(&["rollback", "lab/app:1", "--to", &far]).await;
    assert!(unknown.stderr.contains("has not named sha256:000"), "{}", unknown.stderr);
}
