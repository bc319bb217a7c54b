//! Where the content of a repository comes from: which upstream repository, asked as whom.
//!
//! Links make content visible in a downstream repository. When a rule is changed so that the name
//! leads elsewhere, what the old origin brought must not be visible under the new one.

use crate::{Store, cas::Stamp, error::StoreError, key, key::Key, object::Stored, tag::Owner};
use futures::TryStreamExt;
use hydrant_proto::{RepositoryName, Tag};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Tags looked at in one listing.
const PAGE: usize = 1_000;

#[derive(Debug, Serialize, Deserialize)]
struct OriginRecord {
    origin: String,
    since: Timestamp,
    /// No tag record that was removed with a former origin had a greater `seq`.
    #[serde(default)]
    seq_floor: u64,
}

impl Store {
    /// The origin whose content is visible in `repository`; `None` before anything was cached in
    /// it, such as in one that a stock registry filled.
    pub async fn origin(&self, repository: &RepositoryName) -> Result<Option<String>, StoreError> {
        Ok(self.read_origin(repository).await?.map(|(origin, _)| origin))
    }

    /// Notes that `repository` is filled from `origin`, if nothing is noted yet. Returns the origin
    /// that stands.
    pub async fn claim_origin(
        &self,
        repository: &RepositoryName,
        origin: &str,
    ) -> Result<String, StoreError> {
        match self.write_origin(repository, origin, 0, &Stamp::Absent).await {
            Ok(()) => Ok(origin.to_owned()),
            Err(StoreError::Conflict { key }) => {
                let standing = self.origin(repository).await?;
                standing.ok_or(StoreError::Conflict { key })
            }
            Err(error) => Err(error),
        }
    }

    /// Makes `origin` the one whose content is visible in `repository`. All that another origin
    /// brought is made invisible first, so a crash in between leaves nothing of it to the new one.
    ///
    /// [`StoreError::Refused`] when the repository also holds tags that a customer pushed: whose
    /// content is whose cannot be told apart then.
    pub async fn take_over(
        &self,
        repository: &RepositoryName,
        origin: &str,
    ) -> Result<(), StoreError> {
        let Some((standing, stamp)) = self.read_origin(repository).await? else {
            return self.claim_origin(repository, origin).await.map(drop);
        };
        if standing == origin {
            return Ok(());
        }
        self.refuse_pushed(repository).await?;
        tracing::warn!(image.repository = %repository, from = standing, to = origin,
            "the rule leads elsewhere now: what was cached under it is not visible any more");
        for folder in key::visible_in(repository) {
            let mut listed = std::pin::pin!(self.list_all(self.below(&folder)));
            while let Some(meta) = listed.try_next().await? {
                self.delete(&meta.location).await?;
            }
        }
        self.write_origin(repository, origin, seq_of_now(), &stamp).await
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
    ) -> Result<Option<(String, Stamp)>, StoreError> {
        let path = self.at(Key::Origin(repository));
        Ok(self.get_record::<OriginRecord>(&path).await?.map(|stored| match stored {
            Stored::Readable(record, stamp) => (record.origin, stamp),
            Stored::Unreadable(object) => ("unreadable".to_owned(), self.stamp(&object)),
        }))
    }

    async fn write_origin(
        &self,
        repository: &RepositoryName,
        origin: &str,
        seq_floor: u64,
        expected: &Stamp,
    ) -> Result<(), StoreError> {
        let (origin, since) = (origin.to_owned(), Timestamp::now());
        let record = OriginRecord { origin, since, seq_floor };
        let path = self.at(Key::Origin(repository));
        self.compare_and_set_json(&path, &record, expected).await.map(drop)
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

/// A `seq` that no tag has reached: the second it is. Tags move less often than once a second.
fn seq_of_now() -> u64 {
    u64::try_from(Timestamp::now().as_second()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TagRecord;
    use hydrant_proto::{Digest, MediaType};

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
        store.take_over(&name, "b").await.unwrap();
        assert!(store.tag_history(&name, &tag).await.unwrap().is_empty(), "it names digests");
        store.take_over(&name, "a").await.unwrap();
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
        store.take_over(&name, "a").await.unwrap();
        assert!(store.has_link(&name, &own).await.unwrap());
        store.take_over(&name, "b").await.unwrap();
        assert!(!store.has_link(&name, &own).await.unwrap());
        assert!(store.has_link(&nested, &own).await.unwrap(), "a nested repository is another one");
        assert_eq!(store.origin(&name).await.unwrap().as_deref(), Some("b"));
    }

    #[tokio::test]
    async fn a_damaged_record_hides_what_is_there_until_the_next_take_over() {
        let store = Store::in_memory();
        let name: RepositoryName = "lab/app".parse().unwrap();
        let path = store.at(Key::Origin(&name));
        store.put(&path, "{garbage".into(), object_store::PutMode::Overwrite).await.unwrap();
        assert_eq!(store.origin(&name).await.unwrap().as_deref(), Some("unreadable"));
        store.take_over(&name, "a").await.unwrap();
        assert_eq!(store.origin(&name).await.unwrap().as_deref(), Some("a"));
    }
}
