//! The fake upstream seen by a plain HTTP client.

use super::*;
use crate::{ImageBuilder, client};
use reqwest::{Response, StatusCode};
use std::time::{Duration, Instant};

async fn lab() -> (FakeUpstream, Image, String) {
    let upstream = FakeUpstream::start().await;
    let image = ImageBuilder::new(1).layer(200_000).build();
    upstream.insert(&image, "lab/app", "1");
    let blob = format!("{}/v2/lab/app/blobs/{}", upstream.url(), image.blobs[1].digest);
    (upstream, image, blob)
}

async fn get(url: &str) -> Response {
    client::plain().get(url).send().await.unwrap()
}

async fn get_from(url: &str, offset: u64) -> Response {
    client::plain().get(url).header("range", format!("bytes={offset}-")).send().await.unwrap()
}

#[tokio::test]
async fn images_are_served_and_counted() {
    let (upstream, image, blob) = lab().await;
    let manifest = get(&format!("{}/v2/lab/app/manifests/1", upstream.url())).await;
    assert_eq!(manifest.headers()["docker-content-digest"], image.digest.to_string());
    assert_eq!(manifest.bytes().await.unwrap(), image.manifest);
    let whole = image.blobs[1].content.bytes();
    assert_eq!(get(&blob).await.bytes().await.unwrap(), whole);
    let part = get_from(&blob, 150_000).await;
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.headers()["content-range"], "bytes 150000-199999/200000");
    assert_eq!(part.bytes().await.unwrap(), whole[150_000..]);
    let head = client::plain().head(&blob).send().await.unwrap();
    assert_eq!(head.headers()["content-length"], "200000");
    assert_eq!((upstream.gets("*/blobs/*"), upstream.heads("*/blobs/*")), (2, 1));
    assert_eq!(upstream.bytes("*/blobs/*"), 250_000);
    assert_eq!(get(&blob.replace("app", "nope")).await.status(), 404);
    assert_eq!(get_from(&blob, 200_000).await.status(), 416);
}

#[tokio::test]
async fn a_body_that_is_held_goes_on_when_the_gate_is_open() {
    let (upstream, image, blob) = lab().await;
    let gate = Gate::default();
    upstream.inject("*/blobs/*", Fault::hold(1_000, &gate));
    let mut held = get(&blob).await;
    let mut bytes = held.chunk().await.unwrap().unwrap().to_vec();
    assert_eq!(bytes.len(), 1_000);
    gate.open();
    bytes.extend(held.bytes().await.unwrap());
    assert_eq!(bytes, image.blobs[1].content.bytes());
}

#[tokio::test]
async fn a_manifest_of_an_unaccepted_type_is_unknown() {
    let (upstream, _, _) = lab().await;
    let url = format!("{}/v2/lab/app/manifests/1", upstream.url());
    let get = client::plain().get(url).header("accept", "application/vnd.oci.image.index.v1+json");
    assert_eq!(get.send().await.unwrap().status(), 404);
}

#[tokio::test]
async fn tags_come_in_pages() {
    let (upstream, image, _) = lab().await;
    upstream.insert(&image, "lab/app", "2");
    let list = get(&format!("{}/v2/lab/app/tags/list?n=1", upstream.url())).await;
    assert!(list.headers()["link"].to_str().unwrap().contains("last=1&n=1"));
    assert_eq!(list.text().await.unwrap(), r#"{"name":"lab/app","tags":["1"]}"#);
    upstream.remove_tag("lab/app", "1");
    let list = get(&format!("{}/v2/lab/app/tags/list?n=1", upstream.url())).await;
    assert!(list.headers().get("link").is_none());
}

#[tokio::test]
async fn bodies_go_wrong_as_ordered() {
    let (upstream, image, blob) = lab().await;
    let whole = image.blobs[1].content.bytes();

    let fault = upstream.inject("*/blobs/*", Fault::wrong_bytes().times(1));
    let wrong = get(&blob).await.bytes().await.unwrap();
    assert_eq!(wrong.iter().zip(&whole).filter(|(a, b)| a != b).count(), 1);
    assert_eq!(get(&blob).await.bytes().await.unwrap(), whole);
    assert_eq!(fault.fired(), 1);

    upstream.inject("*/blobs/*", Fault::truncate(70_000).times(1));
    let mut cut = get(&blob).await;
    assert_eq!(cut.content_length(), Some(200_000));
    let mut got = 0;
    let ended = loop {
        match cut.chunk().await {
            Ok(Some(chunk)) => got += chunk.len(),
            other => break other,
        }
    };
    assert!(ended.is_err());
    assert_eq!(got, 70_000);

    upstream.inject("*/blobs/*", Fault::short(5).times(1));
    assert_eq!(get(&blob).await.bytes().await.unwrap(), whole[..5]);
    upstream.inject("*/blobs/*", Fault::long(5).times(1));
    assert_eq!(get(&blob).await.bytes().await.unwrap().len(), 200_005);
    upstream.inject("*/blobs/*", Fault::html().times(1));
    assert_eq!(get(&blob).await.text().await.unwrap(), "<html>Sign in</html>");
    upstream.inject("*/blobs/*", Fault::none().header("transfer-encoding", "chunked").times(1));
    let chunked = get(&blob).await;
    assert_eq!(chunked.content_length(), None);
    assert_eq!(chunked.bytes().await.unwrap(), whole);

    upstream.inject("*/blobs/*", Fault::endless().times(1));
    let mut endless = get(&blob).await;
    let mut got = 0;
    while got < 1_000_000 {
        got += endless.chunk().await.unwrap().unwrap().len();
    }
}

#[tokio::test]
async fn ranges_go_wrong_as_ordered() {
    let (upstream, image, blob) = lab().await;
    let whole = image.blobs[1].content.bytes();
    upstream.inject("*/blobs/*", Fault::shifted_range(-10).times(1));
    let shifted = get_from(&blob, 100).await;
    assert_eq!(shifted.headers()["content-range"], "bytes 90-199999/200000");
    assert_eq!(shifted.bytes().await.unwrap(), whole[90..]);
    upstream.inject("*/blobs/*", Fault::no_range());
    let all = get_from(&blob, 100).await;
    assert_eq!(all.status(), 200);
    assert_eq!(all.bytes().await.unwrap(), whole);
}

#[tokio::test]
async fn statuses_headers_and_counts_are_as_ordered() {
    let (upstream, _, blob) = lab().await;
    let limited = Fault::status(429).header("retry-after", "3").method("GET").after(1).times(2);
    let fault = upstream.inject("/v2/lab/*", limited);
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(get(&blob).await.status().as_u16());
    }
    assert_eq!(statuses, [200, 429, 429, 200]);
    assert_eq!(fault.fired(), 2);
    upstream.inject("*", Fault::redirect("http://elsewhere/"));
    assert_eq!(get(&blob).await.headers()["location"], "http://elsewhere/");
    upstream.heal();
    assert_eq!(get(&blob).await.status(), 200);
    let seen = upstream.requests_of("GET", "*/blobs/*");
    assert_eq!(seen[1].status, Some(429));
    upstream.forget_requests();
    assert!(upstream.requests().is_empty());
}

#[tokio::test]
async fn time_passes_as_ordered() {
    let (upstream, _, blob) = lab().await;
    upstream.inject("*", Fault::slow(1_000_000));
    let start = Instant::now();
    get(&blob).await.bytes().await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(190), "{:?}", start.elapsed());
    upstream.heal();
    let wait = Duration::from_millis(100);
    upstream.inject("*", Fault::delay(wait).and(Fault::late_body(wait)));
    let start = Instant::now();
    let answer = get(&blob).await;
    assert!(start.elapsed() >= wait);
    answer.bytes().await.unwrap();
    assert!(start.elapsed() >= 2 * wait);
    upstream.heal();
    for silent in [Fault::black_hole(), Fault::stall(1_000)] {
        let injected = upstream.inject("*", silent);
        let asked = async { get(&blob).await.bytes().await };
        assert!(tokio::time::timeout(wait, asked).await.is_err());
        injected.remove();
    }
    upstream.inject("*", Fault::cut());
    assert!(client::plain().get(&blob).send().await.is_err());
}

#[tokio::test]
async fn stopped_means_refused_and_the_port_comes_back() {
    let (upstream, _, blob) = lab().await;
    upstream.inject("*", Fault::slow(10_000));
    let mut body = get(&blob).await;
    body.chunk().await.unwrap();
    upstream.stop().await;
    while let Ok(chunk) = body.chunk().await {
        assert!(chunk.is_some(), "the connection must break");
    }
    assert!(client::plain().get(&blob).send().await.unwrap_err().is_connect());
    upstream.heal();
    upstream.restart().await;
    assert_eq!(get(&blob).await.status(), 200);
}

#[tokio::test]
async fn tokens_are_scoped_counted_and_revocable() {
    let (upstream, _, blob) = lab().await;
    upstream.require_basic("lab", "secret");
    assert_eq!(get(&blob).await.headers()["www-authenticate"], "Basic realm=\"testkit\"");
    let basic = client::plain().get(&blob).basic_auth("lab", Some("secret"));
    assert_eq!(basic.send().await.unwrap().status(), 200);

    upstream.require_bearer(Bearer::new().user("lab", "secret"));
    let challenge = get(&blob).await;
    let realm = format!("{}/token", upstream.url());
    let expected =
        format!("Bearer realm=\"{realm}\",service=\"testkit\",scope=\"repository:lab/app:pull\"");
    assert_eq!(challenge.headers()["www-authenticate"], expected);
    let ask = format!("{realm}?service=testkit&scope=repository:lab/app:pull");
    assert_eq!(get(&ask).await.status(), 401);
    let token = client::plain().get(&ask).basic_auth("lab", Some("secret")).send().await.unwrap();
    let token: serde_json::Value = token.json().await.unwrap();
    let with_token =
        |url: &str| client::plain().get(url).bearer_auth(token["token"].as_str().unwrap());
    assert_eq!(with_token(&blob).send().await.unwrap().status(), 200);
    assert_eq!(with_token(&blob.replace("app", "other")).send().await.unwrap().status(), 401);
    upstream.revoke_tokens();
    assert_eq!(with_token(&blob).send().await.unwrap().status(), 401);
    assert_eq!(upstream.gets("/token"), 2);
}

#[tokio::test]
async fn blobs_can_live_elsewhere() {
    let (upstream, image, blob) = lab().await;
    let cdn = FakeUpstream::start().await;
    cdn.insert(&image, "any", "1");
    cdn.require_basic("nobody", "knows");
    upstream.redirect_blobs(Some(&cdn.url()));
    let redirect = get(&blob).await;
    assert_eq!(redirect.status(), 307);
    let there = get(redirect.headers()["location"].to_str().unwrap()).await;
    assert_eq!(there.bytes().await.unwrap(), image.blobs[1].content.bytes());
}

#[tokio::test]
async fn a_large_blob_is_never_held() {
    let upstream = FakeUpstream::start().await;
    let content = Content::Generated { seed: 9, length: 2 << 30 };
    let digest = Digest::of(b"not its digest; hashing 2 GiB is another test's");
    upstream.put_blob("lab/app", &digest, content);
    let url = format!("{}/v2/lab/app/blobs/{digest}", upstream.url());
    assert_eq!(get(&url).await.content_length(), Some(2 << 30));
    assert_eq!(get_from(&url, (2 << 30) - 3).await.bytes().await.unwrap().len(), 3);
}

#[tokio::test]
async fn tls_is_served_with_the_given_certificate() {
    let certificate = TestCertificate::generate();
    let upstream = FakeUpstream::start_tls(&certificate).await;
    let url = upstream.url() + "/v2/";
    assert!(client::plain().get(&url).send().await.is_err());
    let trusted = reqwest::Certificate::from_pem(certificate.certificate_pem.as_bytes()).unwrap();
    let trusting = reqwest::Client::builder().tls_certs_only([trusted]).build().unwrap();
    assert_eq!(trusting.get(&url).send().await.unwrap().status(), 200);
}
