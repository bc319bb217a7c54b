//! What only S3 has: its client, presigned URLs, and the list of open multipart uploads.

mod traced;

use crate::{
    error::{StoreError, classify},
    object::timed,
    open::S3Settings,
};
use hydrant_telemetry::metrics::StoreOperation;
use jiff::Timestamp;
use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut},
    client::{HttpClient, HttpConnector, HttpRequest, HttpRequestBody},
    multipart::{MultipartStore, PartId},
    path::Path,
    signer::{Method, SignedUrlOptions, Signer},
};
use std::{sync::Arc, time::Duration};
use traced::Traced;
use url::Url;

/// Longest silence of the server, body included; also the time one part may take to be sent,
/// which asks for 280 kB/s.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// The client library is the one layer that retries requests to S3, within this time.
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);
const MAX_RETRIES: usize = 6;
/// Life of the URLs that list uploads.
const LIST_TTL: Duration = Duration::from_secs(300);
/// Whether signatures leave out the hash of the body.
const UNSIGNED_PAYLOAD: &str = "AWS_UNSIGNED_PAYLOAD";

#[derive(Debug)]
pub(crate) struct S3 {
    client: Arc<AmazonS3>,
    /// Signs with the endpoint that clients reach.
    signer: AmazonS3,
    http: HttpClient,
}

/// A multipart upload that was neither completed nor aborted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OpenUpload {
    pub key: String,
    pub upload_id: String,
    pub started_at: Timestamp,
}

/// A part that an upload has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredPart {
    pub number: u64,
    pub size: u64,
    pub tag: String,
}

impl StoredPart {
    pub(crate) fn id(&self) -> PartId {
        PartId { content_id: self.tag.clone() }
    }
}

impl S3 {
    pub(crate) fn open(
        bucket: &str,
        settings: &S3Settings,
        public_endpoint: Option<&Url>,
    ) -> Result<Self, StoreError> {
        let refused = |error: object_store::Error| StoreError::Refused {
            reason: format!("S3 settings of bucket `{bucket}` are not usable: {error}"),
        };
        check_unsigned_payload(settings)?;
        let builder = builder(bucket, settings);
        let client = builder.clone().build().map_err(refused)?;
        let signer = match public_endpoint {
            None => client.clone(),
            Some(url) => {
                let url = url.as_str().trim_end_matches('/');
                builder.with_endpoint(url).with_allow_http(true).build().map_err(refused)?
            }
        };
        // The builders have already refused a plain endpoint that is not allowed.
        let options = client_options().with_allow_http(true);
        let traced = Traced { bucket: bucket.to_owned() };
        let http = traced.connect(&options).map_err(refused)?;
        Ok(Self { client: Arc::new(client), signer, http })
    }

    pub(crate) fn objects(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.client) as Arc<dyn ObjectStore>
    }

    pub(crate) fn multipart(&self) -> Arc<dyn MultipartStore> {
        Arc::clone(&self.client) as Arc<dyn MultipartStore>
    }

    /// A URL by which anyone may GET the object until `ttl` is over.
    pub(crate) async fn presign(&self, path: &Path, ttl: Duration) -> Result<Url, StoreError> {
        let signed = self.signer.signed_url(Method::GET, path, ttl);
        timed(StoreOperation::Presign, signed).await.map_err(|error| classify(path, error))
    }

    pub(crate) async fn abort(&self, upload: &OpenUpload) -> Result<(), StoreError> {
        let path = Path::parse(&upload.key).map_err(|error| classify_path(&upload.key, error))?;
        match self.client.abort_multipart(&path, &upload.upload_id).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(classify(&path, error)),
        }
    }

    /// Every open upload below a full key.
    pub(crate) async fn open_uploads(&self, below: &Path) -> Result<Vec<OpenUpload>, StoreError> {
        let (mut found, mut marker) = (Vec::new(), None);
        loop {
            let text = self.list_page(below, marker.as_ref()).await?;
            found.extend(elements(&text, "Upload").filter_map(parse_upload));
            marker = next_marker(&text);
            if marker.is_none() {
                return Ok(found);
            }
        }
    }

    /// Every part of an open upload, by number; `None` when there is no such upload.
    pub(crate) async fn parts(
        &self,
        path: &Path,
        upload: &str,
    ) -> Result<Option<Vec<StoredPart>>, StoreError> {
        let (mut found, mut marker) = (Vec::new(), String::new());
        loop {
            let mut query = vec![("uploadId", upload.to_owned())];
            if !marker.is_empty() {
                query.push(("part-number-marker", marker));
            }
            let Some(text) = self.asked(path, query, path).await? else { return Ok(None) };
            found.extend(elements(&text, "Part").filter_map(parse_part));
            marker = elements(&text, "NextPartNumberMarker").next().unwrap_or_default().to_owned();
            let is_more = elements(&text, "IsTruncated").next() == Some("true");
            if !is_more || marker.is_empty() {
                return Ok(Some(found));
            }
        }
    }

    /// One answer of ListMultipartUploads.
    async fn list_page(&self, below: &Path, marker: Option<&Marker>) -> Result<String, StoreError> {
        let mut query = vec![("uploads", String::new()), ("prefix", below.to_string())];
        if let Some(marker) = marker {
            query.push(("key-marker", marker.key.clone()));
            query.push(("upload-id-marker", marker.upload_id.clone()));
        }
        let text = self.asked(&Path::default(), query, below).await?;
        text.ok_or_else(|| unavailable(below, "listing uploads: status code: 404".to_owned()))
    }

    /// The answer to a GET of a list; `None` when what is listed is not there. `object_store` has no
    /// such calls, but signs any.
    async fn asked(
        &self,
        path: &Path,
        query: Vec<(&str, String)>,
        about: &Path,
    ) -> Result<Option<String>, StoreError> {
        let options = SignedUrlOptions::new().with_query(query);
        let url = self.client.signed_url_opts(Method::GET, path, LIST_TTL, &options).await;
        let url = url.map_err(|error| classify(about, error))?;
        let unavailable = |error: String| unavailable(about, error);
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = url.as_str().parse().expect("a signed URL is a URI");
        let answer = self.http.execute(request).await.map_err(|e| unavailable(e.to_string()))?;
        let status = answer.status();
        let body = answer.into_body().bytes().await.map_err(|e| unavailable(e.to_string()))?;
        match status.as_u16() {
            404 => Ok(None),
            _ if status.is_success() => Ok(Some(String::from_utf8_lossy(&body).into_owned())),
            _ => Err(unavailable(format!("listing: status code: {status}"))),
        }
    }
}

fn unavailable(about: &Path, error: String) -> StoreError {
    let cause = Arc::new(std::io::Error::other(error));
    StoreError::Unavailable { key: about.to_string(), cause }
}

fn builder(bucket: &str, settings: &S3Settings) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::new()
        .with_client_options(client_options())
        .with_http_connector(Traced { bucket: bucket.to_owned() })
        // The default; a setting decides otherwise.
        .with_unsigned_payload(is_over_tls(settings));
    for (name, value) in settings.vars() {
        if let Ok(key) = name.to_ascii_lowercase().parse() {
            builder = builder.with_config(key, value);
        }
    }
    if is_anonymous(settings) {
        builder = builder.with_skip_signature(true);
    }
    let put = S3ConditionalPut::ETagMatch;
    builder.with_bucket_name(bucket).with_conditional_put(put).with_retry(retry())
}

fn retry() -> RetryConfig {
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(100),
        max_backoff: Duration::from_secs(5),
        base: 2.0,
    };
    RetryConfig { backoff, max_retries: MAX_RETRIES, retry_timeout: RETRY_TIMEOUT }
}

/// Whether an endpoint other than Amazon's is named and no credential of any kind. Amazon's would
/// be asked with the credential of the machine, which elsewhere is nowhere to be had.
fn is_anonymous(settings: &S3Settings) -> bool {
    let has = |part: &str| settings.vars().any(|(name, _)| name.contains(part));
    let is_elsewhere = settings
        .vars()
        .any(|(name, url)| name.starts_with("AWS_ENDPOINT") && !url.contains("amazonaws.com"));
    is_elsewhere && !["ACCESS_KEY", "ROLE", "TOKEN", "CREDENTIALS"].into_iter().any(has)
}

/// Over TLS, which guards the body as well, its hash is left out of the signature, as the AWS SDKs do
/// it: that would be a second SHA-256 of every byte. Over plain http nothing else guards it.
fn is_over_tls(settings: &S3Settings) -> bool {
    let endpoint = |names: &[&str]| settings.vars().filter(|(name, _)| names.contains(name)).last();
    let endpoint = endpoint(&["AWS_ENDPOINT_URL_S3"])
        .or_else(|| endpoint(&["AWS_ENDPOINT_URL", "AWS_ENDPOINT"]));
    endpoint.is_none_or(|(_, url)| url.to_ascii_lowercase().starts_with("https://"))
}

fn check_unsigned_payload(settings: &S3Settings) -> Result<(), StoreError> {
    match settings.vars().find(|(name, _)| *name == UNSIGNED_PAYLOAD) {
        Some((_, value)) if !["true", "false"].contains(&value) => Err(StoreError::Refused {
            reason: format!("{UNSIGNED_PAYLOAD} must be `true` or `false`, not {value:?}"),
        }),
        _ => Ok(()),
    }
}

/// No time-out of the whole request: it would cover bodies of any size.
fn client_options() -> ClientOptions {
    ClientOptions::new()
        .with_timeout_disabled()
        .with_read_timeout(READ_TIMEOUT)
        .with_connect_timeout(Duration::from_secs(5))
}

fn classify_path(key: &str, error: object_store::path::Error) -> StoreError {
    StoreError::Refused { reason: format!("key {key:?} is not one of ours: {error}") }
}

struct Marker {
    key: String,
    upload_id: String,
}

fn next_marker(text: &str) -> Option<Marker> {
    let truncated = elements(text, "IsTruncated").next() == Some("true");
    let key = elements(text, "NextKeyMarker").next().map(unescape)?;
    let upload_id = elements(text, "NextUploadIdMarker").next().map(unescape)?;
    (truncated && !key.is_empty()).then_some(Marker { key, upload_id })
}

fn parse_upload(text: &str) -> Option<OpenUpload> {
    Some(OpenUpload {
        key: elements(text, "Key").next().map(unescape)?,
        upload_id: elements(text, "UploadId").next().map(unescape)?,
        started_at: elements(text, "Initiated").next()?.parse().ok()?,
    })
}

fn parse_part(text: &str) -> Option<StoredPart> {
    let tag = elements(text, "ETag").next().map(unescape)?;
    Some(StoredPart {
        number: elements(text, "PartNumber").next()?.parse().ok()?,
        size: elements(text, "Size").next()?.parse().ok()?,
        tag: format!("\"{}\"", tag.trim_matches('"')),
    })
}

/// The contents of each `<name>…</name>`. Enough XML for an answer that has no attributes here.
fn elements<'a>(text: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = text;
    std::iter::from_fn(move || {
        let (_, after) = rest.split_once(&open)?;
        let (inside, after) = after.split_once(&close)?;
        rest = after;
        Some(inside)
    })
}

fn unescape(text: &str) -> String {
    text.replace("&#34;", "\"")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::aws::AmazonS3ConfigKey;

    #[test]
    fn requests_are_unsigned_only_without_any_credential_and_off_amazon() {
        let anonymous = |vars: &[(&str, &str)]| is_anonymous(&S3Settings::from_vars(vars.to_vec()));
        let lab = ("AWS_ENDPOINT_URL", "http://127.0.0.1:9000");
        assert!(anonymous(&[lab, ("AWS_REGION", "us-east-1")]));
        assert!(!anonymous(&[lab, ("AWS_ACCESS_KEY_ID", "k")]));
        assert!(!anonymous(&[lab, ("AWS_WEB_IDENTITY_TOKEN_FILE", "/t")]));
        assert!(!anonymous(&[("AWS_ENDPOINT_URL", "https://s3.eu-west-1.amazonaws.com")]));
        assert!(!anonymous(&[]));
    }

    #[test]
    fn bodies_are_signed_unless_tls_guards_them_or_a_setting_says_otherwise() {
        let unsigned = |vars: &[(&str, &str)]| {
            let built = builder("cache", &S3Settings::from_vars(vars.to_vec()));
            built.get_config_value(&AmazonS3ConfigKey::UnsignedPayload).unwrap()
        };
        let (plain, tls) = (("AWS_ENDPOINT_URL", "http://s3:9000"), ("AWS_ENDPOINT", "https://s3"));
        assert_eq!(unsigned(&[]), "true", "Amazon's is reached over TLS");
        assert_eq!(unsigned(&[plain]), "false");
        assert_eq!(unsigned(&[tls]), "true");
        assert_eq!(unsigned(&[tls, ("AWS_ENDPOINT_URL_S3", "http://s3:9000")]), "false");
        assert_eq!(unsigned(&[plain, (UNSIGNED_PAYLOAD, "true")]), "true");
        assert_eq!(unsigned(&[tls, (UNSIGNED_PAYLOAD, "false")]), "false");
        let bad = S3Settings::from_vars([(UNSIGNED_PAYLOAD, "maybe")]);
        let refused = S3::open("cache", &bad, None).unwrap_err().to_string();
        assert!(refused.contains(UNSIGNED_PAYLOAD) && refused.contains("`false`"), "{refused}");
    }

    #[test]
    fn a_listing_of_uploads_is_read() {
        let text = "<ListMultipartUploadsResult><IsTruncated>true</IsTruncated>\
            <NextKeyMarker>b</NextKeyMarker><NextUploadIdMarker>2&amp;3</NextUploadIdMarker>\
            <Upload><Key>a/b</Key><UploadId>1</UploadId>\
            <Initiated>2026-11-23T12:00:00.000Z</Initiated></Upload>\
            <Upload><Key>b</Key></Upload></ListMultipartUploadsResult>";
        let uploads: Vec<_> = elements(text, "Upload").filter_map(parse_upload).collect();
        assert_eq!(uploads.len(), 1);
        assert_eq!((uploads[0].key.as_str(), uploads[0].upload_id.as_str()), ("a/b", "1"));
        assert_eq!(next_marker(text).unwrap().upload_id, "2&3");
    }

    #[test]
    fn a_listing_of_parts_is_read_with_tags_in_any_spelling() {
        let text = "<ListPartsResult><Part><PartNumber>1</PartNumber><Size>5</Size>\
            <ETag>&quot;ab&quot;</ETag></Part><Part><PartNumber>2</PartNumber><Size>6</Size>\
            <ETag>&#34;cd&#34;</ETag></Part><Part><PartNumber>3</PartNumber></Part>";
        let parts: Vec<_> = elements(text, "Part").filter_map(parse_part).collect();
        let part = |number, size, tag: &str| StoredPart { number, size, tag: tag.to_owned() };
        assert_eq!(parts, [part(1, 5, "\"ab\""), part(2, 6, "\"cd\"")]);
    }
}
