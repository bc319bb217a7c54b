//! Opening a store: its URL, the S3 settings, and the client's time-outs.

use crate::{Backend, Store, directory::Directory, error::StoreError, s3::S3};
use object_store::{memory::InMemory, path::Path};
use std::{fmt, path::PathBuf, str::FromStr, sync::Arc};
use url::Url;

/// Where the objects are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// `s3://bucket` or `s3://bucket/prefix`.
    S3 { bucket: String, prefix: String },
    /// `file:///directory`, or a path as it is.
    Directory(PathBuf),
}

/// The text names no place that objects can be kept in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "store {0:?} must be `s3://bucket[/prefix]`, `file:///directory` or a path; a relative path \
     whose first name has a colon begins with `./`"
)]
pub struct InvalidStoreUrl(String);

impl FromStr for StoreUrl {
    type Err = InvalidStoreUrl;

    fn from_str(text: &str) -> Result<Self, InvalidStoreUrl> {
        let invalid = || InvalidStoreUrl(text.chars().take(200).collect());
        let Some((scheme, rest)) = text.split_once("://") else {
            let is_path = !text.is_empty() && !begins_like_a_url(text);
            return if is_path { Ok(Self::Directory(text.into())) } else { Err(invalid()) };
        };
        match scheme {
            "s3" => bucket(rest).ok_or_else(invalid),
            "file" => {
                let url = Url::parse(text).map_err(|_| invalid())?;
                url.to_file_path().map(Self::Directory).map_err(|()| invalid())
            }
            _ => Err(invalid()),
        }
    }
}

/// Whether a text without `://` begins with a scheme (RFC 3986, section 3.1) all the same: a slip
/// such as `s3:/cache`, which must not become a local directory named `s3:`.
fn begins_like_a_url(text: &str) -> bool {
    let scheme = |s: &str| {
        s.starts_with(|c: char| c.is_ascii_alphabetic())
            && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    };
    text.split_once(':').is_some_and(|(before, _)| scheme(before))
}

/// Bucket names by the rules of S3; `@`, `:` and `?` are refused with everything else, so that no
/// credential can be put here.
fn bucket(rest: &str) -> Option<StoreUrl> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = prefix.trim_end_matches('/');
    let word = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let valid = (3..=63).contains(&bucket.len())
        && bucket.bytes().all(word)
        && prefix.bytes().all(|b| word(b) || b == b'/')
        && Path::parse(prefix).is_ok();
    valid.then(|| StoreUrl::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::Directory(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The `AWS_*` variables: endpoint (`AWS_ENDPOINT_URL` or `AWS_ENDPOINT`), region, keys,
/// `AWS_ALLOW_HTTP`, and whatever else `object_store` reads, such as web identity. Requests are
/// path style unless `AWS_VIRTUAL_HOSTED_STYLE_REQUEST` says otherwise.
#[derive(Clone, Default)]
pub struct S3Settings(Vec<(String, String)>);

impl S3Settings {
    /// From this process's environment.
    pub fn from_env() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self::from_vars(std::env::vars_os().filter_map(text))
    }

    /// From variables given as such; those that do not begin with `AWS_` are passed over.
    pub fn from_vars<N: Into<String>, V: Into<String>>(
        vars: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        let vars = vars.into_iter().map(|(name, value)| (name.into(), value.into()));
        Self(vars.filter(|(name, _)| name.starts_with("AWS_")).collect())
    }

    pub(crate) fn vars(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl fmt::Debug for S3Settings {
    /// Names only: values may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

#[derive(Clone, Debug)]
pub struct StoreConfig {
    pub url: StoreUrl,
    /// Read only when the store is S3.
    pub s3: S3Settings,
    /// What clients reach the S3 endpoint by, when it differs from what hydrant uses; presigned
    /// URLs name it.
    pub public_endpoint: Option<Url>,
}

impl StoreConfig {
    /// A store with the S3 settings of this process's environment.
    pub fn from_env(url: StoreUrl) -> Self {
        Self { url, s3: S3Settings::from_env(), public_endpoint: None }
    }
}

impl Store {
    /// Opens a store. A directory is made if needed; an S3 endpoint is not contacted yet: call
    /// [`Store::probe`] before trusting it.
    pub fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        match &config.url {
            StoreUrl::Directory(path) => Self::open_directory(path.clone()),
            StoreUrl::S3 { bucket, prefix } => {
                let s3 = Arc::new(S3::open(bucket, &config.s3, config.public_endpoint.as_ref())?);
                let prefix = Path::parse(prefix).expect("the URL was checked");
                Ok(Self::new(s3.objects(), prefix, Backend::S3(s3)))
            }
        }
    }

    fn open_directory(path: PathBuf) -> Result<Self, StoreError> {
        let shown = path.display().to_string();
        let (objects, directory) = Directory::open(path).map_err(|error| StoreError::Refused {
            reason: format!("cannot use directory {shown:?}: {error}"),
        })?;
        Ok(Self::new(Arc::new(objects), Path::default(), Backend::Directory(Arc::new(directory))))
    }

    /// A store in memory, for tests.
    pub fn in_memory() -> Self {
        Self::new(Arc::new(InMemory::new()), Path::default(), Backend::Memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_urls() {
        let s3 = |bucket: &str, prefix: &str| StoreUrl::S3 {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        };
        for (text, expected) in [
            ("s3://cache", s3("cache", "")),
            ("s3://cache/", s3("cache", "")),
            ("s3://cache/a/b/", s3("cache", "a/b")),
            ("file:///var/lib/hydrant", StoreUrl::Directory("/var/lib/hydrant".into())),
            ("/data", StoreUrl::Directory("/data".into())),
            ("data/store", StoreUrl::Directory("data/store".into())),
            ("./s3:/x", StoreUrl::Directory("./s3:/x".into())),
            ("data/a:b", StoreUrl::Directory("data/a:b".into())),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for bad in [
            "",
            "s3://",
            "s3://a",
            "s3://key:secret@cache",
            "s3://cache/../x",
            "s3://cache?x=1",
            "gs://cache",
            "s3:/x",
            "s3:x",
            "S3:",
            "http:/host/x",
            "file:/data",
            "file://host/dir",
        ] {
            let refused = bad.parse::<StoreUrl>().expect_err(bad).to_string();
            assert!(refused.contains("s3://bucket") && refused.contains("`./`"), "{refused}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let settings = S3Settings::from_vars([("AWS_SECRET_ACCESS_KEY", "hush"), ("HOME", "/")]);
        let shown = format!("{settings:?}");
        assert!(shown.contains("AWS_SECRET_ACCESS_KEY") && !shown.contains("hush"), "{shown}");
        assert!(!shown.contains("HOME"), "{shown}");
    }
}
