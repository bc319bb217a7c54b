//! Stored blobs that the kernel sends from their files: byte for byte, and not when they are damaged.

use crate::lab::{Lab, SOON, directory_store, file_of, header};
use bytes::Bytes;
use hydrant_proto::Digest;
use hydrant_testkit::{Image, ImageBuilder, until};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const MIB: u64 = 1024 * 1024;

struct Shelf {
    lab: Lab,
    image: Image,
    directory: TempDir,
}

impl Shelf {
    /// An image in a directory, whose blobs were read and found sound.
    async fn of_layers(sizes: &[u64]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let lab = Lab::setup().store(directory_store(&directory)).start().await;
        let image = ImageBuilder::new(1).layers(sizes).build();
        lab.hydrate(&image, "lab/app", "1").await;
        let shelf = Self { lab, image, directory };
        for blob in &shelf.image.blobs {
            shelf.until_sound(&blob.digest).await;
        }
        shelf
    }

    async fn until_sound(&self, digest: &Digest) {
        until("the blob is known sound", SOON, async || {
            self.lab.pull(&path_of(digest)).await;
            self.lab.store.sound_file(digest).await.map(drop)
        })
        .await;
    }

    fn layer(&self, number: usize) -> (Digest, Bytes) {
        let blob = &self.image.blobs[number];
        (blob.digest.clone(), blob.content.bytes())
    }

    fn file(&self, digest: &Digest) -> PathBuf {
        file_of(&self.directory, digest)
    }

    async fn wire(&self) -> Wire {
        Wire(TcpStream::connect(self.lab.address).await.unwrap())
    }
}

fn path_of(digest: &Digest) -> String {
    format!("lab/app/blobs/{digest}")
}

fn get(path: &str, more: &str) -> String {
    format!("GET /v2/{path} HTTP/1.1\r\nhost: x\r\n{more}\r\n")
}

/// A connection on which requests and answers are what a test says.
struct Wire(TcpStream);

impl Wire {
    async fn send(&mut self, requests: &str) {
        self.0.write_all(requests.as_bytes()).await.unwrap();
    }

    /// The head of the next answer, and the length of its body.
    async fn head(&mut self) -> (String, usize) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        (head.clone(), length.map_or(0, |length| length.parse().unwrap()))
    }

    async fn body(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await?;
        Ok(body)
    }

    async fn answer(&mut self) -> Vec<u8> {
        let (_, length) = self.head().await;
        self.body(length).await.unwrap()
    }
}

#[tokio::test]
async fn answers_on_one_connection_follow_each_other_byte_for_byte() {
    let shelf = Shelf::of_layers(&[3 * MIB + 1, 70_001]).await;
    let ((large, large_bytes), (small, small_bytes)) = (shelf.layer(1), shelf.layer(2));
    let (large, small) = (path_of(&large), path_of(&small));
    let head = get(&large, "").replacen("GET", "HEAD", 1);
    let mut wire = shelf.wire().await;
    // All at once first, then one after the other.
    let requests = [
        get(&large, ""),
        get("lab/app/manifests/1", ""),
        get(&small, ""),
        get(&large, "range: bytes=1048575-2097153\r\n"),
        get("lab/app/blobs/none", ""),
        head,
        get(&small, ""),
    ];
    for is_pipelined in [true, false] {
        if is_pipelined {
            wire.send(&requests.concat()).await;
        }
        for (number, request) in requests.iter().enumerate() {
            if !is_pipelined {
                wire.send(request).await;
            }
            let (head, length) = wire.head().await;
            let length = if number == 5 { 0 } else { length };
            let body = wire.body(length).await.unwrap();
            match number {
                0 => assert!(body == large_bytes),
                1 => assert!(body == shelf.image.manifest),
                2 | 6 => assert!(body == small_bytes),
                3 => assert!(body == large_bytes[1_048_575..2_097_154]),
                4 => assert!(head.starts_with("HTTP/1.1 400"), "{head}"),
                _ => assert!(head.contains("content-length: 3145729"), "{head}"),
            }
        }
    }
    assert!(shelf.lab.upstream.requests().is_empty());
}

#[tokio::test]
async fn parts_are_exact_at_odd_places() {
    let shelf = Shelf::of_layers(&[2 * MIB + 4_097]).await;
    let (digest, bytes) = shelf.layer(1);
    let size = bytes.len();
    let mib = usize::try_from(MIB).unwrap();
    for (start, end) in [
        (0, 1),
        (size - 1, size),
        (1, size),
        (4_095, 4_097),
        (mib - 1, mib + 1),
        (mib, 2 * mib),
        (131_071, 1_310_721),
        (12_345, size - 54_321),
    ] {
        let range = format!("bytes={start}-{}", end - 1);
        let answer = shelf.lab.get(&path_of(&digest)).header("range", &range).send().await.unwrap();
        assert_eq!(answer.status(), 206, "{range}");
        assert!(answer.bytes().await.unwrap() == bytes[start..end], "{range}");
    }
}

/// Has the system forget what it has of a file in memory, which some file systems do not do.
fn evict(path: &Path) {
    let mut evicting = Command::new("dd");
    evicting.arg(format!("if={}", path.display())).args(["iflag=nocache", "count=0"]);
    assert!(evicting.output().unwrap().status.success());
}

#[tokio::test]
async fn what_is_not_in_memory_is_waited_for_and_sent() {
    let shelf = Shelf::of_layers(&[9 * MIB + 1]).await;
    let (digest, bytes) = shelf.layer(1);
    let all = 0..bytes.len() as u64;
    for range in [0..bytes.len(), 5_000_000..bytes.len(), 1..2] {
        File::open(shelf.file(&digest)).unwrap().sync_all().unwrap();
        evict(&shelf.file(&digest));
        let file = shelf.lab.store.sound_file(&digest).await.expect("reading changes nothing");
        eprintln!("evicted: {}", !file.is_in_memory(&all));
        let asked = format!("bytes={}-{}", range.start, range.end - 1);
        let answer = shelf.lab.get(&path_of(&digest)).header("range", asked).send().await.unwrap();
        assert!(answer.bytes().await.unwrap() == bytes[range]);
    }
}

#[tokio::test]
async fn other_protocols_read_the_bytes_themselves() {
    let shelf = Shelf::of_layers(&[2 * MIB]).await;
    let (digest, bytes) = shelf.layer(1);
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let url = format!("http://{}/v2/{}", shelf.lab.address, path_of(&digest));
    let answer = client.get(url).send().await.unwrap();
    assert_eq!(answer.version(), reqwest::Version::HTTP_2);
    assert!(answer.bytes().await.unwrap() == bytes);
    let mut wire = shelf.wire().await;
    wire.send(&format!("GET /v2/{} HTTP/1.0\r\nhost: x\r\n\r\n", path_of(&digest))).await;
    assert!(wire.answer().await == bytes);
}

fn flip(path: &Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1_000_000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 1_000_000).unwrap();
}

fn truncate(path: &Path) {
    File::options().write(true).open(path).unwrap().set_len(1_000_000).unwrap();
}

fn replace(path: &Path) {
    let other = path.with_extension("other");
    fs::copy(path, &other).unwrap();
    flip(&other);
    fs::rename(other, path).unwrap();
}

#[tokio::test]
async fn what_is_damaged_after_it_was_found_sound_is_never_served_whole() {
    for damage in [flip, truncate, replace] {
        let shelf = Shelf::of_layers(&[2 * MIB]).await;
        let (digest, bytes) = shelf.layer(1);
        shelf.lab.upstream.insert(&shelf.image, "app", "1");
        damage(&shelf.file(&digest));
        for _ in 0..3 {
            let answer = shelf.lab.get(&path_of(&digest)).send().await.unwrap();
            let is_whole = answer.status() == 200;
            let body = answer.bytes().await;
            assert!(!is_whole || body.is_err() || body.unwrap() == bytes, "damage was served");
        }
        until("it is served again", SOON, async || {
            let answer = shelf.lab.get(&path_of(&digest)).send().await.unwrap();
            (answer.status() == 200 && answer.bytes().await.ok()? == bytes).then_some(())
        })
        .await;
        until("it is stored again", SOON, async || {
            (fs::read(shelf.file(&digest)).ok()? == bytes).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn what_is_damaged_while_it_is_sent_is_cut_off() {
    // More than sockets hold.
    const SIZE: u64 = 48 * MIB;
    for damage in [flip, truncate] {
        let shelf = Shelf::of_layers(&[SIZE]).await;
        let (digest, _) = shelf.layer(1);
        let mut wire = shelf.wire().await;
        wire.send(&get(&path_of(&digest), "")).await;
        let (_, length) = wire.head().await;
        wire.body(1_000).await.unwrap();
        damage(&shelf.file(&digest));
        assert!(wire.body(length - 1_000).await.is_err(), "the answer ended as if it were whole");
    }
}

#[tokio::test]
async fn clients_that_do_not_read_hold_up_nobody() {
    let shelf = Shelf::of_layers(&[16 * MIB]).await;
    let (digest, bytes) = shelf.layer(1);
    let mut stuck = Vec::new();
    for _ in 0..50 {
        let mut wire = shelf.wire().await;
        wire.send(&get(&path_of(&digest), "")).await;
        let (_, length) = wire.head().await;
        stuck.push((wire, length));
    }
    assert!(shelf.lab.pull(&path_of(&digest)).await.1 == bytes);
    let (mut last, length) = stuck.pop().unwrap();
    drop(stuck);
    assert!(last.body(length).await.unwrap() == bytes);
    assert!(shelf.lab.pull(&path_of(&digest)).await.1 == bytes);
}

#[tokio::test]
async fn what_is_being_sent_at_the_stop_is_sent_whole() {
    let mut shelf = Shelf::of_layers(&[16 * MIB]).await;
    let (digest, bytes) = shelf.layer(1);
    let mut wire = shelf.wire().await;
    wire.send(&get(&path_of(&digest), "")).await;
    let (_, length) = wire.head().await;
    let reading = async { wire.body(length).await.unwrap() };
    let (body, ()) = tokio::join!(reading, shelf.lab.stop());
    assert!(body == bytes);
}

/// Bytes of blobs that this process sent to clients, by its metrics.
fn told_bytes() -> u64 {
    let text = hydrant_telemetry::metrics_text();
    let is_told = |line: &&str| line.starts_with("hydrant_pull") && line.contains("bytes");
    let line = text.lines().filter(is_told).find(|line| line.contains("kind=\"blob\""));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn what_is_sent_is_counted() {
    let shelf = Shelf::of_layers(&[3 * MIB + 5]).await;
    let (digest, _) = shelf.layer(1);
    let before = told_bytes();
    assert!(before > 3 * MIB, "{}", hydrant_telemetry::metrics_text());
    shelf.lab.pull(&path_of(&digest)).await;
    let part = shelf.lab.get(&path_of(&digest)).header("range", "bytes=7-1048590");
    part.send().await.unwrap().bytes().await.unwrap();
    shelf.lab.head(&path_of(&digest)).send().await.unwrap();
    let expected = 3 * MIB + 5 + 1_048_584;
    until("all of it is counted", SOON, async || (told_bytes() - before == expected).then_some(()))
        .await;
}

#[tokio::test]
async fn headers_are_those_of_any_other_hit() {
    let shelf = Shelf::of_layers(&[100_000]).await;
    let (digest, _) = shelf.layer(1);
    let (headers, _) = shelf.lab.pull(&path_of(&digest)).await;
    assert_eq!(header(&headers, "x-hydrant-cache"), "hit");
    assert_eq!(header(&headers, "content-length"), "100000");
    assert_eq!(header(&headers, "accept-ranges"), "bytes");
    assert_eq!(header(&headers, "docker-content-digest"), digest.to_string());
}
