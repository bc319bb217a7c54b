//! Lists, in the order and by the pages of the distribution spec.

use crate::{
    bench::{Bench, repository, tag},
    manifests::manifest,
    races::record,
};
use hydrant_proto::Digest;

pub async fn tags_and_repositories_come_in_pages(bench: &Bench) {
    let bytes = manifest(&[], None);
    let digest = Digest::of(&bytes);
    bench.store.stage_manifest(&digest, bytes).await.unwrap();
    // In the order of bytes; directories sort `a-b` behind `a/b`.
    let names = ["a", "a-b", "a/b", "a/b/c", "b"];
    for name in names {
        bench.store.commit_manifest(&repository(name), &digest).await.unwrap();
    }
    for name in ["B", "a", "b", "b.1", "b-1", "v1"] {
        bench.store.put_tag(&repository("a"), &tag(name), record("x"), None).await.unwrap();
    }
    let all = bench.store.repositories(None, 10).await.unwrap();
    assert_eq!((all.items, all.more), (names.map(repository).to_vec(), false));
    let page = bench.store.repositories(Some(&repository("a-b")), 2).await.unwrap();
    assert_eq!((page.items, page.more), (["a/b", "a/b/c"].map(repository).to_vec(), true));
    let all = bench.store.tags(&repository("a"), None, 10).await.unwrap();
    assert_eq!(all.items, ["B", "a", "b", "b-1", "b.1", "v1"].map(tag));
    let page = bench.store.tags(&repository("a"), Some(&tag("b")), 1).await.unwrap();
    assert_eq!((page.items, page.more), (vec![tag("b-1")], true));
    let none = bench.store.tags(&repository("a"), Some(&tag("v1")), 5).await.unwrap();
    assert_eq!((none.items, none.more), (vec![], false));
    assert!(bench.store.tags(&repository("zzz"), None, 5).await.unwrap().items.is_empty());
}

pub async fn a_repository_without_manifests_is_not_listed(bench: &Bench) {
    bench.store.link_blob(&repository("lab/app"), &Digest::of(b"x")).await.unwrap();
    assert!(bench.store.repositories(None, 10).await.unwrap().items.is_empty());
}
