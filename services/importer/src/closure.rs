//! Everything a manifest needs: the tree of manifests below it, and the blobs they name.
//!
//! The walk is bounded in depth and counts, visits nothing twice, and takes each document from
//! storage where a frontend has staged it already.

use crate::{error::ImportError, import::PRIORITY, platform::Selection};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use hydrant_flight::{Flights, ManifestSource};
use hydrant_proto::{
    Descriptor, Digest, Manifest, Platform, Reference,
    manifest::{MAX_CHILDREN, MAX_DEPTH},
};
use hydrant_rules::Route;
use hydrant_store::Store;
use hydrant_upstream::Client;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// Most blobs of one closure.
const MAX_BLOBS: usize = 10_000;
/// Longest wait for the answer to a HEAD; a worker has time.
const HEAD_BUDGET: Duration = Duration::from_secs(20);
/// Manifests fetched at once.
const WIDTH: usize = 4;

/// A manifest as it stands in the closure.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub digest: Digest,
    pub bytes: Bytes,
    pub manifest: Manifest,
}

/// The tree, flattened.
#[derive(Debug)]
pub(crate) struct Closure {
    /// Children before what names them; the root is last.
    pub manifests: Vec<Node>,
    /// Each once, in the order in which a client asks for them.
    pub blobs: Vec<Descriptor>,
    /// Platforms of the image manifests taken from an index.
    pub platforms: BTreeSet<Platform>,
}

impl Closure {
    pub fn root(&self) -> &Node {
        self.manifests.last().expect("a closure holds its root")
    }

    /// Whether this is an index of which nothing was taken, so that there is nothing to make local.
    pub fn is_bare(&self) -> bool {
        self.manifests.len() == 1 && !self.root().manifest.children().is_empty()
    }

    /// Bytes of all blobs and manifests.
    pub fn size(&self) -> u64 {
        let blobs: u64 = self.blobs.iter().map(|blob| blob.size).sum();
        blobs + self.manifests.iter().map(|node| node.bytes.len() as u64).sum::<u64>()
    }
}

/// Where manifests come from.
pub(crate) struct Manifests<'a> {
    pub store: &'a Store,
    pub flights: &'a Flights,
    pub client: &'a Arc<Client>,
    pub route: &'a Route,
}

impl Manifests<'_> {
    /// The manifest of a digest: visible, staged, or from the upstream, and staged then.
    pub async fn get(&self, digest: &Digest) -> Result<Node, ImportError> {
        let bytes = match self.stored(digest).await? {
            Some(bytes) => bytes,
            None => return self.fetch(&Reference::Digest(digest.clone())).await,
        };
        read(digest.clone(), bytes)
    }

    /// Asks the upstream for a manifest and stages it. What a tag named to somebody else before does
    /// not count.
    pub async fn fetch(&self, reference: &Reference) -> Result<Node, ImportError> {
        let repository = &self.route.upstream_repository;
        let source = ManifestSource {
            client: self.client.clone(),
            upstream_repository: repository.clone(),
            reference: reference.clone(),
            origin: self.route.origin.clone(),
            priority: PRIORITY,
            remember: if reference.tag().is_some() { Duration::ZERO } else { Duration::MAX },
        };
        let fetched = self.flights.manifest(&source).await?.manifest;
        self.store.stage_manifest(&fetched.digest, fetched.bytes.clone()).await?;
        read(fetched.digest, fetched.bytes)
    }

    /// What a tag names at the upstream right now, by HEAD.
    pub async fn observe(&self, reference: &Reference) -> Result<Option<Digest>, ImportError> {
        let repository = &self.route.upstream_repository;
        let head = self.client.head_manifest(repository, reference, PRIORITY, HEAD_BUDGET);
        Ok(head.await?.digest)
    }

    /// A manifest that is here, visible or not, which the upstream has just named for this repository.
    pub async fn named(&self, digest: &Digest) -> Result<Option<Node>, ImportError> {
        let bytes = self.store.staged_manifest(digest).await?;
        bytes.map(|bytes| read(digest.clone(), bytes)).transpose()
    }

    /// What is here already. Content that only some other repository is known to have fetched is
    /// no proof that this one may have it: its upstream is asked, by HEAD.
    async fn stored(&self, digest: &Digest) -> Result<Option<Bytes>, ImportError> {
        if let Some(bytes) = self.store.manifest(&self.route.repository, digest).await? {
            return Ok(Some(bytes));
        }
        let Some(bytes) = self.store.staged_manifest(digest).await? else { return Ok(None) };
        self.observe(&Reference::Digest(digest.clone())).await?;
        Ok(Some(bytes))
    }
}

fn read(digest: Digest, bytes: Bytes) -> Result<Node, ImportError> {
    let manifest = Manifest::parse(&bytes)
        .map_err(|problem| ImportError::Manifest { digest: digest.to_string(), problem })?;
    Ok(Node { digest, bytes, manifest })
}

/// Walks the tree below `root`.
pub(crate) async fn walk(
    manifests: &Manifests<'_>,
    root: Node,
    selection: &Selection,
) -> Result<Closure, ImportError> {
    let mut seen = BTreeSet::from([root.digest.clone()]);
    let mut platforms = BTreeSet::new();
    let mut levels = vec![vec![root]];
    while let Some(level) = levels.last() {
        let wanted = next_level(level, selection, &mut seen, &mut platforms)?;
        if wanted.is_empty() {
            break;
        }
        if levels.len() >= MAX_DEPTH {
            return Err(ImportError::Closure(format!("indexes nest deeper than {MAX_DEPTH}")));
        }
        let fetched = stream::iter(wanted).map(|child| get_child(manifests, child));
        levels.push(fetched.buffered(WIDTH).try_collect().await?);
    }
    let manifests: Vec<_> = levels.into_iter().rev().flatten().collect();
    let blobs = blobs(&manifests)?;
    Ok(Closure { manifests, blobs, platforms })
}

/// The children of `level` that are taken and were not seen before.
fn next_level(
    level: &[Node],
    selection: &Selection,
    seen: &mut BTreeSet<Digest>,
    platforms: &mut BTreeSet<Platform>,
) -> Result<Vec<Descriptor>, ImportError> {
    let mut wanted = Vec::new();
    for node in level {
        let children = node.manifest.children();
        let missing = selection.missing(children);
        if !children.is_empty() && !missing.is_empty() && is_leaf_index(children) {
            let names: Vec<_> = missing.into_iter().map(ToString::to_string).collect();
            return Err(ImportError::NoPlatform(names.join(", ")));
        }
        for child in children.iter().filter(|child| selection.takes(child)) {
            platforms.extend(child.platform.clone());
            if seen.insert(child.digest.clone()) {
                wanted.push(child.clone());
            }
        }
    }
    if seen.len() > MAX_CHILDREN + 1 {
        return Err(ImportError::Closure(format!("it has more than {MAX_CHILDREN} manifests")));
    }
    Ok(wanted)
}

/// Whether an index names images and not further indexes, in which a platform may yet be found.
fn is_leaf_index(children: &[Descriptor]) -> bool {
    children.iter().any(|child| child.platform.is_some())
}

async fn get_child(manifests: &Manifests<'_>, child: Descriptor) -> Result<Node, ImportError> {
    let node = manifests.get(&child.digest).await?;
    if node.bytes.len() as u64 != child.size {
        return Err(ImportError::Closure(format!(
            "manifest {} has {} bytes where the index says {}",
            child.digest,
            node.bytes.len(),
            child.size
        )));
    }
    Ok(node)
}

fn blobs(manifests: &[Node]) -> Result<Vec<Descriptor>, ImportError> {
    let (mut blobs, mut sizes) = (Vec::new(), BTreeMap::new());
    for blob in manifests.iter().flat_map(|node| node.manifest.blobs()) {
        match sizes.insert(&blob.digest, blob.size) {
            None => blobs.push(blob.clone()),
            Some(size) if size == blob.size => {}
            Some(_) => {
                let digest = &blob.digest;
                return Err(ImportError::Closure(format!("blob {digest} is given two sizes")));
            }
        }
    }
    if blobs.len() > MAX_BLOBS {
        return Err(ImportError::Closure(format!("it has more than {MAX_BLOBS} blobs")));
    }
    Ok(blobs)
}
