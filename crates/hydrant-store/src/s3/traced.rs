//! The client of S3 with a span around each request, where spans are exported: there the library's
//! own requests are to be seen, repeats included.

use hydrant_telemetry::spans::{self, S3Request};
use object_store::{
    ClientOptions, Result,
    client::{
        HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService,
        ReqwestConnector,
    },
};
use std::pin::Pin;
use tracing::Instrument;

/// Connects to one bucket.
#[derive(Debug)]
pub(super) struct Traced {
    pub bucket: String,
}

impl HttpConnector for Traced {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient> {
        let plain = ReqwestConnector::default().connect(options)?;
        if !spans::exported() {
            return Ok(plain);
        }
        Ok(HttpClient::new(Service { plain, bucket: self.bucket.clone() }))
    }
}

#[derive(Debug)]
struct Service {
    plain: HttpClient,
    bucket: String,
}

impl HttpService for Service {
    // As `async_trait` writes it.
    fn call<'a, 'b>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = std::result::Result<HttpResponse, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let Some(about) = about(&request, &self.bucket) else {
                return self.plain.execute(request).await;
            };
            let span = spans::s3(&about);
            let answer = self.plain.execute(request).instrument(span.clone()).await;
            let outcome = answer.as_ref().map(|answer| answer.status().as_u16());
            spans::ended(&span, outcome.map_err(|_| "transport"));
            answer
        })
    }
}

/// What a request is about; `None` when it is none to the bucket, as where credentials come from.
fn about<'r>(request: &'r HttpRequest, bucket: &'r str) -> Option<S3Request<'r>> {
    let uri = request.uri();
    let (address, path) = (uri.host()?, uri.path().trim_start_matches('/'));
    let named_by_host = address.strip_prefix(bucket).is_some_and(|domain| domain.starts_with('.'));
    let key = match path.strip_prefix(bucket) {
        _ if named_by_host => path,
        Some(rest) if rest.is_empty() || rest.starts_with('/') => rest.trim_start_matches('/'),
        Some(_) | None => return None,
    };
    let key = Some(key).filter(|key| !key.is_empty());
    let method = method(request.method().as_str(), key.is_some(), uri.query().unwrap_or_default());
    Some(S3Request { method, bucket, key, address, port: uri.port_u16() })
}

/// S3's own name of a request.
fn method(verb: &str, has_key: bool, query: &str) -> &'static str {
    let has = |name: &str| {
        query.split('&').any(|pair| pair.split('=').next().is_some_and(|key| key == name))
    };
    match (verb, has_key) {
        ("GET", true) if has("uploadId") => "ListParts",
        ("GET", true) => "GetObject",
        ("GET", false) if has("uploads") => "ListMultipartUploads",
        ("GET", false) => "ListObjectsV2",
        ("HEAD", true) => "HeadObject",
        ("PUT", true) if has("uploadId") => "UploadPart",
        ("PUT", true) => "PutObject",
        ("POST", true) if has("uploadId") => "CompleteMultipartUpload",
        ("POST", true) => "CreateMultipartUpload",
        ("POST", false) => "DeleteObjects",
        ("DELETE", true) if has("uploadId") => "AbortMultipartUpload",
        ("DELETE", true) => "DeleteObject",
        _ => "_OTHER",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::client::HttpRequestBody;

    #[test]
    fn requests_are_named_as_s3_names_them_and_others_are_none_of_ours() {
        for (verb, url, expected) in [
            ("GET", "http://s3:9000/cache/a/b?x=y", Some(("GetObject", Some("a/b")))),
            ("PUT", "https://cache.s3.amazonaws.com/a", Some(("PutObject", Some("a")))),
            ("PUT", "http://s3/cache/a?partNumber=1&uploadId=2", Some(("UploadPart", Some("a")))),
            ("POST", "http://s3/cache/a?uploads", Some(("CreateMultipartUpload", Some("a")))),
            ("POST", "http://s3/cache/a?uploadId=2", Some(("CompleteMultipartUpload", Some("a")))),
            ("DELETE", "http://s3/cache/a?uploadId=2", Some(("AbortMultipartUpload", Some("a")))),
            ("GET", "http://s3/cache?uploads=&prefix=a", Some(("ListMultipartUploads", None))),
            ("GET", "http://s3/cache?list-type=2", Some(("ListObjectsV2", None))),
            ("POST", "http://s3/cache?delete", Some(("DeleteObjects", None))),
            ("GET", "http://s3/cached/a", None),
            ("POST", "https://sts.amazonaws.com/?Action=x", None),
            ("GET", "http://169.254.169.254/latest/meta-data", None),
        ] {
            let mut request = HttpRequest::new(HttpRequestBody::empty());
            *request.method_mut() = verb.parse().unwrap();
            *request.uri_mut() = url.parse().unwrap();
            let found = about(&request, "cache").map(|about| (about.method, about.key));
            assert_eq!(found, expected, "{verb} {url}");
        }
    }
}
