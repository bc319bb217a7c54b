//! Damaged content is never served.

use crate::{
    bench::{Bench, LIMIT, bytes_of, content_key, drain, put, repository, tag},
    manifests::manifest,
    races::record,
    records::{completion, miss, request},
};
use bytes::Bytes;
use hydrant_proto::Digest;
use hydrant_store::{
    DeadLetter, DeadLetterId, GivenUp, Owner, Scrubbed, StoreError, TagRecord, Wanted,
};
use hydrant_testkit::until;
use jiff::Timestamp;

const TAG_RECORD: &str = "hydrant/v1/repositories/lab/app/_tags/v1.json";
const TAG_LINK: &str = "docker/registry/v2/repositories/lab/app/_manifests/tags/v1/current/link";

fn flipped(bytes: &Bytes) -> Bytes {
    let mut bytes = bytes.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    bytes.into()
}

/// How often content was found damaged so far.
fn findings() -> u64 {
    let series = "hydrant_store_operations_total{operation=\"get\",outcome=\"corrupt\"} ";
    let text = hydrant_telemetry::metrics_text();
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    line.expect("it is told from the start").parse().unwrap()
}

fn quarantined(digest: &Digest) -> String {
    format!("hydrant/v1/quarantine/sha256/{}", digest.hex())
}

pub async fn a_flipped_manifest_is_quarantined_and_can_be_written_again(bench: &Bench) {
    let (bytes, name) = (manifest(&[], None), repository("lab/app"));
    let digest = Digest::of(&bytes);
    bench.store.stage_manifest(&digest, bytes.clone()).await.unwrap();
    bench.store.commit_manifest(&name, &digest).await.unwrap();
    bench.overwrite(&content_key(&digest), flipped(&bytes)).await;
    let before = findings();
    assert_eq!(bench.store.manifest(&name, &digest).await.unwrap(), None);
    assert_eq!(findings(), before + 1);
    assert_eq!(bench.read(&quarantined(&digest)).await, Some(flipped(&bytes)));
    assert_eq!(bench.read(&content_key(&digest)).await, None);
    bench.store.stage_manifest(&digest, bytes.clone()).await.unwrap();
    assert_eq!(bench.store.manifest(&name, &digest).await.unwrap(), Some(bytes));
}

pub async fn a_flipped_small_blob_counts_as_absent(bench: &Bench) {
    let bytes = bytes_of(1, 10_000);
    let digest = put(&bench.store, &bytes).await;
    bench.overwrite(&content_key(&digest), flipped(&bytes)).await;
    let before = findings();
    assert!(bench.store.read_blob(&digest, None).await.unwrap().is_none());
    assert_eq!(findings(), before + 1);
    assert_eq!(bench.store.blob_size(&digest).await.unwrap(), None);
    put(&bench.store, &bytes).await;
    assert_eq!(bench.store.scrub(&digest).await.unwrap(), Scrubbed::Sound);
}

pub async fn a_flipped_large_blob_never_ends_cleanly_and_is_quarantined(bench: &Bench) {
    let bytes = bytes_of(2, 3_000_000);
    let digest = put(&bench.store, &bytes).await;
    bench.overwrite(&content_key(&digest), flipped(&bytes)).await;
    let before = findings();
    let read = bench.store.read_blob(&digest, None).await.unwrap().unwrap();
    let (got, end) = drain(read).await;
    assert!(matches!(end, Err(StoreError::Corrupt { .. })), "{end:?}");
    assert_eq!(findings(), before + 1, "the reader saw it");
    assert!(got.len() < bytes.len() && bytes.starts_with(&got));
    until("the blob in quarantine", LIMIT, async || {
        bench.store.blob_size(&digest).await.unwrap().is_none().then_some(())
    })
    .await;
    assert_eq!(bench.read(&quarantined(&digest)).await, Some(flipped(&bytes)));
    assert_eq!(bench.store.scrub(&digest).await.unwrap(), Scrubbed::Missing);
    assert_eq!(findings(), before + 1, "what was found twice is one finding");
}

pub async fn a_flipped_blob_is_quarantined_though_only_a_part_is_read(bench: &Bench) {
    let bytes = bytes_of(4, 3_000_000);
    let digest = put(&bench.store, &bytes).await;
    bench.overwrite(&content_key(&digest), flipped(&bytes)).await;
    let before = findings();
    for _ in 0..3 {
        // The last of them may find it gone already.
        if let Some(read) = bench.store.read_blob(&digest, Some(5..10)).await.unwrap() {
            assert_eq!(drain(read).await.0, bytes[5..10]);
        }
    }
    until("the blob in quarantine", LIMIT, async || {
        bench.store.blob_size(&digest).await.unwrap().is_none().then_some(())
    })
    .await;
    assert_eq!(bench.read(&quarantined(&digest)).await, Some(flipped(&bytes)));
    assert_eq!(findings(), before + 1);
}

pub async fn a_short_or_empty_object_counts_as_absent(bench: &Bench) {
    let bytes = bytes_of(3, 500_000);
    let digest = put(&bench.store, &bytes).await;
    bench.overwrite(&content_key(&digest), bytes.slice(..1_000)).await;
    assert!(!bench.store.has_blob(&digest, 500_000).await.unwrap());
    assert!(bench.store.read_blob(&digest, None).await.unwrap().is_none());
    put(&bench.store, &bytes).await;
    bench.overwrite(&content_key(&digest), Bytes::new()).await;
    assert_eq!(bench.store.blob_size(&digest).await.unwrap(), None);
    assert!(bench.store.read_blob(&digest, None).await.unwrap().is_none());
    assert!(bench.store.read_blob(&digest, Some(0..5)).await.unwrap().is_none());
    put(&bench.store, &bytes).await;
    assert!(bench.store.has_blob(&digest, 500_000).await.unwrap());
}

/// A record of `lab/app:v1` that names a manifest in storage.
async fn record_of_a_manifest(bench: &Bench) -> TagRecord {
    let bytes = manifest(&[], None);
    let digest = Digest::of(&bytes);
    bench.store.stage_manifest(&digest, bytes).await.unwrap();
    TagRecord { digest, confirmed_at: Timestamp::MAX, ..record("") }
}

pub async fn a_damaged_tag_record_gives_way_to_the_link_and_is_replaced(bench: &Bench) {
    let (name, tag) = (repository("lab/app"), tag("v1"));
    let written = record_of_a_manifest(bench).await;
    let before = bench.store.put_tag(&name, &tag, written.clone(), None).await.unwrap();
    bench.overwrite(TAG_RECORD, "{garbage").await;
    let (found, version) = bench.store.tag(&name, &tag).await.unwrap().unwrap();
    assert_eq!((found.owner, &found.digest), (Owner::Cache, &written.digest));
    assert_eq!(found.confirmed_at, Timestamp::UNIX_EPOCH);
    bench.store.mend_tag_links(&name, &tag).await.unwrap();
    for expected in [None, Some(before.clone())] {
        let blind = bench.store.put_tag(&name, &tag, record("blind"), expected).await;
        assert!(matches!(blind, Err(StoreError::Conflict { .. })), "{blind:?}");
    }
    let after = bench.store.put_tag(&name, &tag, record("next"), Some(version)).await.unwrap();
    assert!(after.seq() > before.seq() + 1, "a seq must not come twice: {}", after.seq());
    let (standing, version) = bench.store.tag(&name, &tag).await.unwrap().unwrap();
    assert_eq!((standing.digest, version), (Digest::of(b"next"), after));
    let link = bench.read(TAG_LINK).await.unwrap();
    assert_eq!(link, Digest::of(b"next").to_string());
}

pub async fn a_damaged_tag_record_without_a_link_is_replaced(bench: &Bench) {
    let (name, tag) = (repository("lab/app"), tag("v1"));
    for link in [None, Some("garbage".to_owned()), Some(Digest::of(b"gone").to_string())] {
        bench.overwrite(TAG_RECORD, "").await;
        if let Some(link) = link {
            bench.overwrite(TAG_LINK, link).await;
        }
        assert_eq!(bench.store.tag(&name, &tag).await.unwrap(), None);
        bench.store.put_tag(&name, &tag, record("next"), None).await.unwrap();
        let (standing, _) = bench.store.tag(&name, &tag).await.unwrap().unwrap();
        assert_eq!(standing.digest, Digest::of(b"next"));
    }
}

pub async fn a_damaged_record_of_a_push_stays_a_push(bench: &Bench) {
    let (name, tag) = (repository("lab/app"), tag("v1"));
    let pushed = TagRecord { owner: Owner::Push, ..record_of_a_manifest(bench).await };
    bench.store.put_tag(&name, &tag, pushed, None).await.unwrap();
    let whole = bench.read(TAG_RECORD).await.unwrap();
    bench.overwrite(TAG_RECORD, whole.slice(..whole.len() / 2)).await;
    let (found, _) = bench.store.tag(&name, &tag).await.unwrap().unwrap();
    assert_eq!(found.owner, Owner::Push);
}

pub async fn a_damaged_record_of_a_job_does_not_block_it(bench: &Bench) {
    let (store, job) = (&bench.store, request("v1").id());
    let letter = DeadLetter {
        id: DeadLetterId::of_job(&job),
        given_up: GivenUp::Job { request: request("v1") },
        class: None,
        reason: "gone".to_owned(),
        attempts: 1,
        at: Timestamp::UNIX_EPOCH,
    };
    for record in [
        format!("completions/{job}.json"),
        format!("misses/{job}.json"),
        format!("dead-letters/{}.json", letter.id),
    ] {
        bench.overwrite(&format!("hydrant/v1/{record}"), "{garbage").await;
    }
    assert_eq!(store.completion(&job).await.unwrap(), None);
    assert_eq!(store.misses(&job).await.unwrap(), []);
    assert_eq!(store.dead_letter(&letter.id).await.unwrap(), None);
    let (completion, miss) = (completion(1, 10), miss("v1", Wanted::Whole, 1));
    store.put_completion(&job, completion.clone()).await.unwrap();
    store.record_miss(&miss).await.unwrap();
    store.put_dead_letter(&letter).await.unwrap();
    assert_eq!(store.completion(&job).await.unwrap(), Some(completion));
    assert_eq!(store.misses(&job).await.unwrap(), [miss]);
    assert_eq!(store.dead_letter(&letter.id).await.unwrap(), Some(letter));
}
