//! Input that no registry client sends, over raw sockets.

use crate::lab::Lab;
use hydrant_testkit::ImageBuilder;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Sends `request` as it is; the answer up to the connection's end.
async fn raw(lab: &Lab, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(lab.address).await.unwrap();
    // The server may answer and close before it has read everything.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> u16 {
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.unwrap_or_else(|| panic!("no status in {answer:?}"))
}

async fn get(lab: &Lab, target: &str) -> String {
    let request = format!("GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    raw(lab, request.as_bytes()).await
}

#[tokio::test]
async fn odd_targets_are_refused() {
    let lab = Lab::start().await;
    let hex = "a".repeat(64);
    for (target, expected, code) in [
        ("/v2/lab/../etc/manifests/1".to_owned(), 400, "NAME_INVALID"),
        ("/v2/lab/%2e%2e/etc/manifests/1".to_owned(), 400, "NAME_INVALID"),
        ("/v2/lab/%252e%252e/etc/manifests/1".to_owned(), 400, "NAME_INVALID"),
        ("/v2/lab/a%00b/manifests/1".to_owned(), 400, "NAME_INVALID"),
        ("/v2/lab/a%0d%0ab/manifests/1".to_owned(), 400, "NAME_INVALID"),
        ("/v2/lab/a%e2%80%aeb/manifests/1".to_owned(), 400, "NAME_INVALID"),
        ("/v2/lab/A/manifests/1".to_owned(), 400, "NAME_INVALID"),
        ("/v2/lab//a/manifests/1".to_owned(), 400, "NAME_INVALID"),
        (format!("/v2/lab/{}/manifests/1", "a".repeat(256)), 400, "NAME_INVALID"),
        (format!("/v2/lab/a/manifests/{}", "t".repeat(129)), 404, "MANIFEST_UNKNOWN"),
        ("/v2/lab/a/manifests/.x".to_owned(), 404, "MANIFEST_UNKNOWN"),
        (format!("/v2/lab/a/blobs/sha256:{}", hex.to_uppercase()), 400, "DIGEST_INVALID"),
        (format!("/v2/lab/a/blobs/sha256:{}", &hex[1..]), 400, "DIGEST_INVALID"),
        (format!("/v2/lab/a/blobs/sha256:../{}", &hex[3..]), 400, "DIGEST_INVALID"),
        (format!("/v2/lab/a/blobs/md5:{}", &hex[32..]), 400, "DIGEST_INVALID"),
        ("/v2/lab/a/tags/list?n=-1".to_owned(), 400, "PAGINATION_NUMBER_INVALID"),
        ("/v2/lab/a/tags/list?n=abc".to_owned(), 400, "PAGINATION_NUMBER_INVALID"),
        ("/v2/labs-evil/x/manifests/1".to_owned(), 404, "NAME_UNKNOWN"),
        ("/v3/".to_owned(), 404, "UNSUPPORTED"),
    ] {
        let answer = get(&lab, &target).await;
        assert_eq!(status(&answer), expected, "{target}");
        assert!(answer.contains(code), "{target}: {answer}");
    }
    assert!(lab.upstream.requests().is_empty());
    assert_eq!(status(&get(&lab, "/v2/").await), 200);
}

#[tokio::test]
async fn raw_control_characters_are_refused() {
    let lab = Lab::start().await;
    for target in
        ["/v2/lab/a\0b/manifests/1", "/v2/lab/a\rb/manifests/1", "/v2/lab/\u{202e}/manifests/x"]
    {
        assert_eq!(status(&get(&lab, target).await), 400, "{target:?}");
    }
}

#[tokio::test]
async fn swollen_requests_are_refused() {
    let lab = Lab::start().await;
    let long = |length: usize| "a".repeat(length);
    for request in [
        format!("GET /v2/lab/a/tags/list?last={} HTTP/1.1\r\nhost: x\r\n\r\n", long(1 << 20)),
        format!("GET /v2/ HTTP/1.1\r\nhost: x\r\naccept: {}\r\n\r\n", long(64 << 10)),
        format!("GET /v2/ HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\n\r\n", long(1 << 20)),
        format!("GET /v2/ HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(10_000)),
    ] {
        let answer = raw(&lab, request.as_bytes()).await;
        // A reset takes the answer with it when the rest of the request was still on its way.
        assert!(answer.is_empty() || (400..500).contains(&status(&answer)), "{answer}");
    }
    assert_eq!(status(&get(&lab, "/v2/").await), 200);
}

#[tokio::test]
async fn lengths_told_twice_close_the_connection() {
    let lab = Lab::start().await;
    for headers in [
        "content-length: 5\r\ncontent-length: 6\r\n",
        "content-length: 5\r\ncontent-length: 5\r\n",
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
    ] {
        let request = format!(
            "GET /v2/ HTTP/1.1\r\nhost: x\r\n{headers}\r\n0\r\n\r\nGET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n"
        );
        let answer = raw(&lab, request.as_bytes()).await;
        assert_eq!(status(&answer), 400, "{headers}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    }
}

#[tokio::test]
async fn a_request_names_one_host() {
    let lab = Lab::start().await;
    for hosts in ["", "host: x\r\nhost: y\r\n", "host: x\r\nhost: x\r\n"] {
        let request =
            format!("GET /v2/ HTTP/1.1\r\n{hosts}\r\nGET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n");
        let answer = raw(&lab, request.as_bytes()).await;
        assert_eq!(status(&answer), 400, "{hosts}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    }
    assert_eq!(status(&raw(&lab, b"GET /v2/ HTTP/1.0\r\n\r\n").await), 200);
}

#[tokio::test]
async fn writes_are_refused() {
    let lab = Lab::start().await;
    for (method, path) in [
        ("PUT", "lab/app/manifests/1"),
        ("POST", "lab/app/blobs/uploads/"),
        ("PATCH", "lab/app/blobs/uploads/x"),
        ("DELETE", "lab/app/manifests/1"),
        ("POST", "lab/app/blobs/uploads/?mount=sha256:x&from=lab/other"),
    ] {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let url = format!("http://{}/v2/{path}", lab.address);
        let answer = lab.client.request(method, url).body("body").send().await.unwrap();
        assert_eq!(answer.status(), 405, "{path}");
        assert_eq!(answer.headers()["allow"], "GET, HEAD");
        let body: serde_json::Value = answer.json().await.unwrap();
        assert_eq!(body["errors"][0]["code"], "UNSUPPORTED");
    }
}

#[tokio::test]
async fn one_connection_serves_many_requests_and_http_2_too() {
    let lab = Lab::start().await;
    lab.upstream.insert(&ImageBuilder::new(1).build(), "app", "1");
    let request = "GET /v2/lab/app/manifests/1 HTTP/1.1\r\nhost: x\r\n\r\n".repeat(3)
        + "GET /v2/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    assert_eq!(raw(&lab, request.as_bytes()).await.matches("HTTP/1.1 200 OK").count(), 4);
    let h2 = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let url = format!("http://{}/v2/lab/app/manifests/1", lab.address);
    let answer = h2.get(url).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (200, reqwest::Version::HTTP_2));
}
