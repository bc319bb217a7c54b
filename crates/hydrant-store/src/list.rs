//! Lists: the tags of a repository, the repositories, the referrers of a manifest.

use crate::{
    Store,
    error::StoreError,
    key::{REPOSITORIES, referrers, tags},
    manifest::Referrer,
};
use futures::TryStreamExt;
use hydrant_proto::{Digest, RepositoryName};

/// Repositories found in one catalog walk at most; the walk is one listing per folder.
const MAX_REPOSITORIES: usize = 10_000;

/// A page of names in lexical order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub names: Vec<String>,
    /// Whether there are more after the last.
    pub more: bool,
}

impl Page {
    /// The `n` names after `last`, of all names in order.
    pub fn cut(names: impl IntoIterator<Item = String>, last: Option<&str>, n: usize) -> Self {
        let after = |name: &String| last.is_none_or(|last| name.as_str() > last);
        let mut rest = names.into_iter().filter(after);
        let names = rest.by_ref().take(n).collect();
        Self { names, more: rest.next().is_some() }
    }
}

impl Store {
    /// Tags of `repository` that are local: the `n` after `last`.
    pub async fn tags(
        &self,
        repository: &RepositoryName,
        last: Option<&str>,
        n: usize,
    ) -> Result<Page, StoreError> {
        Ok(Page::cut(self.backend.folders(&tags(repository)).await?, last, n))
    }

    /// Repositories with local content: the `n` after `last`.
    pub async fn repositories(&self, last: Option<&str>, n: usize) -> Result<Page, StoreError> {
        let (mut found, mut left) = (Vec::new(), vec![String::new()]);
        while let Some(name) = left.pop() {
            let folders = self.backend.folders(&format!("{REPOSITORIES}/{name}")).await?;
            if folders.iter().any(|folder| folder == "_manifests") {
                found.push(name.clone());
            }
            let below = folders.into_iter().filter(|folder| !folder.starts_with('_'));
            left.extend(below.map(|folder| match name.as_str() {
                "" => folder,
                name => format!("{name}/{folder}"),
            }));
            if found.len() > MAX_REPOSITORIES {
                break;
            }
        }
        found.sort();
        Ok(Page::cut(found, last, n))
    }

    /// The manifests visible in `repository` that refer to `subject`, by digest.
    pub async fn referrers(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
    ) -> Result<Vec<Referrer>, StoreError> {
        let mut listed = self.backend.list(&referrers(repository, subject));
        let mut found = Vec::new();
        while let Some(meta) = listed.try_next().await? {
            let Some(referrer) = self.backend.read_listed::<Referrer>(&meta.location).await? else {
                continue;
            };
            if self.has_manifest(repository, &referrer.digest).await? {
                found.push(referrer);
            }
        }
        found.sort_by(|a, b| a.digest.cmp(&b.digest));
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_cut_after_the_last_name() {
        let names = || ["a", "b", "c"].map(str::to_owned);
        let page = |last, n| Page::cut(names(), last, n);
        assert_eq!(page(None, 2), Page { names: vec!["a".into(), "b".into()], more: true });
        assert_eq!(page(Some("b"), 2), Page { names: vec!["c".into()], more: false });
        assert_eq!(page(Some("bb"), 1), Page { names: vec!["c".into()], more: false });
        assert_eq!(page(None, 0), Page { names: vec![], more: true });
    }
}
