//! Opening a store: a directory, or a bucket by its URL and the usual `AWS_*` variables.

use crate::{Store, backend::Backend, error::StoreError, upload::PARTS};
use object_store::{
    ClientOptions, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    local::LocalFileSystem,
    memory::InMemory,
    prefix::PrefixStore,
};
use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};
use tokio::sync::Semaphore;
use url::Url;

/// Longest silence of the store in the middle of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time over which the store client itself repeats a request.
const RETRY_TIMEOUT: Duration = Duration::from_secs(30);

/// Where content is: `s3://bucket/prefix`, or a directory as a path or `file:///…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    Directory(PathBuf),
    S3 { bucket: String, prefix: String },
}

impl FromStr for StoreUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((scheme, _)) = text.split_once("://") else {
            return match text {
                "" => Err("store is empty; write a directory or s3://bucket/prefix".to_owned()),
                path => Ok(Self::Directory(path.into())),
            };
        };
        let url = Url::parse(text).map_err(|error| format!("store {text:?}: {error}"))?;
        if url.query().is_some() || url.password().is_some() || !url.username().is_empty() {
            return Err("store has a query or credentials; use the AWS_* variables".to_owned());
        }
        match (scheme, url.host_str()) {
            ("file", None | Some("")) => Ok(Self::Directory(url.path().into())),
            ("s3", Some(bucket)) => Ok(Self::S3 {
                bucket: bucket.to_owned(),
                prefix: url.path().trim_matches('/').to_owned(),
            }),
            _ => Err(format!("store {text:?} is neither a directory nor s3://bucket/prefix")),
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

/// How to reach a store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    pub url: StoreUrl,
    /// `AWS_*` settings, as read from the environment: `AWS_ENDPOINT_URL`, `AWS_REGION`,
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_ALLOW_HTTP`, ….
    pub aws: Vec<(String, String)>,
    /// The endpoint that clients reach the bucket at, for presigned URLs, if it is another one.
    pub public_endpoint: Option<String>,
}

impl StoreConfig {
    /// A store at `url`, with the `AWS_*` variables of this process.
    pub fn from_env(url: StoreUrl) -> Self {
        let aws = std::env::vars().filter(|(name, _)| name.starts_with("AWS_")).collect();
        let public_endpoint = std::env::var("HYDRANT_S3_PUBLIC_ENDPOINT").ok();
        Self { url, aws, public_endpoint }
    }
}

impl Store {
    /// Opens a store. Nothing is asked of it yet; see [`Store::probe`].
    pub fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        let backend = match &config.url {
            StoreUrl::Directory(path) => directory(path)?,
            StoreUrl::S3 { bucket, prefix } => s3(config, bucket, prefix)?,
        };
        Ok(Self::new(backend))
    }

    /// A store in memory, for tests.
    pub fn in_memory() -> Self {
        Self::new(Backend {
            objects: Arc::new(InMemory::new()),
            multipart: None,
            signer: None,
            directory: None,
        })
    }

    pub(crate) fn new(backend: Backend) -> Self {
        Self { backend, part_budget: Arc::new(Semaphore::new(PARTS)) }
    }
}

fn directory(path: &Path) -> Result<Backend, StoreError> {
    let open = || {
        std::fs::create_dir_all(path)?;
        let root = path.canonicalize()?;
        let objects = LocalFileSystem::new_with_prefix(&root)?.with_fsync(true);
        Ok::<_, Box<dyn std::error::Error>>((root, objects))
    };
    let (root, objects) = open().map_err(|error| {
        StoreError::Refused(format!("store directory {}: {error}", path.display()))
    })?;
    let objects = Arc::new(objects);
    Ok(Backend { objects, multipart: None, signer: None, directory: Some(root) })
}

fn s3(config: &StoreConfig, bucket: &str, prefix: &str) -> Result<Backend, StoreError> {
    let refused = |error: object_store::Error| StoreError::Refused(format!("store: {error}"));
    let s3 = Arc::new(builder(config, bucket).build().map_err(refused)?);
    let public = match &config.public_endpoint {
        None => s3.clone(),
        Some(endpoint) => {
            let public = builder(config, bucket).with_endpoint(endpoint);
            Arc::new(public.build().map_err(refused)?)
        }
    };
    Ok(match prefix {
        "" => Backend {
            objects: s3.clone(),
            multipart: Some(s3),
            signer: Some(public),
            directory: None,
        },
        prefix => Backend {
            objects: Arc::new(PrefixStore::new(s3.clone(), prefix)),
            multipart: Some(Arc::new(crate::prefix::Prefixed::new(s3, prefix))),
            signer: Some(Arc::new(crate::prefix::Prefixed::new(public, prefix))),
            directory: None,
        },
    })
}

fn builder(config: &StoreConfig, bucket: &str) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::new().with_bucket_name(bucket);
    let mut endpoint = false;
    for (name, value) in &config.aws {
        if let Ok(key) = name.to_ascii_lowercase().parse() {
            endpoint |= name.starts_with("AWS_ENDPOINT");
            builder = builder.with_config(key, value);
        }
    }
    let allow_http = config.aws.iter().any(|(n, v)| n == "AWS_ALLOW_HTTP" && v == "true");
    let client = ClientOptions::new()
        .with_timeout_disabled()
        .with_read_timeout(READ_TIMEOUT)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_allow_http(allow_http);
    let retry = RetryConfig { retry_timeout: RETRY_TIMEOUT, ..RetryConfig::default() };
    builder = builder.with_client_options(client).with_retry(retry);
    let style = config.aws.iter().any(|(n, _)| n == "AWS_VIRTUAL_HOSTED_STYLE_REQUEST");
    // Stores other than AWS rarely have a DNS name per bucket.
    if endpoint && !style { builder.with_virtual_hosted_style_request(false) } else { builder }
}

/// The concrete client, for the parts of it that have no trait.
pub(crate) type Client = AmazonS3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_a_directory_or_a_bucket() {
        for (text, expected) in [
            ("/var/lib/hydrant", StoreUrl::Directory("/var/lib/hydrant".into())),
            ("data/store", StoreUrl::Directory("data/store".into())),
            ("file:///srv/x", StoreUrl::Directory("/srv/x".into())),
            ("s3://cache", StoreUrl::S3 { bucket: "cache".into(), prefix: String::new() }),
            ("s3://cache/a/b/", StoreUrl::S3 { bucket: "cache".into(), prefix: "a/b".into() }),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for bad in ["", "http://x/y", "s3://", "s3://key:secret@cache", "file://host/x"] {
            assert!(bad.parse::<StoreUrl>().is_err(), "{bad}");
        }
    }
}
