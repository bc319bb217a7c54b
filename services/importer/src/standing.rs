//! What storage says of an image before an attempt, and how the attempt changes it: the tag by
//! compare-and-set on what was read *before* the upstream was asked, then the completion record.

use crate::{
    announce::hydrated,
    closure::{Closure, Manifests, Node},
    error::ImportError,
};
use hydrant_proto::{HydrationRequested, Image, JobId, Reference, RepositoryName, Tag};
use hydrant_rules::Route;
use hydrant_store::{CompletionRecord, Owner, Store, StoreError, TagRecord, Version};
use jiff::Timestamp;

/// Observations of a tag in one attempt, when other writers confirm it at the same time.
const OBSERVATIONS: u32 = 5;

pub(crate) struct Standing {
    repository: RepositoryName,
    reference: Reference,
    job: JobId,
    tag: Option<(TagRecord, Version)>,
    observed_at: Timestamp,
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
        repository: &RepositoryName,
        request: &HydrationRequested,
    ) -> Result<Self, ImportError> {
        let tag = match &request.reference {
            Reference::Tag(tag) => read_tag(store, repository, tag).await?,
            Reference::Digest(_) => None,
        };
        let completion = store.completion(&request.id()).await?;
        Ok(Self {
            repository: repository.clone(),
            reference: request.reference.clone(),
            job: request.id(),
            tag,
            observed_at: Timestamp::now(),
            completion,
        })
    }

    pub fn completion(&self) -> Option<&CompletionRecord> {
        self.completion.as_ref()
    }

    /// Points the tag at `root`. Nothing to do for a digest.
    pub async fn point(
        &self,
        store: &Store,
        route: &Route,
        manifests: &Manifests<'_>,
        root: &Node,
    ) -> Result<Option<TagRecord>, ImportError> {
        let Reference::Tag(tag) = &self.reference else { return Ok(None) };
        let (mut standing, mut observed_at) = (self.tag.clone(), self.observed_at);
        for _ in 0..OBSERVATIONS {
            let record =
                self.next(route, root, standing.as_ref().map(|(record, _)| record), observed_at);
            let version = standing.map(|(_, version)| version);
            match store.put_tag(&self.repository, tag, record.clone(), version).await {
                Ok(version) => return Ok(Some(TagRecord { seq: version.seq(), ..record })),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            // Another writer was faster. Its word stands unless the upstream, asked once more,
            // still names what was imported here.
            standing = read_tag(store, &self.repository, tag).await?;
            observed_at = Timestamp::now();
            if manifests.observe(&self.reference).await?.as_ref() != Some(&root.digest) {
                return Err(ImportError::Raced);
            }
        }
        Err(ImportError::Raced)
    }

    fn next(
        &self,
        route: &Route,
        root: &Node,
        before: Option<&TagRecord>,
        observed_at: Timestamp,
    ) -> TagRecord {
        let same = before.filter(|record| record.digest == root.digest && !record.deleted);
        let moved_from = before.filter(|record| record.digest != root.digest && !record.deleted);
        TagRecord {
            owner: Owner::Cache,
            rule: Some(route.rule.name.to_string()),
            generation: Some(route.generation.to_string()),
            digest: root.digest.clone(),
            media_type: root.manifest.media_type,
            size: root.bytes.len() as u64,
            observed_at: same.map_or(observed_at, |record| record.observed_at),
            confirmed_at: observed_at,
            previous: moved_from
                .map(|record| record.digest.clone())
                .or_else(|| same.and_then(|record| record.previous.clone())),
            deleted: false,
            // Set when it is written.
            seq: 0,
            nonce: String::new(),
        }
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
