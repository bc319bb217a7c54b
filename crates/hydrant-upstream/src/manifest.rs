//! Manifests: fetched whole, and handed out only when digest, media type and shape agree.

use crate::{
    body::{self, Unread},
    error::UpstreamError,
    exchange::Reply,
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use hydrant_proto::{
    Digest, InvalidManifest, Manifest, MediaType, Reference, manifest::MAX_MANIFEST_BYTES,
};
use std::time::Duration;

/// What a HEAD tells of a manifest. All of it is the upstream's word, nothing is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Absent when the upstream does not say; only a GET tells then.
    pub digest: Option<Digest>,
    /// Absent when it is not one hydrant carries.
    pub media_type: Option<MediaType>,
    /// In bytes.
    pub size: Option<u64>,
}

/// A verified manifest: `bytes` hash to `digest`, and to the digest asked for if one was; they
/// parse as a manifest of `media_type`, which is what the upstream called them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedManifest {
    pub digest: Digest,
    pub media_type: MediaType,
    pub bytes: Bytes,
}

/// Longest wait for the body of a manifest.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// What is expected of an answer, and who to name when it is not so.
pub struct Expected<'a> {
    pub upstream: &'a str,
    pub what: &'a str,
    pub reference: &'a Reference,
}

/// Every manifest media type hydrant carries, always all of them, so that an index is never
/// answered with one of its children.
pub fn accept() -> HeaderValue {
    let types = MediaType::ALL.map(MediaType::as_str).join(", ");
    HeaderValue::from_str(&types).expect("media types are valid header values")
}

impl Expected<'_> {
    pub fn head(&self, headers: &HeaderMap) -> Result<Head, UpstreamError> {
        let kind = text(headers, CONTENT_TYPE.as_str());
        if kind.is_some_and(|kind| kind.starts_with("text/")) {
            return Err(self.wrong("it answered a web page"));
        }
        let digest = told_digest(headers);
        if let (Some(told), Some(asked)) = (&digest, self.reference.digest())
            && told.algorithm() == asked.algorithm()
            && told != asked
        {
            return Err(self.wrong(format!("it names another digest, {told}")));
        }
        let size = text(headers, CONTENT_LENGTH.as_str()).and_then(|size| size.parse().ok());
        Ok(Head { digest, media_type: kind.and_then(MediaType::parse), size })
    }

    /// Reads the body and checks everything there is to check.
    pub async fn read(&self, reply: Reply) -> Result<FetchedManifest, UpstreamError> {
        let headers = reply.response.headers().clone();
        let body = body::collect(reply.response, MAX_MANIFEST_BYTES, BODY_TIMEOUT).await;
        let bytes = body.map_err(|unread| self.unread(unread))?;
        self.check(&headers, bytes)
    }

    fn check(&self, headers: &HeaderMap, bytes: Bytes) -> Result<FetchedManifest, UpstreamError> {
        let digest = self.digest(headers, &bytes)?;
        let kind = text(headers, CONTENT_TYPE.as_str());
        if kind.is_some_and(is_schema_1) {
            return Err(self.unsupported(InvalidManifest::Schema1.to_string()));
        }
        let manifest = Manifest::parse(&bytes).map_err(|invalid| match invalid {
            InvalidManifest::Schema1 => self.unsupported(invalid.to_string()),
            other => self.wrong(other.to_string()),
        })?;
        let media_type = manifest.media_type;
        match kind.map(MediaType::parse) {
            Some(told) if told != Some(media_type) => {
                Err(self.wrong(format!("its content type is not the document's, {media_type}")))
            }
            _ => Ok(FetchedManifest { digest, media_type, bytes }),
        }
    }

    fn digest(&self, headers: &HeaderMap, bytes: &[u8]) -> Result<Digest, UpstreamError> {
        if let Some(told) = told_digest(headers).filter(|told| !told.matches(bytes)) {
            return Err(self.wrong(format!("the bytes do not hash to the digest it names, {told}")));
        }
        match self.reference {
            Reference::Tag(_) => Ok(Digest::of(bytes)),
            Reference::Digest(asked) if asked.matches(bytes) => Ok(asked.clone()),
            Reference::Digest(_) => {
                Err(self.wrong("the bytes do not hash to the digest asked for"))
            }
        }
    }

    fn unread(&self, unread: Unread) -> UpstreamError {
        match unread {
            Unread::TooLong(_) => self.wrong(unread.to_string()),
            Unread::Broken(_) | Unread::TooSlow(_) => UpstreamError::Down {
                upstream: self.upstream.to_owned(),
                what: self.what.to_owned(),
                detail: unread.to_string(),
            },
        }
    }

    fn wrong(&self, detail: impl Into<String>) -> UpstreamError {
        let (upstream, what) = (self.upstream.to_owned(), self.what.to_owned());
        UpstreamError::Integrity { upstream, what, detail: detail.into() }
    }

    fn unsupported(&self, detail: String) -> UpstreamError {
        let (upstream, what) = (self.upstream.to_owned(), self.what.to_owned());
        UpstreamError::Unsupported { upstream, what, detail }
    }
}

/// `Docker-Content-Digest`, when it is a digest we know.
fn told_digest(headers: &HeaderMap) -> Option<Digest> {
    text(headers, "docker-content-digest")?.parse().ok()
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn is_schema_1(kind: &str) -> bool {
    kind.starts_with("application/vnd.docker.distribution.manifest.v1+")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hydrant_proto::FailureClass;
    use serde_json::json;

    fn manifest() -> Bytes {
        let blob = json!({"mediaType": "application/x", "size": 1, "digest": Digest::of(b"x")});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MediaType::OciManifest, "config": blob, "layers": [],
        });
        manifest.to_string().into()
    }

    fn headers(kind: &str, digest: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [(CONTENT_TYPE.as_str(), kind), ("docker-content-digest", digest)] {
            if !value.is_empty() {
                let name = http::HeaderName::try_from(name).unwrap();
                headers.insert(name, value.parse().unwrap());
            }
        }
        headers
    }

    fn check(reference: &str, headers: &HeaderMap, bytes: Bytes) -> Result<Digest, FailureClass> {
        let reference = reference.parse().unwrap();
        let expected = Expected { upstream: "lab", what: "manifest a", reference: &reference };
        expected.check(headers, bytes).map(|found| found.digest).map_err(|error| error.class())
    }

    #[test]
    fn everything_must_agree() {
        let (bytes, oci) = (manifest(), MediaType::OciManifest.as_str());
        let digest = Digest::of(&bytes);
        let (right, wrong) = (digest.to_string(), Digest::of(b"other").to_string());
        for (reference, kind, told, fine) in [
            ("latest", oci, right.as_str(), true),
            ("latest", oci, "", true),
            ("latest", "", "", true),
            ("latest", oci, "junk", true),
            (&right, oci, &right, true),
            (&right, &format!("{oci}; charset=utf-8"), "", true),
            (&wrong, oci, "", false),
            (&wrong, oci, &wrong, false),
            ("latest", oci, &wrong, false),
            ("latest", "application/json", "", false),
            ("latest", "text/html", "", false),
            ("latest", MediaType::DockerManifest.as_str(), "", false),
        ] {
            let found = check(reference, &headers(kind, told), bytes.clone());
            let expected = if fine { Ok(digest.clone()) } else { Err(FailureClass::Integrity) };
            assert_eq!(found, expected, "{reference} {kind} {told}");
        }
    }

    #[test]
    fn schema_1_is_unsupported_and_junk_is_wrong() {
        let v1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        for (kind, body, class) in [
            (v1, "{}", FailureClass::Unsupported),
            ("", r#"{"schemaVersion":1,"name":"a"}"#, FailureClass::Unsupported),
            ("text/html", "<html>", FailureClass::Integrity),
            ("", "", FailureClass::Integrity),
        ] {
            let found = check("latest", &headers(kind, ""), Bytes::from_static(body.as_bytes()));
            assert_eq!(found, Err(class), "{body}");
        }
    }
}
