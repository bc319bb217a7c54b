//! What a digest belongs to, as far as clients of this process have shown it: the tag that was
//! resolved to it, the index that names it, the size that a manifest gives it. So a child that is
//! missed is a miss of what the user named, and the image is hydrated and announced once, under
//! that name.

use crate::place::Spot;
use hydrant_proto::{Digest, Manifest, Platform, Reference, Tag, manifest::MAX_DEPTH};
use hydrant_store::Wanted;
use moka::sync::Cache;
use std::time::Duration;

/// Children and tags that are remembered.
const CAPACITY: u64 = 100_000;
/// A client asks for what an index or manifest names soon after it got it.
const KEPT_FOR: Duration = Duration::from_secs(60 * 60);
/// A client that resolved a tag asks for its digest at once. Later the digest is meant as such: the
/// tag may have moved on.
const NAMED_FOR: Duration = Duration::from_secs(2 * 60);

/// Known relations. Losing one costs a job of its own for the child.
pub struct Family {
    tags: Cache<Spot<Digest>, Tag>,
    parents: Cache<Spot<Digest>, Parent>,
    sizes: Cache<Spot<Digest>, u64>,
}

#[derive(Clone, Debug)]
struct Parent {
    digest: Digest,
    platform: Option<Platform>,
}

impl Family {
    pub fn new() -> Self {
        Self { tags: cache(NAMED_FOR), parents: cache(KEPT_FOR), sizes: cache(KEPT_FOR) }
    }

    /// A client was told that `tag` names `spot`.
    pub fn named(&self, spot: Spot<Digest>, tag: &Tag) {
        // Reading is cheaper than writing, and hits come often.
        if self.tags.get(&spot).as_ref() != Some(tag) {
            self.tags.insert(spot, tag.clone());
        }
    }

    /// A client was shown `manifest`, which is at `spot`.
    pub fn shown(&self, spot: &Spot<Digest>, manifest: &Manifest) {
        for child in manifest.children() {
            let parent = Parent { digest: spot.what.clone(), platform: child.platform.clone() };
            self.parents.insert(Spot { what: child.digest.clone(), ..spot.clone() }, parent);
        }
        for blob in manifest.blobs() {
            self.sizes.insert(Spot { what: blob.digest.clone(), ..spot.clone() }, blob.size);
        }
    }

    /// The size in bytes that a manifest here gives the blob at `spot`.
    pub fn size(&self, spot: &Spot<Digest>) -> Option<u64> {
        self.sizes.get(spot)
    }

    /// What the user named when a client asks for the digest at `spot`, and what is wanted of it.
    pub fn root(&self, spot: &Spot<Digest>) -> (Reference, Wanted) {
        let wanted = match self.parents.get(spot) {
            None => Wanted::Whole,
            Some(Parent { platform: Some(platform), .. }) => Wanted::Platform(platform),
            Some(Parent { platform: None, .. }) => Wanted::Child(spot.what.clone()),
        };
        let mut top = spot.clone();
        for _ in 1..MAX_DEPTH {
            let Some(parent) = self.parents.get(&top) else { break };
            top.what = parent.digest;
        }
        let reference = match self.tags.get(&top) {
            Some(tag) => Reference::Tag(tag),
            None => Reference::Digest(top.what),
        };
        (reference, wanted)
    }
}

fn cache<V: Clone + Send + Sync + 'static>(kept_for: Duration) -> Cache<Spot<Digest>, V> {
    Cache::builder().max_capacity(CAPACITY).time_to_live(kept_for).build()
}
