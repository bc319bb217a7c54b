//! Where the content of a repository comes from: which upstream repository, asked as whom.
//!
//! Links make content visible in a downstream repository. When a rule is changed so that the name
//! leads elsewhere, what the old origin brought must not be visible under the new one.

use crate::{Store, cas::Stamp, error::StoreError, key, key::Key, object::Stored, tag::Owner};
use futures::{StreamExt, TryStreamExt, stream};
use hydrant_proto::{RepositoryName, Tag};
use jiff::Timestamp;
use object_store::ObjectMeta;
use serde::{Deserialize, Serialize};
use std::{io, pin::pin, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout};
use ulid::Ulid;

/// Tags looked at in one listing.
const PAGE: usize = 1_000;
/// The origin of a repository that is being cleared. Nobody has it, so nobody sees what is there.
const CLEARING: &str = "clearing";
/// Objects removed between two looks at the claim, and how many of them at once.
const BATCH: usize = 64;
const AT_ONCE: usize = 8;
/// How old a claim may grow before it is renewed, and how long a batch may take. What a process that
/// lost its claim still removes is through after both together.
const RENEWED_EVERY: Duration = Duration::from_secs(5);
const BATCH_WITHIN: Duration = Duration::from_secs(10);
/// How long a claim that is not renewed stands.
const LEASE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct OriginRecord {
    origin: String,
    since: Timestamp,
    /// No tag record that was removed with a former origin had a greater `seq`.
    #[serde(default)]
    seq_floor: u64,
    /// Who removes what a former origin brought, while that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    clearing: Option<Clearing>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Clearing {
    /// Tells one claim from every other.
    by: String,
    renewed_at: Timestamp,
}

/// The right to remove what a former origin brought, as last written.
struct Claim {
    by: String,
    stamp: Stamp,
    /// From before it was written.
    renewed: Instant,
}

/// What became of an attempt to make an origin the one that is visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takeover {
    Done,
    /// Somebody else removes what a former origin brought, or was doing so a moment ago: try again
    /// a little later.
    UnderWay,
}

impl Store {
    /// The origin whose content is visible in `repository`; `None` before anything was cached in
    /// it, such as in one that a stock registry filled.
    pub async fn origin(&self, repository: &RepositoryName) -> Result<Option<String>, StoreError> {
        Ok(self.read_origin(repository).await?.map(|(record, _)| record.origin))
    }

    /// Notes that `repository` is filled from `origin`, if nothing is noted yet. Returns the origin
    /// that stands.
    pub async fn claim_origin(
        &self,
        repository: &RepositoryName,
        origin: &str,
    ) -> Result<String, StoreError> {
        let record = OriginRecord::of(origin, 0);
        match self.write_origin(repository, &record, &Stamp::Absent).await {
            Ok(_) => Ok(record.origin),
            Err(StoreError::Conflict { key }) => {
                let standing = self.origin(repository).await?;
                standing.ok_or(StoreError::Conflict { key })
            }
            Err(error) => Err(error),
        }
    }

    /// Makes `origin` the one whose content is visible in `repository`. All that another origin
    /// brought is removed first, by one process at a time: it claims that by compare-and-set, and
    /// from then on nobody sees what is there. Whoever dies in the middle is followed by the next.
    ///
    /// [`StoreError::Refused`] when the repository also holds tags that a customer pushed: whose
    /// content is whose cannot be told apart then.
    pub async fn take_over(
        &self,
        repository: &RepositoryName,
        origin: &str,
    ) -> Result<Takeover, StoreError> {
        let Some((standing, stamp)) = self.read_origin(repository).await? else {
            let stands = self.claim_origin(repository, origin).await?;
            return Ok(if stands == origin { Takeover::Done } else { Takeover::UnderWay });
        };
        if standing.origin == origin {
            return Ok(Takeover::Done);
        }
        if standing.clearing.as_ref().is_some_and(Clearing::is_alive) {
            return Ok(Takeover::UnderWay);
        }
        match self.lead(repository, &standing, stamp, origin).await {
            Ok(()) => Ok(Takeover::Done),
            // Somebody else claimed it, at once or because we were slow.
            Err(StoreError::Conflict { .. }) => Ok(Takeover::UnderWay),
            Err(error) => Err(error),
        }
    }

    async fn lead(
        &self,
        repository: &RepositoryName,
        standing: &OriginRecord,
        stamp: Stamp,
        origin: &str,
    ) -> Result<(), StoreError> {
        let mut claim = self.claim_clearing(repository, standing, stamp).await?;
        tracing::warn!(image.repository = %repository, from = standing.origin, to = origin,
            "the rule leads elsewhere now: what was cached under it is not visible any more");
        self.clear(repository, &mut claim).await?;
        let record = OriginRecord::of(origin, seq_of_now());
        self.write_origin(repository, &record, &claim.stamp).await.map(drop)
    }

    /// Whether what is in a repository is being removed, so that what is left of it says nothing.
    pub(crate) async fn is_being_cleared(
        &self,
        repository: &RepositoryName,
    ) -> Result<bool, StoreError> {
        Ok(self.origin(repository).await?.as_deref() == Some(CLEARING))
    }

    /// The right to clear a repository of which `standing` was read. Whether something was pushed is
    /// asked by the first only: what others find is half removed.
    async fn claim_clearing(
        &self,
        repository: &RepositoryName,
        standing: &OriginRecord,
        stamp: Stamp,
    ) -> Result<Claim, StoreError> {
        if standing.clearing.is_none() {
            self.refuse_pushed(repository).await?;
        }
        let mut claim = Claim { by: Ulid::new().to_string(), stamp, renewed: Instant::now() };
        self.write_claim(repository, &mut claim).await?;
        if standing.clearing.is_some() {
            // By its clock the other may be alive. Then it finds out at its next renewal, and has
            // ended what it was removing.
            sleep(RENEWED_EVERY + BATCH_WITHIN).await;
        }
        Ok(claim)
    }

    /// Removes all that makes anything visible, for as long as the claim stands.
    async fn clear(
        &self,
        repository: &RepositoryName,
        claim: &mut Claim,
    ) -> Result<(), StoreError> {
        for folder in key::visible_in(repository) {
            let mut batches = pin!(self.list_all(self.below(&folder)).try_chunks(BATCH));
            while let Some(batch) = batches.try_next().await.map_err(|error| error.1)? {
                if claim.renewed.elapsed() >= RENEWED_EVERY {
                    self.write_claim(repository, claim).await?;
                }
                self.delete_all(batch).await?;
            }
        }
        Ok(())
    }

    async fn delete_all(&self, batch: Vec<ObjectMeta>) -> Result<(), StoreError> {
        let deleted = stream::iter(batch)
            .map(|meta| async move { self.delete(&meta.location).await })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>();
        timeout(BATCH_WITHIN, deleted).await.unwrap_or_else(|late| {
            let cause = Arc::new(io::Error::from(late));
            Err(StoreError::Unavailable { key: "what a former origin brought".to_owned(), cause })
        })
    }

    async fn write_claim(
        &self,
        repository: &RepositoryName,
        claim: &mut Claim,
    ) -> Result<(), StoreError> {
        let (began, renewed_at) = (Instant::now(), Timestamp::now());
        let clearing = Some(Clearing { by: claim.by.clone(), renewed_at });
        let record = OriginRecord { clearing, ..OriginRecord::of(CLEARING, seq_of_now()) };
        claim.stamp = self.write_origin(repository, &record, &claim.stamp).await?;
        claim.renewed = began;
        Ok(())
    }

    /// What the `seq` of a tag without a record begins above. Records that went with a former
    /// origin are gone with their `seq`, and should that origin return, its events must have ids of
    /// their own.
    pub(crate) async fn seq_floor(&self, repository: &RepositoryName) -> Result<u64, StoreError> {
        let path = self.at(Key::Origin(repository));
        Ok(match self.get_record::<OriginRecord>(&path).await? {
            None => 0,
            Some(Stored::Readable(record, _)) => record.seq_floor,
            Some(Stored::Unreadable(_)) => seq_of_now(),
        })
    }

    /// A record that cannot be read names no origin that anybody has: whose content it was cannot be
    /// told, so nobody sees it, and the next hydration fetches it anew.
    async fn read_origin(
        &self,
        repository: &RepositoryName,
    ) -> Result<Option<(OriginRecord, Stamp)>, StoreError> {
        let path = self.at(Key::Origin(repository));
        Ok(self.get_record::<OriginRecord>(&path).await?.map(|stored| match stored {
            Stored::Readable(record, stamp) => (record, stamp),
            Stored::Unreadable(object) => {
                (OriginRecord::of("unreadable", seq_of_now()), self.stamp(&object))
            }
        }))
    }

    async fn write_origin(
        &self,
        repository: &RepositoryName,
        record: &OriginRecord,
        expected: &Stamp,
    ) -> Result<Stamp, StoreError> {
        self.compare_and_set_json(&self.at(Key::Origin(repository)), record, expected).await
    }

    async fn refuse_pushed(&self, repository: &RepositoryName) -> Result<(), StoreError> {
        let mut last: Option<Tag> = None;
        loop {
            let page = self.tags(repository, last.as_ref(), PAGE).await?;
            for tag in &page.items {
                if let Some((record, _)) = self.tag(repository, tag).await?
                    && record.owner == Owner::Push
                {
                    let reason = format!(
                        "{repository}:{tag} was pushed, and the rule now leads to another upstream; \
                         use another downstream path for one of the two"
                    );
                    return Err(StoreError::Refused { reason });
                }
            }
            match page.items.last() {
                Some(tag) if page.more => last = Some(tag.clone()),
                _ => return Ok(()),
            }
        }
    }
}

impl OriginRecord {
    fn of(origin: &str, seq_floor: u64) -> Self {
        Self { origin: origin.to_owned(), since: Timestamp::now(), seq_floor, clearing: None }
    }
}

impl Clearing {
    /// One that is stamped in the future was written by a wrong clock, and is not waited for.
    fn is_alive(&self) -> bool {
        Timestamp::now().duration_since(self.renewed_at).unsigned_abs() < LEASE
    }
}

/// A `seq` that no tag has reached: the second it is. Tags move less often than once a second.
fn seq_of_now() -> u64 {
    u64::try_from(Timestamp::now().as_second()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TagRecord, faulty::Fault};
    use bytes::Bytes;
    use futures::future::join_all;
    use hydrant_proto::{Digest, MediaType};
    use object_store::PutMode;
    use std::sync::atomic::Ordering;

    async fn lead(store: &Store, name: &RepositoryName, origin: &str) {
        assert_eq!(store.take_over(name, origin).await.unwrap(), Takeover::Done);
    }

    fn cached(of: &[u8]) -> TagRecord {
        let at = Timestamp::now();
        TagRecord::new(Owner::Cache, Digest::of(of), MediaType::OciManifest, 1, at)
    }

    /// A repository of origin `a` with some tags whose manifests are there.
    async fn fill(store: &Store, name: &RepositoryName) {
        store.claim_origin(name, "a").await.unwrap();
        for tag in ["1", "2", "3"] {
            let manifest = format!(
                r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
                "config":{{"mediaType":"application/x","size":1,"digest":"{}"}},"layers":[]}}"#,
                Digest::of(tag.as_bytes())
            );
            let (digest, manifest) = (Digest::of(manifest.as_bytes()), Bytes::from(manifest));
            store.stage_manifest(&digest, manifest.clone()).await.unwrap();
            store.commit_manifest(name, &digest).await.unwrap();
            store.link_blob(name, &digest).await.unwrap();
            store.put_tag(name, &tag.parse().unwrap(), cached(&manifest), None).await.unwrap();
        }
    }

    /// Whether a tag is there for us, and every link of one with its record.
    async fn has_tags(store: &Store, name: &RepositoryName) -> bool {
        let mut found = false;
        for tag in ["1", "2", "3"].map(|tag| tag.parse().unwrap()) {
            let record = store.tag(name, &tag).await.unwrap();
            assert!(record.as_ref().is_none_or(|(record, _)| record.owner == Owner::Cache));
            let link = store.head(&store.at(Key::TagLink(name, &tag))).await.unwrap();
            assert!(link.is_none() || record.is_some(), "the link of {tag} has no record");
            found |= record.is_some();
        }
        found
    }

    /// As if whoever clears the repository had been dead for long.
    async fn let_die(store: &Store, name: &RepositoryName) {
        let (record, stamp) = store.read_origin(name).await.unwrap().unwrap();
        let clearing = record
            .clearing
            .clone()
            .map(|clearing| Clearing { renewed_at: clearing.renewed_at - 2 * LEASE, ..clearing });
        store.write_origin(name, &OriginRecord { clearing, ..record }, &stamp).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_take_over_that_ends_anywhere_leaves_no_tag_that_counts_as_pushed() {
        let name: RepositoryName = "lab/app".parse().unwrap();
        for (deletes, next) in (0..).map(|n| (n, if n % 2 == 0 { "b" } else { "a" })) {
            let (store, left) = Store::faulty(Fault::StopsDeleting);
            fill(&store, &name).await;
            left.store(deletes, Ordering::Relaxed);
            if let Ok(done) = store.take_over(&name, "b").await {
                assert_eq!(done, Takeover::Done);
                assert!(deletes > 12, "it removed {deletes} objects");
                return;
            }
            has_tags(&store, &name).await;
            assert_eq!(store.origin(&name).await.unwrap().as_deref(), Some(CLEARING));
            assert_eq!(store.take_over(&name, next).await.unwrap(), Takeover::UnderWay);
            left.store(usize::MAX, Ordering::Relaxed);
            let_die(&store, &name).await;
            // Whoever comes next, for the new origin or, the rule being changed back, the old one.
            lead(&store, &name, next).await;
            assert!(!has_tags(&store, &name).await);
            assert!(store.tags(&name, None, 9).await.unwrap().items.is_empty());
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_many_that_take_over_at_once_one_clears_and_none_is_refused() {
        let (store, name) = (Store::in_memory(), "lab/app".parse::<RepositoryName>().unwrap());
        for round in 0..20 {
            fill(&store, &name).await;
            let origin = format!("b{round}");
            let take_over = |_| {
                let (store, name, origin) = (store.clone(), name.clone(), origin.clone());
                tokio::spawn(async move { store.take_over(&name, &origin).await })
            };
            let all = join_all((0..8).map(take_over)).await;
            let done = all
                .into_iter()
                .filter(|one| *one.as_ref().unwrap().as_ref().unwrap() == Takeover::Done);
            assert!(done.count() >= 1);
            assert!(!has_tags(&store, &name).await);
            lead(&store, &name, "a").await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_given_up_for_dead_removes_nothing_of_the_next() {
        let (store, name) = (Store::in_memory(), "lab/app".parse::<RepositoryName>().unwrap());
        fill(&store, &name).await;
        let (standing, stamp) = store.read_origin(&name).await.unwrap().unwrap();
        let mut frozen = store.claim_clearing(&name, &standing, stamp).await.unwrap();
        let_die(&store, &name).await;
        let next = store.clone();
        lead(&next, &name, "b").await;
        next.link_blob(&name, &Digest::of(b"new")).await.unwrap();
        let woken = store.clear(&name, &mut frozen).await;
        assert!(matches!(woken, Err(StoreError::Conflict { .. })), "{woken:?}");
        assert!(next.has_link(&name, &Digest::of(b"new")).await.unwrap());
    }

    #[tokio::test]
    async fn a_link_is_taken_back_when_its_record_went_meanwhile() {
        let (store, fired) = Store::faulty(Fault::ForgetsTags);
        let (name, tag) = ("lab/app".parse().unwrap(), "1".parse().unwrap());
        store.put_tag(&name, &tag, cached(b"1"), None).await.unwrap();
        assert!(fired.load(Ordering::Relaxed) > 0);
        assert!(store.head(&store.at(Key::TagLink(&name, &tag))).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_claim_from_the_future_is_not_waited_for() {
        let at = |ahead| Clearing { by: String::new(), renewed_at: Timestamp::now() + ahead };
        assert!(at(Duration::ZERO).is_alive() && at(LEASE / 2).is_alive());
        assert!(!at(2 * LEASE).is_alive());
    }

    #[tokio::test]
    async fn an_origin_that_returns_uses_no_seq_twice() {
        let (store, name) = (Store::in_memory(), "lab/app".parse().unwrap());
        let tag: Tag = "1".parse().unwrap();
        let record = |of: &[u8]| {
            let at = Timestamp::now();
            TagRecord::new(Owner::Cache, Digest::of(of), MediaType::OciManifest, 1, at)
        };
        store.claim_origin(&name, "a").await.unwrap();
        let first = store.put_tag(&name, &tag, record(b"1"), None).await.unwrap();
        let second = store.put_tag(&name, &tag, record(b"2"), Some(first)).await.unwrap();
        assert_eq!(second.seq(), 2);
        assert_eq!(store.tag_history(&name, &tag).await.unwrap().len(), 2);
        lead(&store, &name, "b").await;
        assert!(store.tag_history(&name, &tag).await.unwrap().is_empty(), "it names digests");
        lead(&store, &name, "a").await;
        let again = store.put_tag(&name, &tag, record(b"1"), None).await.unwrap();
        assert!(again.seq() > second.seq());
    }

    #[tokio::test]
    async fn another_origin_sees_nothing_of_what_the_former_brought() {
        let store = Store::in_memory();
        let name: RepositoryName = "lab/app".parse().unwrap();
        let (own, nested) = (Digest::of(b"x"), "lab/app/sub".parse().unwrap());
        assert_eq!(store.origin(&name).await.unwrap(), None);
        assert_eq!(store.claim_origin(&name, "a").await.unwrap(), "a");
        assert_eq!(store.claim_origin(&name, "b").await.unwrap(), "a");
        for repository in [&name, &nested] {
            store.link_blob(repository, &own).await.unwrap();
        }
        lead(&store, &name, "a").await;
        assert!(store.has_link(&name, &own).await.unwrap());
        lead(&store, &name, "b").await;
        assert!(!store.has_link(&name, &own).await.unwrap());
        assert!(store.has_link(&nested, &own).await.unwrap(), "a nested repository is another one");
        assert_eq!(store.origin(&name).await.unwrap().as_deref(), Some("b"));
    }

    #[tokio::test]
    async fn a_damaged_record_hides_what_is_there_until_the_next_take_over() {
        let store = Store::in_memory();
        let name: RepositoryName = "lab/app".parse().unwrap();
        let path = store.at(Key::Origin(&name));
        store.put(&path, "{garbage".into(), PutMode::Overwrite).await.unwrap();
        assert_eq!(store.origin(&name).await.unwrap().as_deref(), Some("unreadable"));
        lead(&store, &name, "a").await;
        assert_eq!(store.origin(&name).await.unwrap().as_deref(), Some("a"));
    }
}
