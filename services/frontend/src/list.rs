//! Lists: tags, the catalog, referrers.
//!
//! Tags are those of the upstream and the local ones together, in byte order, while the upstream
//! answers within a short budget: a cache that hides what could be pulled through it would be of
//! little use, and pushed tags exist only here. While it does not answer, the local ones are
//! listed, marked stale. So it is with referrers. The catalog is of what is local.

use crate::{
    answer::Answer, asking::Asking, error::Failure, manifest::certain, origin::Origins,
    place::Place, request::Page, shelf::Shelf,
};
use http::StatusCode;
use hydrant_proto::{Digest, MediaType, RepositoryName, Tag};
use hydrant_rules::Table;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::sync::Semaphore;

/// Lists of all repositories that are made at once: each walks through them all.
const WALKS: usize = 4;

/// What lists are made from.
pub struct Lists {
    shelf: Shelf,
    asking: Arc<Asking>,
    origins: Arc<Origins>,
    walks: Semaphore,
}

/// Names in byte order, after `last` of the page asked for.
struct Listed {
    names: BTreeSet<Tag>,
    more: bool,
}

impl Lists {
    pub fn new(shelf: Shelf, asking: Arc<Asking>, origins: Arc<Origins>) -> Self {
        Self { shelf, asking, origins, walks: Semaphore::new(WALKS) }
    }

    /// `name` is the repository as the client spells it, in the registry `namespace` it believes it
    /// speaks to; `place` is where that leads.
    pub async fn tags(
        &self,
        place: &Place,
        name: &RepositoryName,
        page: &Page<Tag>,
        namespace: Option<&str>,
    ) -> Result<Answer, Failure> {
        let n = page.n;
        // Whether there is such a repository is told to those who want no names, too.
        let page = &Page { n: n.max(1), last: page.last.clone() };
        let (local, upstream) =
            tokio::join!(self.local_tags(place, page), self.asking.tags(place, page));
        let (mut listed, stale) = match (local, upstream) {
            (Ok(local), Ok(upstream)) => (local.and(upstream.into()), None),
            (Err(_), Ok(upstream)) => (upstream.into(), None),
            (Ok(local), Err(failure))
                if local.names.is_empty() && !self.has_tags(place).await? =>
            {
                return Err(failure);
            }
            (Ok(local), Err(failure)) if failure.is_unknown() => (local, None),
            (Ok(local), Err(failure)) => (local, Some(failure)),
            (Err(storage), Err(failure)) => return Err(certain(failure, Some(storage))),
        };
        listed.after(page.last.as_ref());
        let (names, more) = listed.cut(n);
        let mut answer = tag_list(name, &names);
        if let (true, Some(last)) = (more, names.last()) {
            let ns = namespace.map(|namespace| format!("&ns={namespace}")).unwrap_or_default();
            answer = answer.followed_by(&format!("/v2/{name}/tags/list?n={n}&last={last}{ns}"));
        }
        Ok(match stale {
            Some(failure) => answer.stale(&failure),
            None => answer,
        })
    }

    async fn local_tags(&self, place: &Place, page: &Page<Tag>) -> Result<Listed, Failure> {
        if !self.origins.are_own(place).await? {
            return Ok(Listed { names: BTreeSet::new(), more: false });
        }
        let list = self.shelf.store.tags(place.repository(), page.last.as_ref(), page.n);
        let found = self.shelf.ask(list).await?;
        Ok(Listed { names: found.items.into_iter().collect(), more: found.more })
    }

    /// Whether there is any local tag, before or after a page that has none.
    async fn has_tags(&self, place: &Place) -> Result<bool, Failure> {
        let first = self.local_tags(place, &Page { n: 1, last: None }).await?;
        Ok(!first.names.is_empty())
    }

    /// Local repositories that a rule leads to; the others are as if they were not there.
    pub async fn catalog(
        &self,
        table: &Table,
        page: &Page<RepositoryName>,
    ) -> Result<Answer, Failure> {
        let n = page.n;
        if n == 0 {
            return Ok(Answer::json(&json!({ "repositories": [] })));
        }
        let _walk = self.walks.try_acquire().map_err(|_| Failure::Crowded)?;
        let list = self.shelf.store.repositories(page.last.as_ref(), n);
        let mut found = self.shelf.list(list).await?;
        let next = found.items.last().filter(|_| found.more).cloned();
        found.items.retain(|name| table.route(name).is_some());
        let answer = Answer::json(&json!({ "repositories": found.items }));
        Ok(match next {
            Some(last) => answer.followed_by(&format!("/v2/_catalog?n={n}&last={last}")),
            None => answer,
        })
    }

    /// An index of the manifests that refer to `digest`, the upstream's and the local ones; empty when
    /// there are none, as the distribution spec has it.
    pub async fn referrers(
        &self,
        place: &Place,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Answer, Failure> {
        let local = self.local_referrers(place, digest);
        let (local, upstream) = tokio::join!(local, self.asking.referrers(place, digest));
        let upstream = upstream.map(|index| index.map_or_else(Vec::new, |index| named_in(&index)));
        let (found, stale) = match (local, upstream) {
            (Ok(local), Ok(upstream)) => (merged(upstream, local), None),
            (Err(_), Ok(upstream)) => (upstream, None),
            (Ok(local), Err(failure)) if failure.is_unknown() => (local, None),
            // That nothing refers to what is not here either is no answer.
            (Ok(local), Err(failure)) => {
                match local.is_empty() && !self.has_manifest(place, digest).await? {
                    true => return Err(failure),
                    false => (local, Some(failure)),
                }
            }
            (Err(storage), Err(failure)) => return Err(certain(failure, Some(storage))),
        };
        let wanted = |found: &Value| {
            artifact_type.is_none_or(|wanted| found["artifactType"].as_str() == Some(wanted))
        };
        let index = json!({
            "schemaVersion": 2,
            "mediaType": MediaType::OciIndex,
            "manifests": found.into_iter().filter(wanted).collect::<Vec<_>>(),
        });
        let mut answer = Answer::document(StatusCode::OK, MediaType::OciIndex.as_str(), &index);
        if artifact_type.is_some() {
            answer = answer.filtered_by_artifact_type();
        }
        Ok(match stale {
            Some(failure) => answer.stale(&failure),
            None => answer,
        })
    }

    async fn local_referrers(&self, place: &Place, digest: &Digest) -> Result<Vec<Value>, Failure> {
        if !self.origins.are_own(place).await? {
            return Ok(Vec::new());
        }
        let list = self.shelf.store.referrers(place.repository(), digest);
        let found = self.shelf.list(list).await?;
        Ok(found.into_iter().map(|referrer| json!(referrer)).collect())
    }

    async fn has_manifest(&self, place: &Place, digest: &Digest) -> Result<bool, Failure> {
        Ok(self.origins.are_own(place).await? && {
            let look = self.shelf.store.has_manifest(place.repository(), digest);
            self.shelf.ask(look).await?
        })
    }
}

/// The descriptors of an index, as they are.
fn named_in(index: &[u8]) -> Vec<Value> {
    let index: Value = serde_json::from_slice(index).unwrap_or_default();
    index["manifests"].as_array().cloned().unwrap_or_default()
}

/// Each once, by digest.
fn merged(upstream: Vec<Value>, local: Vec<Value>) -> Vec<Value> {
    let digest = |found: &Value| found["digest"].as_str().unwrap_or_default().to_owned();
    let all = upstream.into_iter().chain(local).map(|found| (digest(&found), found));
    all.collect::<BTreeMap<_, _>>().into_values().collect()
}

impl Listed {
    fn and(mut self, other: Self) -> Self {
        // What is past the end of a page that has more may be missing in it: the next page's.
        let ends = [(&self, self.more), (&other, other.more)];
        let end =
            ends.into_iter().filter_map(|(listed, more)| listed.names.last().filter(|_| more));
        let end = end.min().cloned();
        self.names.extend(other.names);
        let before = self.names.len();
        if let Some(end) = end {
            self.names.retain(|name| *name <= end);
        }
        self.more |= other.more || self.names.len() < before;
        self
    }

    fn after(&mut self, last: Option<&Tag>) {
        if let Some(last) = last {
            self.names.retain(|name| name > last);
        }
    }

    fn cut(self, n: usize) -> (Vec<Tag>, bool) {
        let more = self.more || self.names.len() > n;
        (self.names.into_iter().take(n).collect(), more)
    }
}

impl From<hydrant_upstream::TagPage> for Listed {
    fn from(page: hydrant_upstream::TagPage) -> Self {
        Self { names: page.tags.into_iter().collect(), more: page.more }
    }
}

fn tag_list(name: &RepositoryName, tags: &[Tag]) -> Answer {
    Answer::json(&json!({ "name": name, "tags": tags }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Audience;
    use hydrant_flight::Flights;
    use hydrant_store::Store;
    use tokio_util::task::TaskTracker;

    #[tokio::test]
    async fn too_many_walks_are_turned_away() {
        let (store, tasks, spool) = (Store::in_memory(), TaskTracker::new(), tempfile::tempdir());
        let flights =
            Flights::new(store.clone(), spool.unwrap().path().into(), 1 << 20, None).unwrap();
        let shelf = Shelf::new(store);
        let asking = Arc::new(Asking::new(1, flights, &tasks));
        let lists = Lists::new(shelf.clone(), asking, Arc::new(Origins::new(shelf)));
        let page = Page { n: 1, last: None };
        let under_way: Vec<_> = (0..WALKS).map(|_| lists.walks.try_acquire().unwrap()).collect();
        let Err(failure) = lists.catalog(&Table::empty(), &page).await else { panic!("one more") };
        let said = failure.said(Audience::Direct);
        assert!(said.status == 503 && said.retry_after.is_some(), "{said:?}");
        drop(under_way);
        assert!(lists.catalog(&Table::empty(), &page).await.is_ok());
    }

    fn listed(names: &[&str], more: bool) -> Listed {
        Listed { names: names.iter().map(|name| name.parse().unwrap()).collect(), more }
    }

    #[test]
    fn two_pages_make_one_without_a_gap() {
        for (local, upstream, n, expected, more) in [
            (listed(&["b"], false), listed(&["a", "c"], false), 9, vec!["a", "b", "c"], false),
            (listed(&["b"], false), listed(&["a", "c"], false), 2, vec!["a", "b"], true),
            // The upstream has more after `c`, so `x` may not come yet.
            (listed(&["b", "x"], false), listed(&["a", "c"], true), 9, vec!["a", "b", "c"], true),
            (listed(&["b"], true), listed(&["a", "c"], false), 9, vec!["a", "b"], true),
            (listed(&[], false), listed(&[], false), 9, vec![], false),
        ] {
            let (names, has_more) = local.and(upstream).cut(n);
            let names: Vec<_> = names.iter().map(Tag::as_str).collect();
            assert_eq!((names, has_more), (expected, more));
        }
    }
}
