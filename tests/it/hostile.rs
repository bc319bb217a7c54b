//! Clients that mean no good, or no harm but do it: they hang up, stand still, come in crowds, and send
//! what no registry client sends. Others are served, and what they took is given back.

use crate::lab::{SOON, config, hydrated, role};
use futures::future::join_all;
use hydrant_testkit::{FakeUpstream, Fault, Hydrant, Image, ImageBuilder, until};
use std::{fs, process::Command, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const MIB: u64 = 1024 * 1024;

/// A hydrant with one image that is local, and one that comes slowly and is not.
struct Lab {
    upstream: FakeUpstream,
    hydrant: Hydrant,
    warm: Image,
    cold: Image,
    _store: tempfile::TempDir,
}

impl Lab {
    async fn start() -> Self {
        let (upstream, store) = (FakeUpstream::start().await, tempfile::tempdir().unwrap());
        let hydrant = role("up", &config(&upstream.url()));
        let hydrant = hydrant.store(store.path().to_str().unwrap()).start().await;
        let warm = ImageBuilder::new(1).layers(&[16 * MIB]).build();
        let cold = ImageBuilder::new(2).layers(&[8 * MIB]).build();
        upstream.insert(&warm, "warm", "1");
        upstream.insert(&cold, "cold", "1");
        hydrant.command(["hydrate", "lab/warm:1"]).await.success();
        hydrated(&hydrant, "lab/warm:1").await;
        upstream.inject(&format!("*/blobs/{}", layer(&cold)), Fault::slow(4 * MIB));
        let lab = Self { upstream, hydrant, warm, cold, _store: store };
        lab.serves().await;
        lab
    }

    /// The local image is served whole.
    async fn serves(&self) {
        let url = format!("{}{}", self.hydrant.url(), path("warm", &self.warm));
        let answer = timeout(SOON, reqwest::get(url)).await.expect("an answer in time").unwrap();
        assert_eq!(answer.status(), 200);
        let body = timeout(SOON, answer.bytes()).await.expect("a body in time").unwrap();
        assert!(layer(&self.warm).parse::<hydrant_proto::Digest>().unwrap().matches(&body));
    }

    async fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.hydrant.host()).await.expect("it listens");
        // It may have had enough before it has read everything.
        let _ = stream.write_all(request.as_bytes()).await;
        stream
    }

    /// Clients that have asked for the local layer, or for the other one, and read a byte of it.
    async fn readers(&self, count: usize) -> Vec<TcpStream> {
        let paths = [path("warm", &self.warm), path("cold", &self.cold)];
        let ask = async |n: usize| {
            let request = format!("GET {} HTTP/1.1\r\nhost: x\r\n\r\n", paths[n % 2]);
            let mut stream = self.send(&request).await;
            let mut first = [0];
            let read = timeout(SOON, stream.read_exact(&mut first)).await;
            read.expect("the status line comes in time").expect("and is not cut off");
            stream
        };
        join_all((0..count).map(ask)).await
    }

    /// Nothing is under way any more, and no descriptor stayed open.
    async fn is_idle(&self, open: usize) {
        until("all to be given back", SOON, async || {
            let active = self.hydrant.metric("http_server_active_requests", &[]).await;
            let flying = self.hydrant.metric("hydrant_flights_active", &[]).await;
            (active + flying == 0.0 && descriptors(&self.hydrant) <= open + 16).then_some(())
        })
        .await;
    }
}

fn layer(image: &Image) -> String {
    image.all_blobs().into_iter().max_by_key(|blob| blob.size).unwrap().digest.to_string()
}

fn path(repository: &str, image: &Image) -> String {
    format!("/v2/lab/{repository}/blobs/{}", layer(image))
}

/// Open file descriptors of a process.
fn descriptors(hydrant: &Hydrant) -> usize {
    fs::read_dir(format!("/proc/{}/fd", hydrant.pid())).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_clients_that_hang_up_leave_nothing_open() {
    let lab = Lab::start().await;
    let open = descriptors(&lab.hydrant);
    drop(lab.readers(200).await);
    lab.is_idle(open).await;
    assert_eq!(lab.upstream.gets(&format!("*{}", layer(&lab.cold))), 1, "the flight went on");
    lab.serves().await;
}

mod large {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn five_hundred_readers_that_stand_still_hold_up_nobody_and_cost_little() {
        let lab = Lab::start().await;
        let open = descriptors(&lab.hydrant);
        let still = lab.readers(500).await;
        lab.serves().await;
        let other = ImageBuilder::new(3).layers(&[MIB]).build();
        lab.upstream.insert(&other, "other", "1");
        lab.hydrant.command(["hydrate", "lab/other:1"]).await.success();
        hydrated(&lab.hydrant, "lab/other:1").await;
        let peak = lab.hydrant.peak_memory();
        assert!(peak < 256 * MIB, "peak memory was {} MiB", peak / MIB);
        drop(still);
        lab.is_idle(open).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_file_descriptors_connections_wait_and_are_served_when_there_are_some_again() {
    let lab = Lab::start().await;
    let open = descriptors(&lab.hydrant);
    let (pid, few) = (lab.hydrant.pid().to_string(), format!("--nofile={}", open + 20));
    let limited = Command::new("prlimit").args(["--pid", &pid, &few]).status();
    assert!(limited.expect("util-linux is there").success());
    let url = format!("GET {} HTTP/1.1\r\nhost: x\r\n\r\n", path("warm", &lab.warm));
    // Fewer than the kernel lets wait.
    let crowd = join_all((0..100).map(|_| lab.send(&url))).await;
    lab.hydrant.logged("cannot accept a connection").await;
    drop(crowd);
    lab.serves().await;
    lab.is_idle(open).await;
    let image = ImageBuilder::new(4).layers(&[1000]).build();
    lab.upstream.insert(&image, "after", "1");
    lab.hydrant.command(["hydrate", "lab/after:1"]).await.success();
    hydrated(&lab.hydrant, "lab/after:1").await;
}

/// Requests of every odd kind; none is answered by content.
fn oddities(image: &Image) -> Vec<String> {
    let config = image.all_blobs().into_iter().min_by_key(|blob| blob.size).unwrap();
    let (path, hex) = (format!("/v2/lab/warm/blobs/{}", config.digest), "a".repeat(64));
    let long = |length: usize| "a".repeat(length);
    let get = |target: &str, headers: &str| {
        format!("GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n")
    };
    vec![
        get(&format!("/v2/lab/a/tags/list?last={}", long(1 << 20)), ""),
        get("/v2/", &format!("accept: {}\r\n", long(64 << 10))),
        get("/v2/", &format!("authorization: {}\r\n", long(1 << 20))),
        get("/v2/", &"x: y\r\n".repeat(10_000)),
        get(&format!("/v2/lab/{}/manifests/1", "a/".repeat(30_000)), ""),
        get(&format!("/v2/lab/a/blobs/sha256:{hex}?{}", "n=1&".repeat(5_000)), ""),
        get("/v2/lab/%2e%2e/%2e%2e/etc/passwd/manifests/1", ""),
        get("/v2/lab/a%00b/manifests/1", ""),
        get("/v2/lab/a/tags/list?n=99999999999999999999999&n=1", ""),
        get("/v2/_catalog?n=-1", ""),
        get(&path, &format!("range: bytes={}\r\n", vec!["0-0"; 3_000].join(","))),
        get(&path, "range: bytes=18446744073709551615-18446744073709551616\r\n"),
        get(&path, "range: bytes=-18446744073709551616\r\nif-range: \"x\"\r\n"),
        get(&path, "content-length: 18446744073709551615\r\n"),
        get(&path, "transfer-encoding: chunked\r\n") + "ffffffffffffffff\r\n",
        get(&path, "expect: 100-continue\r\ncontent-length: 5\r\n"),
        get(&path, "upgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"),
        get("http://169.254.169.254/latest/meta-data", ""),
        "CONNECT 127.0.0.1:1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_owned(),
        "OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_owned(),
        "GET\0/v2/ HTTP/1.1\r\n\r\n".to_owned(),
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{9}\0\0\0\0\u{1}".to_owned(),
        format!(
            "POST /v2/lab/a/blobs/uploads/ HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
            1_u64 << 40
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_requests_in_crowds_cost_no_memory_no_upstream_and_no_panic() {
    const ROUNDS: usize = 20;
    let lab = Lab::start().await;
    let (open, before) = (descriptors(&lab.hydrant), lab.hydrant.peak_memory());
    lab.upstream.forget_requests();
    let odd = oddities(&lab.warm);
    for _ in 0..ROUNDS {
        let asked = odd.iter().map(|request| async {
            let mut stream = lab.send(request).await;
            let mut answer = Vec::new();
            let end = stream.read_to_end(&mut answer);
            let ended = timeout(Duration::from_secs(30), end).await;
            assert!(ended.is_ok(), "no end: {:?}", &request[..request.len().min(80)]);
        });
        join_all(asked).await;
    }
    lab.is_idle(open).await;
    lab.serves().await;
    let grown = lab.hydrant.peak_memory() - before;
    assert!(grown < 64 * MIB, "{} MiB more", grown / MIB);
    assert!(!lab.hydrant.log().contains("panicked"), "{}", lab.hydrant.log());
    assert!(lab.upstream.requests().is_empty(), "{:?}", lab.upstream.requests());
}
