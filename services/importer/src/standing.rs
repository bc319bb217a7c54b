//! What storage says of an image before an attempt, and how the attempt changes it: the tag by
//! compare-and-set on what was read *before* the upstream was asked, then the completion record.

use crate::{
    announce::hydrated,
    closure::{Closure, Manifests, Node},
    error::ImportError,
    import::Fence,
};
use hydrant_proto::{Digest, HydrationRequested, Image, JobId, Reference, RepositoryName, Tag};
use hydrant_rules::{Freshness, Route};
use hydrant_store::{
    CompletionRecord, Follows, MissRecord, Owner, Sighting, Store, StoreError, TagRecord, Terms,
    Version, Wanted,
};
use jiff::Timestamp;

/// Observations of a tag in one attempt, when other writers confirm it at the same time.
const OBSERVATIONS: u32 = 5;

pub(crate) struct Standing {
    repository: RepositoryName,
    reference: Reference,
    job: JobId,
    tag: Option<(TagRecord, Version)>,
    follows: Follows,
    /// After the record was read, and before the upstream is asked.
    asked_at: Timestamp,
    completion: Option<CompletionRecord>,
}

/// A completion record as it is now in storage.
pub(crate) struct Completion {
    pub record: CompletionRecord,
    /// Whether this attempt wrote it.
    pub is_new: bool,
}

impl Standing {
    /// Reads the records. A tag that a customer pushed is the customer's, whatever the upstream has.
    pub async fn read(
        store: &Store,
        route: &Route,
        request: &HydrationRequested,
        misses: &[MissRecord],
    ) -> Result<Self, ImportError> {
        let read_tag = async {
            match &request.reference {
                Reference::Tag(tag) => read_tag(store, &route.repository, tag).await,
                Reference::Digest(_) => Ok(None),
            }
        };
        let job = request.id();
        let read_completion = async { Ok(store.completion(&job).await?) };
        let (tag, completion) = tokio::try_join!(read_tag, read_completion)?;
        let follows = match &request.reference {
            Reference::Tag(tag) => follows(route, tag, misses),
            Reference::Digest(_) => Follows::Upstream,
        };
        Ok(Self {
            repository: route.repository.clone(),
            reference: request.reference.clone(),
            job: request.id(),
            tag,
            follows,
            asked_at: Timestamp::now(),
            completion,
        })
    }

    /// What the tag names and goes on naming, whatever the upstream says: it is frozen, or immutable
    /// under its rule.
    pub fn held(&self) -> Option<&Digest> {
        let (record, _) = self.tag.as_ref()?;
        record.stays(self.follows).map(|_| &record.digest)
    }

    pub fn completion(&self) -> Option<&CompletionRecord> {
        self.completion.as_ref()
    }

    /// Points the tag at `root`, while the fence holds. Nothing to do for a digest.
    pub async fn point(
        &self,
        fence: &Fence<'_>,
        store: &Store,
        route: &Route,
        manifests: &Manifests<'_>,
        root: &Node,
    ) -> Result<Option<TagRecord>, ImportError> {
        let Reference::Tag(tag) = &self.reference else { return Ok(None) };
        let (mut standing, mut asked_at) = (self.tag.clone(), self.asked_at);
        for _ in 0..OBSERVATIONS {
            // After a lost race, too: the winner may have been led elsewhere.
            fence.holds().await?;
            let sighting = sighting(route, root, asked_at);
            let before = standing.as_ref().map(|(record, _)| record);
            let record = match TagRecord::sighted(before, &sighting, self.follows) {
                Ok(record) => record,
                // It stays, and names what is local by now.
                Err(_) if names(before, root) => return Ok(before.cloned()),
                Err(_) => return Err(ImportError::Raced),
            };
            let version = standing.map(|(_, version)| version);
            match store.put_tag(&self.repository, tag, record.clone(), version).await {
                Ok(version) => return Ok(Some(TagRecord { seq: version.seq(), ..record })),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            // Another writer was faster. Its word stands unless the upstream, asked once more,
            // still names what was imported here.
            standing = read_tag(store, &self.repository, tag).await?;
            if let Some((record, _)) = &standing
                && record.stays(self.follows).is_some()
            {
                continue;
            }
            asked_at = Timestamp::now();
            if manifests.observe(&self.reference).await?.as_ref() != Some(&root.digest) {
                return Err(ImportError::Raced);
            }
        }
        Err(ImportError::Raced)
    }

    /// Records that the closure is durable. The same closure again is the same record.
    pub async fn complete(
        &self,
        store: &Store,
        route: &Route,
        closure: &Closure,
    ) -> Result<Completion, ImportError> {
        let root = closure.root();
        let platforms: Vec<_> = closure.platforms.iter().cloned().collect();
        let same = |record: &&CompletionRecord| {
            record.digest == root.digest
                && record.platforms == platforms
                && record.generation == route.generation.as_str()
        };
        if let Some(record) = self.completion.as_ref().filter(same) {
            return Ok(Completion { record: record.clone(), is_new: false });
        }
        let seq = self.completion.as_ref().map_or(1, |record| record.seq + 1);
        let event = hydrated(route, &self.image(), closure, seq);
        let record = CompletionRecord {
            rule: route.rule.name.to_string(),
            generation: route.generation.to_string(),
            repository: self.repository.clone(),
            reference: self.reference.clone(),
            digest: root.digest.clone(),
            media_type: root.manifest.media_type,
            platforms,
            size_bytes: closure.size(),
            blobs: closure.blobs.len() as u64,
            seq,
            completed_at: event.time,
            event,
        };
        let record = store.put_completion(&self.job, record).await?;
        Ok(Completion { record, is_new: true })
    }

    fn image(&self) -> Image {
        Image { repository: self.repository.clone(), reference: self.reference.clone() }
    }
}

/// Whether the tag follows the upstream: by its rule, or because somebody asked for that.
fn follows(route: &Route, tag: &Tag, misses: &[MissRecord]) -> Follows {
    let refreshed = misses.iter().any(|miss| miss.wanted == Wanted::Refresh);
    match route.rule.freshness(tag) {
        Freshness::Immutable if !refreshed => Follows::Nothing,
        Freshness::Immutable | Freshness::Checked(_) => Follows::Upstream,
    }
}

fn sighting(route: &Route, root: &Node, asked_at: Timestamp) -> Sighting {
    Sighting {
        digest: root.digest.clone(),
        media_type: root.manifest.media_type,
        size: root.bytes.len() as u64,
        asked_at,
        terms: Terms {
            rule: route.rule.name.to_string(),
            generation: route.generation.to_string(),
            upstream: route.upstream.name.to_string(),
        },
    }
}

fn names(record: Option<&TagRecord>, root: &Node) -> bool {
    record.is_some_and(|record| record.digest == root.digest)
}

async fn read_tag(
    store: &Store,
    repository: &RepositoryName,
    tag: &Tag,
) -> Result<Option<(TagRecord, Version)>, ImportError> {
    let found = store.tag(repository, tag).await?;
    match &found {
        Some((record, _)) if record.owner == Owner::Push => {
            Err(ImportError::Obsolete("the tag was pushed by a customer"))
        }
        _ => Ok(found),
    }
}
