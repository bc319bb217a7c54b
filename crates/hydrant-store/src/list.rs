//! Lists of tags and repositories, in the order and by the pages of the distribution spec.

use crate::{Store, error::StoreError, key};
use futures::{StreamExt, pin_mut, stream};
use hydrant_proto::{RepositoryName, Tag};
use object_store::path::Path;

/// Directories listed at once.
const AT_ONCE: usize = 16;

/// A page of a sorted list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Whether more follow; ask again with the last item.
    pub more: bool,
}

impl<T: Ord> Page<T> {
    fn cut(mut all: Vec<T>, n: usize) -> Self {
        all.sort_unstable();
        let more = all.len() > n;
        all.truncate(n);
        Self { items: all, more }
    }
}

impl Store {
    /// At most `n` tags of a repository after `last`, sorted by their bytes. Empty for a
    /// repository that is not there. Reads all keys below its tags: stores sort `a-b` before `a`,
    /// and some go on listing directories that are empty by now.
    pub async fn tags(
        &self,
        repository: &RepositoryName,
        last: Option<&Tag>,
        n: usize,
    ) -> Result<Page<Tag>, StoreError> {
        let root = self.below(&key::tags_of(repository));
        let listed = self.list_all(root.clone());
        pin_mut!(listed);
        let mut found = Vec::new();
        while let Some(object) = listed.next().await.transpose()? {
            let tag = current_tag(&root, &object.location);
            found.extend(tag.filter(|tag| last.is_none_or(|last| tag > last)));
        }
        Ok(Page::cut(found, n))
    }

    /// At most `n` repositories with manifests after `last`, sorted by their bytes. Walks them
    /// all: a store keeps directories in another order than names.
    pub async fn repositories(
        &self,
        last: Option<&RepositoryName>,
        n: usize,
    ) -> Result<Page<RepositoryName>, StoreError> {
        let root = self.below(&key::repositories());
        let (mut found, mut level) = (Vec::new(), vec![root.clone()]);
        while !level.is_empty() {
            let listed = stream::iter(level).map(|path| self.children(path));
            let mut listed = listed.buffer_unordered(AT_ONCE);
            let mut next = Vec::new();
            while let Some((path, children)) = listed.next().await.transpose()? {
                let (own, nested): (Vec<_>, Vec<_>) = children.into_iter().partition(is_own);
                if own.iter().any(|child| child.filename() == Some("_manifests")) {
                    found.extend(name_of(&root, &path));
                }
                next.extend(nested);
            }
            level = next;
        }
        Ok(Page::cut(
            found.into_iter().filter(|name| last.is_none_or(|last| name > last)).collect(),
            n,
        ))
    }

    async fn children(&self, path: Path) -> Result<(Path, Vec<Path>), StoreError> {
        let listed = self.list_directory(&path).await?;
        Ok((path, listed.common_prefixes))
    }
}

/// The tag whose current link this is.
fn current_tag(root: &Path, path: &Path) -> Option<Tag> {
    let mut parts = path.prefix_match(root)?;
    let tag = parts.next()?.as_ref().parse().ok()?;
    parts.next().filter(|part| part.as_ref() == "current").map(|_| tag)
}

/// Whether a directory is a repository's own (`_layers`, `_manifests`, `_uploads`), not another
/// repository.
fn is_own(path: &Path) -> bool {
    path.filename().is_some_and(|name| name.starts_with('_'))
}

fn name_of(root: &Path, path: &Path) -> Option<RepositoryName> {
    let parts: Vec<_> = path.prefix_match(root)?.map(|part| part.as_ref().to_owned()).collect();
    parts.join("/").parse().ok()
}
