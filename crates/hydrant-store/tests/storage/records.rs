//! Records beside the content.

use crate::bench::{Bench, repository};
use futures::TryStreamExt;
use hydrant_proto::{
    Digest, Event, EventData, EventKind, FailureClass, HydrationRequested, Lane, MediaType,
    Reference,
};
use hydrant_store::{CompletionRecord, DeadLetter, DeadLetterId, GivenUp, MissRecord, Wanted};
use jiff::Timestamp;
use std::time::Duration;

pub fn request(tag: &str) -> HydrationRequested {
    HydrationRequested {
        rule: "lab".to_owned(),
        generation: "g1".to_owned(),
        upstream: "lab".to_owned(),
        repository: repository("lab/app"),
        reference: Reference::Tag(tag.parse().unwrap()),
        lane: Lane::Interactive,
        platforms: Vec::new(),
        requested_at: Timestamp::UNIX_EPOCH,
    }
}

pub fn miss(tag: &str, wanted: Wanted, second: i64) -> MissRecord {
    let missed_at = Timestamp::from_second(second).unwrap();
    MissRecord::new(request(tag), wanted, missed_at)
}

pub async fn misses_are_kept_until_forgotten(bench: &Bench) {
    let store = &bench.store;
    let arm = Wanted::Platform("linux/arm64".parse().unwrap());
    let child = Wanted::Child(Digest::of(b"child"));
    for wanted in [Wanted::Whole, Wanted::All, arm.clone(), child] {
        store.record_miss(&miss("v1", wanted, 1)).await.unwrap();
    }
    store.record_miss(&miss("v2", Wanted::Whole, 1)).await.unwrap();
    // Told again, it is the same miss, and as old as it was.
    store.record_miss(&miss("v1", arm.clone(), 2)).await.unwrap();
    let id = request("v1").id();
    let mut kept = store.misses(&id).await.unwrap();
    assert_eq!(kept.len(), 4);
    assert!(kept.iter().all(|miss| miss.missed_at.as_second() == 1));
    let all: Vec<_> = store.all_misses(Duration::ZERO).try_collect().await.unwrap();
    assert_eq!(all.len(), 5);
    let old: Vec<_> = store.all_misses(Duration::from_secs(3600)).try_collect().await.unwrap();
    assert!(old.is_empty());
    kept.retain(|miss| miss.wanted != arm);
    store.forget_misses(&kept).await.unwrap();
    store.forget_misses(&kept).await.unwrap();
    let left = store.misses(&id).await.unwrap();
    assert_eq!(left.iter().map(|miss| &miss.wanted).collect::<Vec<_>>(), [&arm]);
}

/// What is missed while the job of an earlier miss runs is not forgotten with that.
pub async fn what_is_missed_of_a_tag_that_moved_is_another_miss(bench: &Bench) {
    let (store, id) = (&bench.store, request("v1").id());
    let of = |manifest: &str, wanted: Wanted| MissRecord {
        digest: Some(Digest::of(manifest.as_bytes())),
        ..miss("v1", wanted, 1)
    };
    let arm = Wanted::Platform("linux/arm64".parse().unwrap());
    for wanted in [Wanted::Whole, arm] {
        store.record_miss(&of("old", wanted.clone())).await.unwrap();
        let known = store.misses(&id).await.unwrap();
        assert_eq!(known, [of("old", wanted.clone())]);
        for manifest in ["old", "new", "new"] {
            store.record_miss(&of(manifest, wanted.clone())).await.unwrap();
        }
        store.record_miss(&miss("v1", wanted.clone(), 2)).await.unwrap();
        store.forget_misses(&known).await.unwrap();
        let left = store.misses(&id).await.unwrap();
        assert_eq!(left, [MissRecord { again: true, ..of("new", wanted) }]);
        store.forget_misses(&left).await.unwrap();
        assert!(store.misses(&id).await.unwrap().is_empty());
    }
}

/// On a directory, the last miss forgotten takes its directory away under the next one.
pub async fn recording_and_forgetting_at_once_loses_nothing(bench: &Bench) {
    let (store, id) = (bench.store.clone(), request("v1").id());
    let forgetting = tokio::spawn(async move {
        for _ in 0..60 {
            store.forget_misses(&[miss("v1", Wanted::Whole, 1)]).await.unwrap();
        }
    });
    for _ in 0..60 {
        bench.store.record_miss(&miss("v1", Wanted::Whole, 1)).await.unwrap();
        bench.store.misses(&id).await.unwrap();
    }
    forgetting.await.unwrap();
}

pub fn completion(seq: u64, at: i64) -> CompletionRecord {
    let completed_at = Timestamp::from_second(at).unwrap();
    let digest = Digest::of(seq.to_string().as_bytes());
    let data = EventData { seq, digest: Some(digest.clone()), ..EventData::default() };
    CompletionRecord {
        rule: "lab".to_owned(),
        generation: "g1".to_owned(),
        repository: repository("lab/app"),
        reference: "v1".parse().unwrap(),
        digest,
        media_type: MediaType::OciManifest,
        platforms: Vec::new(),
        size_bytes: 1,
        blobs: 1,
        seq,
        completed_at,
        event: Event::new(EventKind::ImageHydrated, completed_at, data),
    }
}

pub async fn an_older_completion_never_replaces_a_newer(bench: &Bench) {
    let (store, job) = (&bench.store, request("v1").id());
    assert_eq!(store.completion(&job).await.unwrap(), None);
    let first = store.put_completion(&job, completion(2, 10)).await.unwrap();
    assert_eq!(first, completion(2, 10));
    // The same event told by another worker later: the event as it was first told.
    let again = store.put_completion(&job, completion(2, 20)).await.unwrap();
    assert_eq!(again, first);
    let older = store.put_completion(&job, completion(1, 30)).await.unwrap();
    assert_eq!(older, first);
    let newer = store.put_completion(&job, completion(3, 40)).await.unwrap();
    assert_eq!(store.completion(&job).await.unwrap(), Some(newer));
    let all: Vec<_> = store.all_completions(Duration::ZERO).try_collect().await.unwrap();
    assert_eq!(all.len(), 1);
}

pub async fn dead_letters_are_kept_until_dropped(bench: &Bench) {
    let store = &bench.store;
    let letter = |id: DeadLetterId, given_up: GivenUp, at: i64| DeadLetter {
        id,
        given_up,
        class: Some(FailureClass::Unknown),
        reason: "gone".to_owned(),
        attempts: 3,
        at: Timestamp::from_second(at).unwrap(),
    };
    let job = letter(
        DeadLetterId::of_job(&request("v1").id()),
        GivenUp::Job { request: request("v1") },
        1,
    );
    let bytes = b"\x00junk";
    let malformed = letter(
        DeadLetterId::of_malformed("hydrate.x", bytes),
        GivenUp::malformed("hydrate.x", bytes),
        2,
    );
    for letter in [&job, &malformed, &job] {
        store.put_dead_letter(letter).await.unwrap();
    }
    // By when they were written, which not every store tells exactly.
    let page = store.dead_letters(None, 9).await.unwrap();
    assert_eq!((page.total, page.next), (2, None));
    assert!(page.items.contains(&job) && page.items.contains(&malformed));
    assert_eq!(store.dead_letters(None, 1).await.unwrap().items.len(), 1);
    assert_eq!(store.dead_letter(&job.id).await.unwrap(), Some(job.clone()));
    store.delete_dead_letter(&job.id).await.unwrap();
    store.delete_dead_letter(&job.id).await.unwrap();
    assert_eq!(store.dead_letters(None, 9).await.unwrap().items, [malformed]);
}
