//! Blobs: what is written is read, what is wrong is never seen.

use crate::bench::{Bench, bytes_of, drain, put};
use bytes::Bytes;
use hydrant_proto::Digest;
use hydrant_store::{PART_BYTES, Scrubbed, StoreError};
use std::{ops::Range, time::Duration};

async fn part(bench: &Bench, digest: &Digest, range: Range<u64>) -> (Vec<u8>, Range<u64>) {
    let read = bench.store.read_blob(digest, Some(range)).await.unwrap().unwrap();
    let range = read.range.clone();
    let (bytes, end) = drain(read).await;
    end.unwrap();
    (bytes, range)
}

pub async fn a_blob_is_read_back_whole_and_in_parts(bench: &Bench) {
    let bytes = bytes_of(1, 700_000);
    let digest = put(&bench.store, &bytes).await;
    assert_eq!(bench.store.blob_size(&digest).await.unwrap(), Some(700_000));
    assert!(bench.store.has_blob(&digest, 700_000).await.unwrap());
    assert!(!bench.store.has_blob(&digest, 700_001).await.unwrap());
    let whole = bench.store.read_blob(&digest, None).await.unwrap().unwrap();
    assert_eq!(whole.size, 700_000);
    assert_eq!(drain(whole).await.0, bytes);
    assert_eq!(part(bench, &digest, 10..20).await, (bytes[10..20].to_vec(), 10..20));
    assert_eq!(part(bench, &digest, 699_990..u64::MAX).await.0, bytes[699_990..]);
    assert_eq!(part(bench, &digest, 699_990..900_000).await.1, 699_990..700_000);
    for behind in [700_000..700_001, 700_000..u64::MAX, 5..5] {
        let read = bench.store.read_blob(&digest, Some(behind)).await.unwrap().unwrap();
        assert_eq!((read.size, read.range.is_empty()), (700_000, true));
    }
    let absent = Digest::of(b"absent");
    assert!(bench.store.read_blob(&absent, None).await.unwrap().is_none());
    assert!(bench.store.read_blob(&absent, Some(0..1)).await.unwrap().is_none());
    assert_eq!(bench.store.blob_size(&absent).await.unwrap(), None);
}

pub async fn an_empty_blob_is_a_blob(bench: &Bench) {
    let digest = put(&bench.store, &Bytes::new()).await;
    assert_eq!(bench.store.blob_size(&digest).await.unwrap(), Some(0));
    let read = bench.store.read_blob(&digest, None).await.unwrap().unwrap();
    let (bytes, end) = drain(read).await;
    assert!(bytes.is_empty() && end.is_ok());
}

pub async fn a_blob_of_many_parts_is_read_back(bench: &Bench) {
    for length in [PART_BYTES, PART_BYTES + 1, 5 * PART_BYTES + 12_345] {
        let bytes = bytes_of(2, length);
        let digest = put(&bench.store, &bytes).await;
        let read = bench.store.read_blob(&digest, None).await.unwrap().unwrap();
        let (read, end) = drain(read).await;
        end.unwrap();
        assert!(read == bytes, "{length} bytes are not read back");
    }
}

pub async fn wrong_bytes_are_never_visible(bench: &Bench) {
    for length in [100, 3 * PART_BYTES] {
        let (bytes, digest) = (bytes_of(3, length), Digest::of(b"something else"));
        let mut writer = bench.store.begin_blob(&digest, None);
        writer.write(bytes.clone()).await.unwrap();
        assert_eq!(bench.store.blob_size(&digest).await.unwrap(), None);
        assert!(matches!(writer.commit().await, Err(StoreError::Mismatch { .. })));
        assert_eq!(bench.store.blob_size(&digest).await.unwrap(), None);
        let right = Digest::of(&bytes);
        let mut short = bench.store.begin_blob(&right, Some(length as u64 + 1));
        short.write(bytes.clone()).await.unwrap();
        assert!(matches!(short.commit().await, Err(StoreError::Mismatch { .. })));
        let mut long = bench.store.begin_blob(&right, Some(length as u64 - 1));
        assert!(matches!(long.write(bytes).await, Err(StoreError::Mismatch { .. })));
        long.abort().await;
        assert_eq!(bench.store.blob_size(&right).await.unwrap(), None);
    }
    let put = bench.store.put_blob_bytes(&Digest::of(b"a"), "b".into()).await;
    assert!(matches!(put, Err(StoreError::Mismatch { .. })));
    bench.leaves_nothing_open().await;
    assert!(bench.objects().await.is_empty());
}

/// Of what is stored already; a failed write takes away only its own.
pub async fn a_failed_write_leaves_what_is_there(bench: &Bench) {
    for length in [100, 2 * PART_BYTES] {
        let (bytes, other) = (bytes_of(6, length), bytes_of(7, length));
        let digest = put(&bench.store, &bytes).await;
        let mut wrong = bench.store.begin_blob(&digest, None);
        wrong.write(other.clone()).await.unwrap();
        assert!(matches!(wrong.commit().await, Err(StoreError::Mismatch { .. })));
        let mut given_up = bench.store.begin_blob(&digest, None);
        given_up.write(other).await.unwrap();
        given_up.abort().await;
        assert_eq!(bench.store.scrub(&digest).await.unwrap(), Scrubbed::Sound, "{length}");
    }
}

pub async fn an_aborted_or_dropped_blob_leaves_nothing(bench: &Bench) {
    let bytes = bytes_of(4, 6 * PART_BYTES);
    let digest = Digest::of(&bytes);
    for is_dropped in [false, true] {
        let mut writer = bench.store.begin_blob(&digest, None);
        writer.write(bytes.clone()).await.unwrap();
        match is_dropped {
            true => drop(writer),
            false => writer.abort().await,
        }
        bench.leaves_nothing_open().await;
    }
    assert_eq!(bench.store.blob_size(&digest).await.unwrap(), None);
    assert!(bench.objects().await.is_empty());
}

/// The caller is cut off at many different moments of a write.
pub async fn a_caller_that_goes_away_leaves_nothing_open(bench: &Bench) {
    let bytes = bytes_of(5, 2 * PART_BYTES);
    let digest = Digest::of(&bytes);
    for micros in [0, 50, 200, 1_000, 5_000, 20_000, 60_000] {
        let write = async {
            let mut writer = bench.store.begin_blob(&digest, None);
            writer.write(bytes.clone()).await?;
            writer.commit().await
        };
        // Either outcome will do; what matters is what is left.
        drop(tokio::time::timeout(Duration::from_micros(micros), write).await);
    }
    bench.leaves_nothing_open().await;
    if bench.store.blob_size(&digest).await.unwrap().is_some() {
        let read = bench.store.read_blob(&digest, None).await.unwrap().unwrap();
        drain(read).await.1.unwrap();
    }
}
