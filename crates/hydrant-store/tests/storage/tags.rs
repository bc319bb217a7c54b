//! Tags: the record decides, the links follow.

use crate::{
    bench::{Bench, Place, repository, tag},
    races::record,
};
use futures::future::join_all;
use hydrant_proto::Digest;
use hydrant_store::{Owner, StoreError, TagAct};

const LINK: &str = "docker/registry/v2/repositories/lab/app/_manifests/tags/v1/current/link";

const HISTORY: &str = "hydrant/v1/repositories/lab/app/_history/v1.json";

async fn link(bench: &Bench) -> Option<String> {
    bench.read(LINK).await.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
}

pub async fn a_tag_moves_only_from_what_was_seen(bench: &Bench) {
    let (name, tag) = (repository("lab/app"), tag("v1"));
    assert!(bench.store.tag(&name, &tag).await.unwrap().is_none());
    let first = bench.store.put_tag(&name, &tag, record("a"), None).await.unwrap();
    let again = bench.store.put_tag(&name, &tag, record("b"), None).await;
    assert!(matches!(again, Err(StoreError::Conflict { .. })), "{again:?}");
    let second = bench.store.put_tag(&name, &tag, record("b"), Some(first.clone())).await.unwrap();
    assert_eq!((first.seq(), second.seq()), (1, 2));
    let stale = bench.store.put_tag(&name, &tag, record("c"), Some(first)).await;
    assert!(matches!(stale, Err(StoreError::Conflict { .. })), "{stale:?}");
    let (standing, version) = bench.store.tag(&name, &tag).await.unwrap().unwrap();
    assert_eq!((standing.digest, version), (Digest::of(b"b"), second));
    if !matches!(bench.place, Place::Memory) {
        assert_eq!(link(bench).await, Some(Digest::of(b"b").to_string()));
    }
}

pub async fn a_tombstone_takes_the_links_away(bench: &Bench) {
    let (name, tag) = (repository("lab/app"), tag("v1"));
    let version = bench.store.put_tag(&name, &tag, record("a"), None).await.unwrap();
    let mut tombstone = record("a");
    tombstone.deleted = true;
    let version = bench.store.put_tag(&name, &tag, tombstone, Some(version)).await.unwrap();
    assert!(bench.store.tag(&name, &tag).await.unwrap().unwrap().0.deleted);
    assert!(bench.store.tags(&name, None, 10).await.unwrap().items.is_empty());
    assert_eq!(link(bench).await, None);
    let older = bench.store.put_tag(&name, &tag, record("old"), None).await;
    assert!(matches!(older, Err(StoreError::Conflict { .. })), "{older:?}");
    bench.store.put_tag(&name, &tag, record("new"), Some(version)).await.unwrap();
    assert_eq!(bench.store.tags(&name, None, 10).await.unwrap().items.len(), 1);
}

pub async fn racing_writers_leave_the_link_of_the_winner(bench: &Bench) {
    let (name, tag) = (repository("lab/app"), tag("v1"));
    let stores = [bench.store.clone(), bench.another()];
    for round in 0..3 {
        let seen = bench.store.tag(&name, &tag).await.unwrap().map(|(_, version)| version);
        let writer = |n: usize| {
            let (store, name, tag) = (stores[n % 2].clone(), name.clone(), tag.clone());
            let seen = seen.clone();
            tokio::spawn(async move {
                let record = record(&format!("{round} {n}"));
                let Ok(version) = store.put_tag(&name, &tag, record.clone(), seen).await else {
                    return;
                };
                // The winner moves it on at once, while the losers are still at work.
                let mut next = record;
                next.digest = Digest::of(format!("{round} next").as_bytes());
                store.put_tag(&name, &tag, next, Some(version)).await.unwrap();
            })
        };
        join_all((0..8).map(writer)).await.into_iter().for_each(|done| done.unwrap());
        let (standing, _) = bench.store.tag(&name, &tag).await.unwrap().unwrap();
        assert_eq!(standing.digest, Digest::of(format!("{round} next").as_bytes()));
        if !matches!(bench.place, Place::Memory) {
            assert_eq!(link(bench).await, Some(standing.digest.to_string()));
        }
    }
}

pub async fn a_tag_of_a_stock_registry_is_adopted_as_pushed(bench: &Bench) {
    if matches!(bench.place, Place::Memory) {
        return;
    }
    let (name, tag) = (repository("lab/app"), tag("v1"));
    let manifest = crate::manifests::manifest(&[], None);
    let digest = Digest::of(&manifest);
    bench.store.stage_manifest(&digest, manifest).await.unwrap();
    bench.overwrite(LINK, digest.to_string()).await;
    let blind = bench.store.put_tag(&name, &tag, record("hydrated"), None).await;
    assert!(matches!(blind, Err(StoreError::Conflict { .. })), "{blind:?}");
    let (adopted, version) = bench.store.tag(&name, &tag).await.unwrap().unwrap();
    assert_eq!((adopted.owner, &adopted.digest, adopted.seq), (Owner::Push, &digest, 0));
    // Confirming keeps the seq; another digest raises it.
    let version = bench.store.put_tag(&name, &tag, adopted, Some(version)).await.unwrap();
    assert_eq!(version.seq(), 0);
    let version = bench.store.put_tag(&name, &tag, record("next"), Some(version)).await.unwrap();
    assert_eq!(version.seq(), 1);
}

/// As by a process killed between the record and its line.
pub async fn a_lost_line_of_the_history_is_put_in_by_who_comes_next(bench: &Bench) {
    let (name, tag) = (repository("lab/app"), tag("v1"));
    let history = async || {
        let lines = bench.store.tag_history(&name, &tag).await.unwrap();
        lines.into_iter().map(|line| (line.seq, line.act)).collect::<Vec<_>>()
    };
    let seen = TagAct::Seen;
    let first = bench.store.put_tag(&name, &tag, record("a"), None).await.unwrap();
    assert_eq!(history().await, [(1, seen)]);
    bench.overwrite(HISTORY, "{\"lines\":[]}".to_owned()).await;
    assert_eq!(history().await, [(1, seen)], "the record tells of its own change");
    let second = bench.store.put_tag(&name, &tag, record("b"), Some(first)).await.unwrap();
    assert_eq!(history().await, [(2, seen), (1, seen)]);
    // A confirmation is no change.
    bench.store.put_tag(&name, &tag, record("b"), Some(second)).await.unwrap();
    assert_eq!(history().await.len(), 2);
    bench.overwrite(HISTORY, "damaged".to_owned()).await;
    assert_eq!(history().await, [(2, seen)], "and the tag is none the worse");
}

/// As by a process killed between the record and the link.
pub async fn a_link_left_behind_is_mended(bench: &Bench) {
    if matches!(bench.place, Place::Memory) {
        return;
    }
    let (name, tag) = (repository("lab/app"), tag("v1"));
    bench.store.put_tag(&name, &tag, record("a"), None).await.unwrap();
    bench.overwrite(LINK, Digest::of(b"old").to_string()).await;
    bench.store.mend_tag_links(&name, &tag).await.unwrap();
    assert_eq!(link(bench).await, Some(Digest::of(b"a").to_string()));
}
