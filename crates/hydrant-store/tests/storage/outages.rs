//! S3 that refuses, forgets to answer, or says that all is well when it is not.

use crate::{
    bench::{Bench, bytes_of, content_key, drain, put, repository, tag},
    races::record,
};
use bytes::Bytes;
use hydrant_proto::Digest;
use hydrant_store::{PART_BYTES, Retry, Scrubbed, StoreError};
use hydrant_testkit::{S3Front, SeaweedFs, Spoiling, Spoilt};
use std::sync::Arc;

const BLOBS: &str = "*/blobs/*";

/// A store that reaches its bucket through a front.
async fn behind_a_front(server: &Arc<SeaweedFs>) -> (Bench, S3Front) {
    let front = S3Front::start(server).await;
    (Bench::through(&front, server), front)
}

async fn written(bench: &Bench, bytes: &Bytes) -> Result<u64, StoreError> {
    let mut writer = bench.store.begin_blob(&Digest::of(bytes), Some(bytes.len() as u64));
    writer.write(bytes.clone()).await?;
    writer.commit().await
}

pub async fn a_write_that_is_refused_leaves_nothing(server: &Arc<SeaweedFs>) {
    for (status, code) in [(500, "InternalError"), (503, "SlowDown"), (507, "StorageFull")] {
        let (bench, front) = behind_a_front(server).await;
        for length in [1_000, 2 * PART_BYTES] {
            let refusing = front.spoil(Spoiling::of("PUT", BLOBS, Spoilt::Refused(status, code)));
            let bytes = bytes_of(1, length);
            let error = written(&bench, &bytes).await.unwrap_err();
            assert!(refusing.fired() > 0);
            assert_ne!(error.retry(), Retry::Never, "{error}");
            match (status, length) {
                (503, PART_BYTES..) => {
                    assert!(matches!(error, StoreError::Throttled { .. }), "{error:?}");
                }
                (507, _) => assert!(matches!(error, StoreError::Full { .. }), "{error:?}"),
                _ => {}
            }
            refusing.end();
            assert_eq!(bench.another().blob_size(&Digest::of(&bytes)).await.unwrap(), None);
            bench.leaves_nothing_open().await;
            assert_eq!(written(&bench, &bytes).await.unwrap(), length as u64, "it is over");
        }
    }
}

pub async fn a_write_whose_answer_is_lost_is_known_for_our_own(server: &Arc<SeaweedFs>) {
    let (bench, front) = behind_a_front(server).await;
    let (name, tag) = (repository("lab/app"), tag("v1"));
    let mut version = None;
    for of in ["first", "second"] {
        let lost = front.spoil(Spoiling::of("PUT", "*/_tags/*", Spoilt::Unanswered).times(1));
        let put = bench.store.put_tag(&name, &tag, record(of), version).await;
        version = Some(put.unwrap_or_else(|error| panic!("{of}: {error}")));
        assert_eq!(lost.fired(), 1);
        let (found, _) = bench.another().tag(&name, &tag).await.unwrap().unwrap();
        assert_eq!(found.digest, Digest::of(of.as_bytes()));
    }
    let bytes = bytes_of(2, 2 * PART_BYTES);
    let completing = Spoiling::of("POST", BLOBS, Spoilt::Unanswered).query("uploadId=");
    let lost = front.spoil(completing.times(1));
    assert_eq!(written(&bench, &bytes).await.unwrap(), bytes.len() as u64);
    assert_eq!(lost.fired(), 1);
    bench.leaves_nothing_open().await;
}

pub async fn a_completion_that_fails_shows_nothing(server: &Arc<SeaweedFs>) {
    let bytes = bytes_of(3, 2 * PART_BYTES + 1);
    let digest = Digest::of(&bytes);
    for (method, query, status) in [
        // Amazon's way to fail after it began to answer.
        ("POST", "uploadId=", 200),
        ("POST", "uploadId=", 500),
        ("PUT", "partNumber=2", 500),
        ("PUT", "partNumber=3", 500),
    ] {
        let (bench, front) = behind_a_front(server).await;
        let refused = Spoilt::Refused(status, "InternalError");
        let failing = front.spoil(Spoiling::of(method, BLOBS, refused).query(query));
        let error = written(&bench, &bytes).await.unwrap_err();
        assert!(failing.fired() > 0);
        assert_ne!(error.retry(), Retry::Never, "{method} {query} {status}: {error}");
        failing.end();
        assert_eq!(bench.another().blob_size(&digest).await.unwrap(), None);
        assert_eq!(bench.read(&content_key(&digest)).await, None);
        bench.leaves_nothing_open().await;
        assert_eq!(written(&bench, &bytes).await.unwrap(), bytes.len() as u64, "it is over");
    }
}

pub async fn what_is_damaged_on_the_way_is_not_given_out_and_not_blamed(server: &Arc<SeaweedFs>) {
    let (bench, front) = behind_a_front(server).await;
    for length in [10_000, 3_000_000] {
        let bytes = bytes_of(length as u64, length);
        let digest = put(&bench.store, &bytes).await;
        let read = async || drain(bench.store.read_blob(&digest, None).await?.unwrap()).await.1;
        let flipped = front.spoil(Spoiling::of("GET", BLOBS, Spoilt::Flipped).times(1));
        if let Err(error) = read().await {
            assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
        }
        assert_eq!(flipped.fired(), 1);
        bench.store.settled().await;
        assert_eq!(bench.store.scrub(&digest).await.unwrap(), Scrubbed::Sound);

        let cut = front.spoil(Spoiling::of("GET", BLOBS, Spoilt::CutAfter(5_000)).times(2));
        let whole = bench.store.read_blob(&digest, None).await.unwrap().unwrap();
        let (got, end) = drain(whole).await;
        assert!(end.is_ok() && got == bytes, "a break is resumed: {end:?}");
        assert_eq!(cut.fired(), 2);

        let cut = front.spoil(Spoiling::of("GET", BLOBS, Spoilt::CutAfter(0)));
        assert!(read().await.is_err(), "what breaks for ever ends in an error");
        cut.end();
        read().await.unwrap();
    }
}
