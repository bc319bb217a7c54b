//! What a digest belongs to, as far as clients of this process have shown it: the tag that was
//! resolved to it, and the index that names it. So a child that is missed is a miss of what the
//! user named, and the image is hydrated and announced once, under that name.

use crate::place::Spot;
use hydrant_proto::{Digest, Manifest, Platform, Reference, Tag, manifest::MAX_DEPTH};
use hydrant_store::Wanted;
use moka::sync::Cache;
use std::time::Duration;

/// Children and tags that are remembered.
const CAPACITY: u64 = 100_000;
/// A client asks for the children of an index within seconds; a long-lived one resolves again.
const KEPT_FOR: Duration = Duration::from_secs(60 * 60);

/// Known relations. Losing one costs a job of its own for the child.
pub struct Family {
    tags: Cache<Spot<Digest>, Tag>,
    parents: Cache<Spot<Digest>, Parent>,
}

#[derive(Clone, Debug)]
struct Parent {
    digest: Digest,
    platform: Option<Platform>,
}

impl Family {
    pub fn new() -> Self {
        Self { tags: cache(), parents: cache() }
    }

    /// A client was told that `tag` names `spot`.
    pub fn named(&self, spot: Spot<Digest>, tag: &Tag) {
        self.tags.insert(spot, tag.clone());
    }

    /// A client was shown `manifest`, which is at `spot`.
    pub fn shown(&self, spot: &Spot<Digest>, manifest: &Manifest) {
        for child in manifest.children() {
            let parent = Parent { digest: spot.what.clone(), platform: child.platform.clone() };
            self.parents.insert(Spot { what: child.digest.clone(), ..spot.clone() }, parent);
        }
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

fn cache<V: Clone + Send + Sync + 'static>() -> Cache<Spot<Digest>, V> {
    Cache::builder().max_capacity(CAPACITY).time_to_live(KEPT_FOR).build()
}
