//! What the fake upstream holds, and its answers as the distribution spec wants them.

use super::{answer::Draft, route::Route};
use crate::{Content, Image};
use bytes::Bytes;
use hydrant_proto::Digest;
use hyper::{header, http::request::Parts};
use serde_json::json;
use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

#[derive(Default)]
pub(super) struct Repositories(HashMap<String, Repository>);

#[derive(Default)]
struct Repository {
    tags: BTreeMap<String, String>,
    /// By digest, which the bytes need not hash to.
    manifests: HashMap<String, Document>,
    blobs: HashMap<String, Content>,
}

#[derive(Clone)]
struct Document {
    media_type: String,
    bytes: Bytes,
}

impl Repositories {
    pub fn insert(&mut self, image: &Image, repository: &str, tag: &str) {
        let held = self.0.entry(repository.to_owned()).or_default();
        for blob in image.all_blobs() {
            held.blobs.insert(blob.digest.to_string(), blob.content.clone());
        }
        for manifest in image.manifests() {
            let media_type = manifest.media_type.as_str().to_owned();
            let document = Document { media_type, bytes: manifest.manifest.clone() };
            held.manifests.insert(manifest.digest.to_string(), document);
        }
        held.tags.insert(tag.to_owned(), image.digest.to_string());
    }

    pub fn put_manifest(
        &mut self,
        repository: &str,
        reference: &str,
        media_type: &str,
        bytes: Bytes,
    ) {
        let held = self.0.entry(repository.to_owned()).or_default();
        let digest = if reference.contains(':') {
            reference.to_owned()
        } else {
            let digest = Digest::of(&bytes).to_string();
            held.tags.insert(reference.to_owned(), digest.clone());
            digest
        };
        held.manifests.insert(digest, Document { media_type: media_type.to_owned(), bytes });
    }

    pub fn put_blob(&mut self, repository: &str, digest: &Digest, content: Content) {
        let held = self.0.entry(repository.to_owned()).or_default();
        held.blobs.insert(digest.to_string(), content);
    }

    pub fn remove_tag(&mut self, repository: &str, tag: &str) {
        if let Some(held) = self.0.get_mut(repository) {
            held.tags.remove(tag);
        }
    }

    pub fn answer(&self, route: &Route<'_>, parts: &Parts) -> Draft {
        match *route {
            Route::Base | Route::Token => Draft::ok(parts, Content::from("{}")),
            Route::Manifest { repository, reference } => match self.0.get(repository) {
                Some(held) => held.manifest(reference, parts),
                None => Draft::error(404, "NAME_UNKNOWN"),
            },
            Route::Blob { repository, digest } => {
                blob(self.0.get(repository).and_then(|held| held.blobs.get(digest)), digest, parts)
            }
            Route::Cdn { digest } => {
                blob(self.0.values().find_map(|held| held.blobs.get(digest)), digest, parts)
            }
            Route::Tags { repository } => match self.0.get(repository) {
                Some(held) => held.tag_list(repository, parts),
                None => Draft::error(404, "NAME_UNKNOWN"),
            },
        }
    }
}

impl Repository {
    /// Like docker-registry, it knows no manifest whose type the client does not accept.
    fn manifest(&self, reference: &str, parts: &Parts) -> Draft {
        let digest = self.tags.get(reference).map_or(reference, String::as_str);
        let document = self.manifests.get(digest).filter(|doc| accepts(parts, &doc.media_type));
        let Some(document) = document else {
            return Draft::error(404, "MANIFEST_UNKNOWN");
        };
        let mut draft = Draft::ok(parts, Content::Given(document.bytes.clone()));
        draft.set_header("content-type", &document.media_type);
        draft.set_header("docker-content-digest", digest);
        draft
    }

    fn tag_list(&self, repository: &str, parts: &Parts) -> Draft {
        let query = query(parts);
        let last = query.get("last").map_or("", String::as_str);
        let limit = query.get("n").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
        let after = self.tags.keys().filter(|tag| tag.as_str() > last);
        let tags: Vec<&String> = after.clone().take(limit).collect();
        let body = json!({ "name": repository, "tags": tags }).to_string();
        let mut draft = Draft::ok(parts, Content::from(body.into_bytes()));
        draft.set_header("content-type", "application/json");
        if let (true, Some(tag)) = (after.count() > tags.len(), tags.last()) {
            let link = format!("</v2/{repository}/tags/list?last={tag}&n={limit}>; rel=\"next\"");
            draft.set_header("link", &link);
        }
        draft
    }
}

fn accepts(parts: &Parts, media_type: &str) -> bool {
    let mut stated = parts.headers.get_all(header::ACCEPT).iter().peekable();
    stated.peek().is_none()
        || stated.any(|value| {
            let value = value.to_str().unwrap_or_default();
            value.contains("*/*") || value.contains(media_type)
        })
}

fn blob(content: Option<&Content>, digest: &str, parts: &Parts) -> Draft {
    let Some(content) = content else {
        return Draft::error(404, "BLOB_UNKNOWN");
    };
    let mut draft = match range(parts, content.length()) {
        None => Draft::ok(parts, content.clone()),
        Some(Ok(range)) => Draft::partial(parts, content.clone(), range),
        Some(Err(())) => return Draft::error(416, "RANGE_INVALID"),
    };
    draft.set_header("content-type", "application/octet-stream");
    draft.set_header("accept-ranges", "bytes");
    draft.set_header("docker-content-digest", digest);
    draft
}

/// The one range that is asked for; `Err` when it lies outside.
fn range(parts: &Parts, length: u64) -> Option<Result<Range<u64>, ()>> {
    let text = parts.headers.get(header::RANGE)?.to_str().ok()?.strip_prefix("bytes=")?;
    let (first, last) = text.split_once('-')?;
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) => first..length.min(last.saturating_add(1)),
        (Ok(first), Err(_)) => first..length,
        (Err(_), Ok(suffix)) => length.saturating_sub(suffix)..length,
        (Err(_), Err(_)) => return None,
    };
    Some(if range.is_empty() { Err(()) } else { Ok(range) })
}

pub(super) fn query(parts: &Parts) -> HashMap<String, String> {
    let url = format!("http://fake/?{}", parts.uri.query().unwrap_or_default());
    let url: reqwest::Url = url.parse().expect("hyper checked the query");
    url.query_pairs().into_owned().collect()
}
