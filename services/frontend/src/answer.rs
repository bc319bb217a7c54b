//! Answers: status, headers and content of what a client gets, whatever it was asked from.
//!
//! Content is never converted: a manifest goes out in the media type it has, whatever `Accept`
//! says, as other registries do; a client that cannot take it says so itself.

use crate::{
    body::Content,
    error::{Failure, Said},
    range::Part,
    record::Pulled,
    request::Read,
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        ACCEPT_RANGES, AGE, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
        ETAG, IF_NONE_MATCH, LINK, LOCATION, RETRY_AFTER, WARNING,
    },
};
use hydrant_proto::{Digest, MediaType};
use hydrant_telemetry::metrics::{PullKind, PullOutcome};
use serde_json::json;
use std::{ops::Range, time::Duration};
use tokio::sync::OwnedSemaphorePermit;

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
const SERVED_FROM: HeaderName = HeaderName::from_static("x-hydrant-cache");
const STALE_BECAUSE: HeaderName = HeaderName::from_static("x-hydrant-stale-because");
const ERROR_CLASS: HeaderName = HeaderName::from_static("x-hydrant-error");

/// What a digest names never changes.
const FOR_EVER: HeaderValue = HeaderValue::from_static("max-age=31536000, immutable");
/// What a tag names may change at any time; the `ETag` makes asking again cheap.
const ASK_AGAIN: HeaderValue = HeaderValue::from_static("no-cache");
const STALE: HeaderValue = HeaderValue::from_static("110 - \"Response is Stale\"");

/// What goes back to the client.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub content: Content,
    pub pulled: Option<Pulled>,
    /// Held until the body is through, which comes straight from an upstream.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// What is known of a content without having it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub digest: Option<Digest>,
    pub media_type: Option<MediaType>,
    pub size: Option<u64>,
}

impl Answer {
    fn new(status: StatusCode, content: Content) -> Self {
        let headers = HeaderMap::with_capacity(12);
        Self { status, headers, content, pulled: None, permit: None }
    }

    /// A JSON document of our own making.
    pub fn json(document: &serde_json::Value) -> Self {
        Self::document(StatusCode::OK, "application/json", document)
    }

    /// `media_type` must be a valid header value.
    pub fn document(
        status: StatusCode,
        media_type: &'static str,
        document: &serde_json::Value,
    ) -> Self {
        let bytes = Bytes::from(document.to_string());
        let mut answer = Self::new(status, Content::Empty);
        answer.set(CONTENT_TYPE, HeaderValue::from_static(media_type));
        answer.set(CONTENT_LENGTH, bytes.len().into());
        answer.content = Content::Bytes(bytes);
        answer
    }

    /// The manifest `bytes`; none for HEAD.
    pub fn manifest(facts: &Facts, bytes: Option<Bytes>, by_tag: bool) -> Self {
        let content = bytes.map_or(Content::Empty, Content::Bytes);
        let mut answer = Self::new(StatusCode::OK, content);
        if let Some(media_type) = facts.media_type {
            answer.set(CONTENT_TYPE, HeaderValue::from_static(media_type.as_str()));
        }
        if let Some(size) = facts.size {
            answer.set(CONTENT_LENGTH, size.into());
        }
        if let Some(digest) = &facts.digest {
            answer.names(digest);
        }
        answer.set(CACHE_CONTROL, if by_tag { ASK_AGAIN } else { FOR_EVER });
        answer
    }

    /// A whole blob, or a HEAD's answer about one, of `size` bytes where that is known.
    pub fn blob(digest: &Digest, size: Option<u64>, content: Content) -> Self {
        let mut answer = Self::new(StatusCode::OK, content);
        answer.blob_headers(digest);
        if let Some(size) = size {
            answer.set(CONTENT_LENGTH, size.into());
        }
        answer
    }

    /// Part of a blob of `size` bytes.
    pub fn partial_blob(digest: &Digest, range: &Range<u64>, size: u64, content: Content) -> Self {
        let mut answer = Self::new(StatusCode::PARTIAL_CONTENT, content);
        answer.blob_headers(digest);
        let content_range = format!("bytes {}-{}/{size}", range.start, range.end - 1);
        answer.set_text(CONTENT_RANGE, &content_range);
        answer.set(CONTENT_LENGTH, (range.end - range.start).into());
        answer
    }

    /// A blob that the client fetches from `location`.
    pub fn redirect(digest: &Digest, location: &str) -> Self {
        let mut answer = Self::new(StatusCode::TEMPORARY_REDIRECT, Content::Empty);
        answer.names(digest);
        answer.set_text(LOCATION, location);
        // The signature in the location expires.
        answer.set(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        answer
    }

    /// The error body of the OCI distribution spec, with the class in it and in a header.
    pub fn failed(failure: &Failure, said: &Said) -> Self {
        let document = json!({ "errors": [{
            "code": said.code,
            "message": said.message,
            "detail": { "class": said.class },
        }]});
        let mut answer = Self::document(said.status, "application/json", &document);
        answer.set(ERROR_CLASS, HeaderValue::from_static(said.class));
        if let Some(wait) = said.retry_after {
            answer.set(RETRY_AFTER, wait.as_secs().into());
        }
        if let Failure::Range { size } = failure {
            answer.set_text(CONTENT_RANGE, &format!("bytes */{size}"));
        }
        if said.status == StatusCode::METHOD_NOT_ALLOWED {
            answer.set(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        answer
    }

    /// How it was served, for the client and for the metrics.
    pub fn served(mut self, kind: PullKind, outcome: PullOutcome) -> Self {
        self.pulled = Some(Pulled { kind, outcome, class: None });
        self
    }

    /// How long ago the upstream last confirmed it.
    pub fn aged(mut self, age: Duration) -> Self {
        self.set(AGE, age.as_secs().into());
        self
    }

    /// Says that a newer one may exist, which the failure kept us from finding out.
    pub fn stale(mut self, because: &Failure) -> Self {
        self.set(WARNING, STALE);
        if let Some(class) = because.class() {
            self.set(STALE_BECAUSE, HeaderValue::from_static(class.as_str()));
        }
        if let Some(pulled) = &mut self.pulled {
            (pulled.outcome, pulled.class) = (PullOutcome::Stale, because.class());
        }
        self
    }

    /// Says that a newer one may exist, which is being found out.
    pub fn being_checked(mut self) -> Self {
        self.set(WARNING, STALE);
        self.set(STALE_BECAUSE, HeaderValue::from_static("being-checked"));
        if let Some(pulled) = &mut self.pulled {
            pulled.outcome = PullOutcome::Stale;
        }
        self
    }

    /// The next page of a list. `target` is a path and query made of valid names.
    pub fn followed_by(mut self, target: &str) -> Self {
        self.set_text(LINK, &format!("<{target}>; rel=\"next\""));
        self
    }

    pub fn filtered_by_artifact_type(mut self) -> Self {
        self.set(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
        self
    }

    /// The last touch, the same for every answer: HEAD has no body, 304 where the client has it.
    pub fn finish(mut self, read: Read, asked: &HeaderMap) -> Self {
        self.set(API_VERSION, HeaderValue::from_static("registry/2.0"));
        if let Some(pulled) = self.pulled {
            self.set(SERVED_FROM, HeaderValue::from_static(pulled.outcome.as_str()));
        }
        let is_had = |etag: &HeaderValue| is_had(asked, etag.as_bytes());
        if self.status == StatusCode::OK && self.headers.get(ETAG).is_some_and(is_had) {
            self.status = StatusCode::NOT_MODIFIED;
            self.headers.remove(CONTENT_LENGTH);
            self.content = Content::Empty;
        }
        if read == Read::Head {
            self.content = Content::Empty;
        }
        self
    }

    fn blob_headers(&mut self, digest: &Digest) {
        self.names(digest);
        self.set(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        self.set(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        self.set(CACHE_CONTROL, FOR_EVER);
    }

    fn names(&mut self, digest: &Digest) {
        self.set_text(ETAG, &etag(digest));
        self.set_text(CONTENT_DIGEST, &digest.to_string());
    }

    pub fn set(&mut self, name: HeaderName, value: HeaderValue) {
        self.headers.insert(name, value);
    }

    /// Leaves the header out when `value` cannot stand in one.
    pub fn set_text(&mut self, name: HeaderName, value: &str) {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
    }
}

fn etag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

/// Whether the client says by `If-None-Match` that it has what `etag` names.
fn is_had(asked: &HeaderMap, etag: &[u8]) -> bool {
    asked.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value
            .split(',')
            .map(str::trim)
            .any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one).as_bytes() == etag)
    })
}

/// What part of a content of `size` bytes to send, by the `Range` header. `If-Range` is honoured by
/// its validator: what a digest names has one version only, so any other validator means "whole".
/// Of what the client has it gets no part (RFC 9110, 13.2.2: `If-None-Match` comes before `Range`).
pub fn wanted_part(asked: &HeaderMap, digest: &Digest, size: u64) -> Result<Part, Failure> {
    use http::header::{IF_RANGE, RANGE};
    let range = asked.get(RANGE).and_then(|value| value.to_str().ok());
    if range.is_some() && is_had(asked, etag(digest).as_bytes()) {
        return Ok(Part::Whole);
    }
    let other_version = asked
        .get(IF_RANGE)
        .is_some_and(|validator| validator.as_bytes() != etag(digest).as_bytes());
    match Part::of(range.filter(|_| !other_version), size) {
        Part::Unsatisfiable => Err(Failure::Range { size }),
        part => Ok(part),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Audience, What};

    fn asked(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn what_the_client_has_is_not_sent_again() {
        let digest = Digest::of(b"x");
        let facts = Facts { digest: Some(digest.clone()), media_type: None, size: Some(1) };
        for (value, status) in [
            (format!("\"{digest}\""), 304),
            (format!("\"a\", W/\"{digest}\""), 304),
            ("*".to_owned(), 304),
            ("\"a\"".to_owned(), 200),
        ] {
            let answer = Answer::manifest(&facts, Some(Bytes::from_static(b"x")), true)
                .finish(Read::Get, &asked(IF_NONE_MATCH, &value));
            assert_eq!(answer.status, status, "{value}");
        }
    }

    #[test]
    fn of_what_the_client_has_no_part_is_sent() {
        let digest = Digest::of(b"x");
        for (range, had, expected) in [
            ("bytes=1-2", &digest, Some(Part::Whole)),
            ("bytes=9-", &digest, Some(Part::Whole)),
            ("bytes=1-2", &Digest::of(b"y"), Some(Part::Bytes(1..3))),
            ("bytes=9-", &Digest::of(b"y"), None),
        ] {
            let mut headers = asked(http::header::RANGE, range);
            headers.insert(IF_NONE_MATCH, etag(had).parse().unwrap());
            assert_eq!(wanted_part(&headers, &digest, 9).ok(), expected, "{range}");
        }
    }

    #[test]
    fn a_range_of_another_version_is_the_whole() {
        let digest = Digest::of(b"x");
        let mut headers = asked(http::header::RANGE, "bytes=1-2");
        assert_eq!(wanted_part(&headers, &digest, 9).unwrap(), Part::Bytes(1..3));
        headers.insert(http::header::IF_RANGE, HeaderValue::from_static("\"other\""));
        assert_eq!(wanted_part(&headers, &digest, 9).unwrap(), Part::Whole);
        let past = asked(http::header::RANGE, "bytes=9-");
        assert!(matches!(wanted_part(&past, &digest, 9), Err(Failure::Range { size: 9 })));
    }

    #[test]
    fn errors_name_their_class_in_header_and_body() {
        let failure = Failure::Missing(What::Blob);
        let answer = Answer::failed(&failure, &failure.said(Audience::Direct));
        assert_eq!(answer.status, 404);
        assert_eq!(answer.headers[ERROR_CLASS], "unknown");
        let Content::Bytes(body) = answer.content else { panic!("a body") };
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["errors"][0]["code"], "BLOB_UNKNOWN");
        assert_eq!(body["errors"][0]["detail"]["class"], "unknown");
    }
}
