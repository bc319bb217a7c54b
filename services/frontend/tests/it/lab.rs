//! One frontend, its upstream and its storage.

use bytes::Bytes;
use futures::TryStreamExt;
use hydrant_boot::ResourceFeed;
use hydrant_bus::{Bus, BusConfig};
use hydrant_flight::Flights;
use hydrant_frontend::{Context, Settings, run};
use hydrant_proto::{Digest, Identity, MediaType, Reference, RepositoryName};
use hydrant_rules::{Resources, Table};
use hydrant_store::{MissRecord, Owner, Store, StoreConfig, StoreUrl, TagRecord};
use hydrant_testkit::{FakeUpstream, Image, PortLease, until};
use hydrant_upstream::{SecretSource, Upstreams};
use jiff::Timestamp;
use reqwest::{Client, RequestBuilder, Response};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Longest wait for what happens behind an answer.
pub const SOON: Duration = Duration::from_secs(20);

pub struct Lab {
    pub upstream: FakeUpstream,
    pub store: Store,
    pub flights: Flights,
    pub bus: Bus,
    pub feed: ResourceFeed,
    pub client: Client,
    pub address: std::net::SocketAddr,
    stop: CancellationToken,
    running: Option<JoinHandle<()>>,
    _spool: TempDir,
    _port: Option<PortLease>,
}

/// How a lab differs from the plain one.
pub struct Setup {
    store: Store,
    nats: Option<String>,
    rule: String,
    more: String,
    settings: Settings,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            store: Store::in_memory(),
            nats: None,
            rule: String::new(),
            more: String::new(),
            settings: Settings { drain: Duration::from_secs(5), ..Settings::default() },
        }
    }
}

impl Setup {
    pub fn store(self, store: Store) -> Self {
        Self { store, ..self }
    }

    pub fn nats(self, url: String) -> Self {
        Self { nats: Some(url), ..self }
    }

    /// Lines for the rule `lab/*`.
    pub fn rule(self, lines: &str) -> Self {
        Self { rule: lines.to_owned(), ..self }
    }

    /// More resources; `{upstream}` stands for the address of the upstream.
    pub fn more(self, text: &str) -> Self {
        Self { more: text.to_owned(), ..self }
    }

    pub fn upstream_requests(mut self, at_once: usize) -> Self {
        self.settings.upstream_requests = at_once;
        self
    }

    pub async fn start(self) -> Lab {
        let upstream = FakeUpstream::start().await;
        let text = format!(
            "[[upstream]]\nname = 'lab'\nendpoint = '{url}'\nallow_private = true\n\
             [[rule]]\nname = 'lab'\ndownstream = 'lab/*'\nupstream = 'lab'\n{rule}\n{more}",
            url = upstream.url(),
            rule = self.rule,
            more = self.more.replace("{upstream}", &upstream.url()),
        );
        let feed = ResourceFeed::fixed(table(&text));
        // Without a bus: an address where nobody listens.
        let port = self.nats.is_none().then(PortLease::take);
        let url = match (&self.nats, &port) {
            (Some(url), _) => url.clone(),
            (None, port) => format!("nats://127.0.0.1:{}", port.as_ref().unwrap().port()),
        };
        let bus = Bus::connect(BusConfig::new(url, "test")).await.unwrap();
        let spool = tempfile::tempdir().unwrap();
        let flights = Flights::new(self.store.clone(), spool.path().into(), 1 << 30, None).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let context = Context {
            store: self.store.clone(),
            bus: bus.clone(),
            feed: feed.clone(),
            upstreams: Upstreams::new(SecretSource::default()),
            identity: Identity::default(),
            settings: self.settings,
        };
        let serving = run(context, flights.clone(), listener, stop.clone());
        let running = tokio::spawn(async move { serving.await.unwrap() });
        Lab {
            upstream,
            store: self.store,
            flights,
            bus,
            feed,
            client: plain(),
            address,
            stop,
            running: Some(running),
            _spool: spool,
            _port: port,
        }
    }
}

pub fn table(text: &str) -> Table {
    Table::compile(Resources::from_toml(text, Path::new("/")).unwrap()).unwrap()
}

fn plain() -> Client {
    let client = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    client.build().unwrap()
}

impl Lab {
    pub async fn start() -> Self {
        Setup::default().start().await
    }

    pub fn setup() -> Setup {
        Setup::default()
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("http://{}/v2/{path}", self.address))
    }

    pub fn head(&self, path: &str) -> RequestBuilder {
        self.client.head(format!("http://{}/v2/{path}", self.address))
    }

    /// The body of a GET that must be answered 200, with its headers.
    pub async fn pull(&self, path: &str) -> (reqwest::header::HeaderMap, Bytes) {
        let answer = self.get(path).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}: {:?}", answer.headers());
        (answer.headers().clone(), answer.bytes().await.unwrap())
    }

    /// Status and error class of a GET, which in the body is the same.
    pub async fn refusal(&self, path: &str) -> (u16, String) {
        refusal(self.get(path).send().await.unwrap()).await
    }

    /// Puts an image into storage as the importer would, and points a tag at it.
    pub async fn hydrate(&self, image: &Image, repository: &str, tag: &str) {
        let name: RepositoryName = repository.parse().unwrap();
        let origin = self.feed.current().route(&name).unwrap().origin;
        self.store.take_over(&name, &origin).await.unwrap();
        for blob in image.all_blobs() {
            self.store_blob(&name, &blob.digest, blob.content.bytes()).await;
        }
        for manifest in image.manifests() {
            let (digest, bytes) = (&manifest.digest, manifest.manifest.clone());
            self.store.stage_manifest(digest, bytes).await.unwrap();
            self.store.commit_manifest(&name, digest).await.unwrap();
        }
        self.point(&name, tag, image, Owner::Cache, Timestamp::now()).await;
    }

    pub async fn store_blob(&self, name: &RepositoryName, digest: &Digest, bytes: Bytes) {
        let mut writer = self.store.begin_blob(digest, Some(bytes.len() as u64));
        writer.write(bytes).await.unwrap();
        writer.commit().await.unwrap();
        self.store.link_blob(name, digest).await.unwrap();
    }

    /// Writes the record of a tag, whatever was there.
    pub async fn point(
        &self,
        name: &RepositoryName,
        tag: &str,
        image: &Image,
        owner: Owner,
        confirmed_at: Timestamp,
    ) {
        let tag = tag.parse().unwrap();
        let generation = self.feed.current().route(name).unwrap().generation.to_string();
        let (digest, size) = (image.digest.clone(), image.manifest.len() as u64);
        let record = TagRecord {
            rule: Some("lab".into()),
            generation: Some(generation),
            ..TagRecord::new(owner, digest, image.media_type, size, confirmed_at)
        };
        let before = self.store.tag(name, &tag).await.unwrap().map(|(_, version)| version);
        self.store.put_tag(name, &tag, record, before).await.unwrap();
    }

    /// Every miss in the log, once there are `count`.
    pub async fn misses(&self, count: usize) -> Vec<MissRecord> {
        until("the misses are recorded", SOON, async || {
            let found = self.store.all_misses(Duration::ZERO).try_collect::<Vec<_>>().await;
            found.ok().filter(|found| found.len() >= count)
        })
        .await
    }

    /// Stops the frontend and waits for what it still writes down.
    pub async fn stop(&mut self) {
        self.stop.cancel();
        self.running.take().expect("stopped once").await.unwrap();
    }
}

pub async fn refusal(answer: Response) -> (u16, String) {
    let status = answer.status().as_u16();
    let class = answer.headers()["x-hydrant-error"].to_str().unwrap().to_owned();
    let body: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(body["errors"][0]["detail"]["class"], class.as_str(), "{body}");
    (status, class)
}

/// A header as text.
pub fn header<'h>(headers: &'h reqwest::header::HeaderMap, name: &str) -> &'h str {
    headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
}

/// Checks that an answer is the manifest of `image`, byte for byte.
pub fn assert_manifest((headers, body): &(reqwest::header::HeaderMap, Bytes), image: &Image) {
    assert_eq!(*body, image.manifest);
    assert_eq!(header(headers, "docker-content-digest"), image.digest.to_string());
    assert_eq!(header(headers, "content-type"), image.media_type.as_str());
    assert_eq!(header(headers, "docker-distribution-api-version"), "registry/2.0");
    assert_eq!(header(headers, "x-hydrant-rule"), "lab");
    assert!(!header(headers, "x-hydrant-request-id").is_empty());
    assert!(MediaType::parse(header(headers, "content-type")).is_some());
}

/// Storage in a directory, whose files a test can damage.
pub fn directory_store(directory: &TempDir) -> Store {
    let url = StoreUrl::Directory(directory.path().into());
    Store::open(&StoreConfig::from_env(url)).unwrap()
}

/// The file of a blob or manifest in a directory.
pub fn file_of(directory: &TempDir, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    directory.path().join(format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
}

pub fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}
