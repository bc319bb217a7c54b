//! A store under test, and hands behind its back.

use bytes::Bytes;
use futures::StreamExt;
use hydrant_proto::{Digest, RepositoryName, Tag};
use hydrant_store::{BlobRead, S3Settings, Store, StoreConfig, StoreError, StoreUrl};
use hydrant_testkit::{Content, S3Front, SeaweedFs};
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;

static NEXT_PREFIX: AtomicU64 = AtomicU64::new(0);

pub struct Bench {
    pub store: Store,
    pub place: Place,
}

pub enum Place {
    Memory,
    Directory(TempDir),
    S3 { server: Arc<SeaweedFs>, prefix: String },
}

impl Bench {
    pub fn in_memory() -> Self {
        Self { store: Store::in_memory(), place: Place::Memory }
    }

    pub fn on_directory() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = open_directory(directory.path());
        Self { store, place: Place::Directory(directory) }
    }

    pub fn on_s3(server: &Arc<SeaweedFs>) -> Self {
        Self::in_bucket(server, &server.endpoint())
    }

    /// On S3 as a front lets it be seen; other handles go straight to it.
    pub fn through(front: &S3Front, server: &Arc<SeaweedFs>) -> Self {
        Self::in_bucket(server, &front.endpoint())
    }

    fn in_bucket(server: &Arc<SeaweedFs>, endpoint: &str) -> Self {
        let prefix = format!("test-{}", NEXT_PREFIX.fetch_add(1, Ordering::Relaxed));
        let store = open_s3(server, &prefix, server.env_through(endpoint));
        Self { store, place: Place::S3 { server: Arc::clone(server), prefix } }
    }

    /// The signatures of requests leave out their bodies, as over TLS.
    pub fn on_s3_unsigned(server: &Arc<SeaweedFs>) -> Self {
        let Self { place, .. } = Self::on_s3(server);
        let Place::S3 { prefix, .. } = &place else { unreachable!("it is S3") };
        let unsigned = [("AWS_UNSIGNED_PAYLOAD", "true".to_owned())];
        let env = server.env().into_iter().chain(unsigned).collect();
        Self { store: open_s3(server, prefix, env), place }
    }

    /// Another handle on the same place, as another process has it.
    pub fn another(&self) -> Store {
        match &self.place {
            Place::Memory => self.store.clone(),
            Place::Directory(directory) => open_directory(directory.path()),
            Place::S3 { server, prefix } => open_s3(server, prefix, server.env()),
        }
    }

    /// Every object by its key, without the prefix, with its size. None in memory.
    pub async fn objects(&self) -> BTreeMap<String, u64> {
        match &self.place {
            Place::Memory => BTreeMap::new(),
            Place::Directory(directory) => files(directory.path()),
            Place::S3 { server, prefix } => {
                let objects = server.objects(&format!("{prefix}/")).await.into_iter();
                let cut = prefix.len() + 1;
                objects.map(|(key, size)| (key[cut..].to_owned(), size)).collect()
            }
        }
    }

    /// Replaces an object behind the store's back.
    pub async fn overwrite(&self, key: &str, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        match &self.place {
            Place::Memory => unreachable!("nothing gets behind the back of memory"),
            Place::Directory(directory) => {
                let path = directory.path().join(key);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, bytes).unwrap();
            }
            Place::S3 { server, prefix } => {
                server.overwrite(&format!("{prefix}/{key}"), bytes).await
            }
        }
    }

    pub async fn read(&self, key: &str) -> Option<Bytes> {
        match &self.place {
            Place::Memory => None,
            Place::Directory(directory) => {
                fs::read(directory.path().join(key)).ok().map(Bytes::from)
            }
            Place::S3 { server, prefix } => server.read(&format!("{prefix}/{key}")).await,
        }
    }

    /// What must hold after every test: no upload is open, no file is staged.
    pub async fn leaves_nothing_open(&self) {
        self.store.settled().await;
        let left = self.store.leftovers().await.unwrap();
        assert!(left.is_empty(), "{left:?}");
        if let Place::S3 { server, prefix } = &self.place {
            let open = server.open_uploads().await.into_iter();
            let ours: Vec<_> = open.filter(|key| key.starts_with(&format!("{prefix}/"))).collect();
            assert!(ours.is_empty(), "{ours:?}");
        }
    }
}

pub fn open_directory(path: &Path) -> Store {
    let url = StoreUrl::Directory(path.to_owned());
    Store::open(&StoreConfig { url, s3: S3Settings::default(), public_endpoint: None }).unwrap()
}

fn open_s3(server: &SeaweedFs, prefix: &str, env: Vec<(&str, String)>) -> Store {
    let url = format!("s3://{}/{prefix}", server.bucket()).parse().unwrap();
    let s3 = S3Settings::from_vars(env);
    Store::open(&StoreConfig { url, s3, public_endpoint: None }).unwrap()
}

fn files(root: &Path) -> BTreeMap<String, u64> {
    let (mut found, mut waiting) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                let key = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(key, path.metadata().unwrap().len());
            }
        }
    }
    found.retain(|key, _| !key.starts_with("hydrant/v1/locks/"));
    found
}

pub fn content_key(digest: &Digest) -> String {
    let hex = digest.hex();
    format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2])
}

/// Bytes that do not repeat soon; every `seed` has its own.
pub fn bytes_of(seed: u64, length: usize) -> Bytes {
    Content::Generated { seed, length: length as u64 }.bytes()
}

/// Writes a blob in pieces and commits it.
pub async fn put(store: &Store, bytes: &Bytes) -> Digest {
    let digest = Digest::of(bytes);
    let mut writer = store.begin_blob(&digest, Some(bytes.len() as u64));
    for piece in bytes.chunks(1_000_003) {
        writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    assert_eq!(writer.commit().await.unwrap(), bytes.len() as u64);
    digest
}

/// Everything a read gives before its end or its error.
pub async fn drain(mut read: BlobRead) -> (Vec<u8>, Result<(), StoreError>) {
    let mut all = Vec::new();
    while let Some(next) = read.stream.next().await {
        match next {
            Ok(bytes) => all.extend_from_slice(&bytes),
            Err(error) => return (all, Err(error)),
        }
    }
    (all, Ok(()))
}

pub fn repository(name: &str) -> RepositoryName {
    name.parse().unwrap()
}

pub fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

pub const LIMIT: Duration = Duration::from_secs(20);
