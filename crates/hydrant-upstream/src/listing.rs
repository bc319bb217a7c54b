//! Tag lists and referrers of an upstream.
//!
//! The models are oci-client's; the requests are ours. Its own client follows redirects unchecked,
//! takes no resolver and reads bodies without a limit, so it must not speak to the network here.

use crate::{
    body::{self, Unread},
    error::UpstreamError,
    exchange::Reply,
};
use bytes::Bytes;
use http::header::LINK;
use hydrant_proto::{Manifest, Tag, manifest::MAX_MANIFEST_BYTES};
use oci_client::client::TagResponse;
use std::time::Duration;

/// One page of an upstream's tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagPage {
    /// In the upstream's order; what is not a tag by the spec's grammar is left out.
    pub tags: Vec<Tag>,
    /// Whether the upstream has more after the last.
    pub more: bool,
}

/// Longest tag list read, in bytes: some 100,000 tags.
const MAX_TAGS_BYTES: usize = 8 * 1024 * 1024;
/// Longest wait for a listing.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Reads a tag list.
pub async fn tags(reply: Reply, upstream: &str, what: &str) -> Result<TagPage, UpstreamError> {
    let more = reply.response.headers().contains_key(LINK);
    let body = body::collect(reply.response, MAX_TAGS_BYTES, BODY_TIMEOUT).await;
    let body = body.map_err(|error| unread(error, upstream, what))?;
    // Some registries answer `"tags": null` for a repository without tags.
    let listed: Result<TagResponse, _> = serde_json::from_slice(&body);
    let names = match listed {
        Ok(listed) => listed.tags,
        Err(_) if is_null(&body) => Vec::new(),
        Err(error) => return Err(wrong(upstream, what, error.to_string())),
    };
    Ok(TagPage { tags: names.iter().filter_map(|name| name.parse().ok()).collect(), more })
}

/// Reads an index of referrers (OCI distribution spec 1.1, "Listing Referrers").
pub async fn referrers(reply: Reply, upstream: &str, what: &str) -> Result<Bytes, UpstreamError> {
    let body = body::collect(reply.response, MAX_MANIFEST_BYTES, BODY_TIMEOUT).await;
    let body = body.map_err(|error| unread(error, upstream, what))?;
    match Manifest::parse(&body) {
        Ok(manifest) if manifest.media_type.is_index() => Ok(body),
        Ok(_) => Err(wrong(upstream, what, "it is not an index".to_owned())),
        Err(error) => Err(wrong(upstream, what, error.to_string())),
    }
}

fn is_null(body: &[u8]) -> bool {
    let value: Result<serde_json::Value, _> = serde_json::from_slice(body);
    value.is_ok_and(|value| value.get("tags").is_some_and(serde_json::Value::is_null))
}

fn wrong(upstream: &str, what: &str, detail: String) -> UpstreamError {
    UpstreamError::Integrity { upstream: upstream.to_owned(), what: what.to_owned(), detail }
}

fn unread(unread: Unread, upstream: &str, what: &str) -> UpstreamError {
    let detail = unread.to_string();
    match unread {
        Unread::TooLong(_) => wrong(upstream, what, detail),
        Unread::Broken(_) | Unread::TooSlow(_) => {
            UpstreamError::Down { upstream: upstream.to_owned(), what: what.to_owned(), detail }
        }
    }
}
