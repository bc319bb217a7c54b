//! A real S3 server, SeaweedFS, one per test.

use crate::{PortLease, Process, binaries, client, process, until};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::StatusCode;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    time::Duration,
};
use tempfile::TempDir;

const START_LIMIT: Duration = Duration::from_secs(60);
/// How often a directory that answers 404 is asked for.
const LIST_ATTEMPTS: u32 = 5;
const BUCKET: &str = "cache";
const ACCESS_KEY: &str = "hydrant";
const SECRET_KEY: &str = "hydrantsecret";
/// Go's mode bit of a directory, which the filer reports.
const DIRECTORY: u32 = 1 << 31;

/// A running SeaweedFS with the bucket `cache`; signatures are checked. Gone when dropped.
#[derive(Debug)]
pub struct SeaweedFs {
    process: Process,
    ports: Ports,
    client: reqwest::Client,
    _directory: TempDir,
}

#[derive(Debug)]
struct Ports {
    s3: PortLease,
    master: PortLease,
    volume: PortLease,
    filer: PortLease,
    admin: PortLease,
}

impl Ports {
    fn take() -> Self {
        let take = PortLease::take;
        Self { s3: take(), master: take(), volume: take(), filer: take(), admin: take() }
    }

    fn all(&self) -> [(&'static str, u16); 5] {
        [
            ("s3", self.s3.port()),
            ("master", self.master.port()),
            ("volume", self.volume.port()),
            ("filer", self.filer.port()),
            ("admin", self.admin.port()),
        ]
    }
}

impl SeaweedFs {
    /// Starts a server and waits until its bucket exists and takes writes.
    pub async fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("hydrant-s3-").tempdir();
        let directory = directory.expect("the temporary directory is writable");
        let ports = Ports::take();
        let mut process = Process::new("weed", binaries::find("weed"), directory.path());
        process.args(["mini", "-dir=.", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]);
        process.args([&format!("-bucket={BUCKET}"), "-master.telemetry=false"]);
        process.args(["-webdav=false", "-admin.ui=false"]);
        process.args(["-s3.port.iceberg=0", "-s3.port.lance=0"]);
        process.args(["-filer.localSocket=filer.sock", "-s3.localSocket=s3.sock"]);
        process.args(ports.all().map(|(role, port)| format!("-{role}.port={port}")));
        process.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        let client = client::plain();
        let mut server = Self { process, ports, client, _directory: directory };
        server.restart().await;
        server
    }

    /// `http://127.0.0.1:<port>`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn port(&self) -> u16 {
        self.ports.s3.port()
    }

    pub fn bucket(&self) -> &'static str {
        BUCKET
    }

    pub fn access_key(&self) -> &'static str {
        ACCESS_KEY
    }

    pub fn secret_key(&self) -> &'static str {
        SECRET_KEY
    }

    /// The `AWS_*` variables of a client of this server.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        self.env_through(&self.endpoint())
    }

    /// The same for a client that talks to `endpoint` instead, such as a fault proxy before it.
    pub fn env_through(&self, endpoint: &str) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL", endpoint.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
        ]
    }

    /// Starts it again on the same ports and data, killing it first when it still runs. On a busy
    /// machine the first write after a kill sometimes hangs for 20 seconds; this waits for it.
    pub async fn restart(&mut self) {
        self.kill9();
        self.process.spawn();
        self.ready().await;
    }

    async fn ready(&mut self) {
        let (bucket, probe) = (self.filer(&bucket_path("")), self.filer("/testkit/ready"));
        let (s3, client, process) = (self.endpoint(), &self.client, &mut self.process);
        until("SeaweedFS taking writes", START_LIMIT, async || {
            process.assert_running();
            client.get(&s3).send().await.ok()?;
            let exists = client.get(&bucket).send().await.ok()?.status().is_success();
            let put = async || client.put(&probe).body("ready").send().await.ok();
            (exists && put().await?.status().is_success()).then_some(())
        })
        .await;
    }

    /// Kills it with SIGKILL; ports and data stay for [`SeaweedFs::restart`].
    pub fn kill9(&mut self) {
        self.process.kill9();
        self.remove_sockets();
    }

    /// Freezes it: connections stay open, nothing is answered.
    pub fn freeze(&self) {
        self.process.signal(process::SIGSTOP);
    }

    /// Ends [`SeaweedFs::freeze`].
    pub fn thaw(&self) {
        self.process.signal(process::SIGCONT);
    }

    /// Multipart uploads that were neither completed nor aborted: the object keys, sorted.
    pub async fn open_uploads(&self) -> Vec<String> {
        let in_bucket = self.list(&bucket_path("")).await;
        if !in_bucket.iter().any(|entry| entry.full_path == bucket_path(".uploads")) {
            return Vec::new();
        }
        let uploads = self.list(&bucket_path(".uploads/")).await;
        let mut keys: Vec<_> = uploads.into_iter().map(|upload| upload.upload_key()).collect();
        keys.sort();
        keys
    }

    /// Every object whose key starts with `prefix` (whole path components), with its size in bytes.
    pub async fn objects(&self, prefix: &str) -> BTreeMap<String, u64> {
        let (mut found, mut waiting) = (BTreeMap::new(), vec![bucket_path(prefix)]);
        let root = bucket_path("");
        while let Some(directory) = waiting.pop() {
            for entry in self.list(&directory).await {
                let key = entry.full_path.strip_prefix(&root).expect("below the bucket");
                match entry.mode & DIRECTORY != 0 {
                    true if key != ".uploads" => waiting.push(format!("{}/", entry.full_path)),
                    true => {}
                    false => drop(found.insert(key.to_owned(), entry.size)),
                }
            }
        }
        found
    }

    /// The bytes of an object, past all signatures; `None` when there is none.
    pub async fn read(&self, key: &str) -> Option<bytes::Bytes> {
        let answer = self.client.get(self.filer(&bucket_path(key))).send().await;
        let answer = answer.expect("SeaweedFS answers");
        match answer.status().is_success() {
            true => Some(answer.bytes().await.expect("SeaweedFS sends the whole object")),
            false => None,
        }
    }

    /// Replaces the bytes of an object behind everybody's back.
    pub async fn overwrite(&self, key: &str, bytes: impl Into<reqwest::Body>) {
        let answer = self.client.put(self.filer(&bucket_path(key))).body(bytes).send().await;
        answer.and_then(reqwest::Response::error_for_status).expect("SeaweedFS takes the object");
    }

    /// Removes an object behind everybody's back.
    pub async fn remove(&self, key: &str) {
        let answer = self.client.delete(self.filer(&bucket_path(key))).send().await;
        answer.and_then(reqwest::Response::error_for_status).expect("SeaweedFS removes the object");
    }

    /// What the server wrote.
    pub fn log(&self) -> String {
        self.process.log()
    }

    fn filer(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.ports.filer.port())
    }

    /// The entries of a directory of the filer; none when it has gone.
    async fn list(&self, directory: &str) -> Vec<Entry> {
        let (mut entries, mut last) = (Vec::new(), String::new());
        while let Some(page) = self.page(directory, &last).await {
            entries.extend(page.entries.unwrap_or_default());
            if !page.more {
                break;
            }
            last = page.last;
        }
        entries
    }

    /// Directories are listed only after something named them, so a 404 is more likely the filer's
    /// word for a failure of its own than a directory that has just been removed: ask again.
    async fn page(&self, directory: &str, last: &str) -> Option<Page> {
        let mut url: reqwest::Url = self.filer(directory).parse().expect("keys make valid paths");
        url.query_pairs_mut().append_pair("limit", "1000").append_pair("lastFileName", last);
        for attempt in 1..=LIST_ATTEMPTS {
            let request = self.client.get(url.clone()).header("accept", "application/json");
            let answer = request.send().await.expect("SeaweedFS answers");
            if answer.status() != StatusCode::NOT_FOUND {
                return Some(answer.json().await.expect("SeaweedFS lists in JSON"));
            }
            tokio::time::sleep(attempt * Duration::from_millis(20)).await;
        }
        None
    }

    /// SeaweedFS leaves these behind when it is killed.
    fn remove_sockets(&self) {
        for (role, port) in self.ports.all() {
            // Absent after a clean end.
            let _ = fs::remove_file(format!("/tmp/seaweedfs-{role}-{port}.sock"));
            let _ = fs::remove_file(format!("/tmp/seaweedfs-{role}-grpc-{}.sock", port + 10_000));
        }
    }
}

impl Drop for SeaweedFs {
    fn drop(&mut self) {
        self.kill9();
    }
}

fn bucket_path(key: &str) -> String {
    format!("/buckets/{BUCKET}/{key}")
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    entries: Option<Vec<Entry>>,
    #[serde(rename = "LastFileName")]
    last: String,
    #[serde(rename = "ShouldDisplayLoadMore")]
    more: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    full_path: String,
    mode: u32,
    #[serde(rename = "FileSize")]
    size: u64,
    extended: Option<HashMap<String, String>>,
}

impl Entry {
    /// The object key of an entry of `.uploads`; the upload id when it has none.
    fn upload_key(self) -> String {
        let key = self.extended.unwrap_or_default().remove("key");
        let key = key.and_then(|text| BASE64_STANDARD.decode(text).ok());
        key.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or(self.full_path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn objects_outlive_a_kill() {
        let mut server = SeaweedFs::start().await;
        assert!(server.open_uploads().await.is_empty());
        assert!(server.objects("").await.is_empty());
        server.overwrite("a/b", "hello").await;
        server.overwrite("c", "").await;
        let unsigned = server.client.get(server.endpoint() + "/cache/a/b").send().await.unwrap();
        assert_eq!(unsigned.status(), 403);
        server.kill9();
        server.restart().await;
        assert_eq!(server.read("a/b").await.unwrap(), "hello");
        let objects = server.objects("").await.into_iter();
        assert_eq!(objects.collect::<Vec<_>>(), [("a/b".to_owned(), 5), ("c".to_owned(), 0)]);
        assert_eq!(server.objects("a/").await.len(), 1);
        server.remove("a/b").await;
        assert_eq!(server.read("a/b").await, None);
    }
}
