//! Blobs that come from a spool file: stored as they are, and only under the digest of their seal.

use crate::bench::{Bench, Place, bytes_of, content_key, drain};
use bytes::Bytes;
use hydrant_proto::{Algorithm, Digest};
use hydrant_store::{PART_BYTES, Spooled, Store, StoreError};
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

fn spool(dir: &Path, bytes: &[u8]) -> Spooled {
    let mut spooled = Spooled::create(dir, Algorithm::Sha256).unwrap();
    bytes.chunks(1_000_003).for_each(|piece| spooled.append(piece).unwrap());
    spooled
}

/// As a flight does it: part by part while it is being spooled, then the seal.
async fn store(store: &Store, dir: &Path, bytes: &Bytes) -> Digest {
    let digest = Digest::of(bytes);
    let spooled = spool(dir, bytes);
    let mut write = store.begin_spooled(&digest, &spooled.reader());
    while let Some(at) = write.next_part()
        && at + PART_BYTES as u64 <= bytes.len() as u64
    {
        write.send().await.unwrap();
    }
    assert_eq!(store.blob_size(&digest).await.unwrap(), None, "it is not sealed yet");
    let sealed = spooled.seal(&digest).unwrap();
    write.link_in(&"lab/app".parse().unwrap());
    assert_eq!(write.commit(&sealed).await.unwrap(), bytes.len() as u64);
    digest
}

async fn assert_stored(bench: &Bench, digest: &Digest, bytes: &Bytes) {
    let read = bench.another().read_blob(digest, None).await.unwrap().unwrap();
    let (found, end) = drain(read).await;
    end.unwrap();
    assert!(found == *bytes, "{} bytes are not read back", bytes.len());
}

pub async fn a_blob_in_memory_is_stored_by_its_seal_only(bench: &Bench) {
    let dir = tempfile::tempdir().unwrap();
    let bytes = bytes_of(3, 300);
    let digest = Digest::of(&bytes);
    let spool = || {
        let mut spooled = Spooled::in_memory(Algorithm::Sha256);
        bytes.chunks(7).for_each(|piece| spooled.append(piece).unwrap());
        spooled
    };
    let (first, second) = (spool(), spool());
    for other in [second.reader(), self::spool(dir.path(), &bytes).reader()] {
        let write = bench.store.begin_spooled(&digest, &other);
        let committed = write.commit(&spool().seal(&digest).unwrap()).await;
        assert!(matches!(committed, Err(StoreError::Mismatch { .. })), "{committed:?}");
    }
    let mut write = bench.store.begin_spooled(&digest, &first.reader());
    let name = "lab/app".parse().unwrap();
    write.link_in(&name);
    assert_eq!(bench.store.blob_size(&digest).await.unwrap(), None);
    assert!(!bench.store.has_link(&name, &digest).await.unwrap());
    assert_eq!(write.commit(&first.seal(&digest).unwrap()).await.unwrap(), 300);
    assert!(bench.store.has_link(&name, &digest).await.unwrap());
    assert_stored(bench, &digest, &bytes).await;
}

pub async fn a_spooled_blob_is_stored_once_it_is_sealed(bench: &Bench) {
    let dir = tempfile::tempdir().unwrap();
    for length in [0, 5, PART_BYTES, 2 * PART_BYTES + 12_345] {
        let bytes = bytes_of(length as u64, length);
        let digest = store(&bench.store, dir.path(), &bytes).await;
        assert_stored(bench, &digest, &bytes).await;
        assert!(bench.store.has_link(&"lab/app".parse().unwrap(), &digest).await.unwrap());
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

pub async fn what_was_sealed_is_all_that_can_be_stored(bench: &Bench) {
    let dir = tempfile::tempdir().unwrap();
    let bytes = bytes_of(7, PART_BYTES + 1);
    let (right, wrong) = (Digest::of(&bytes), Digest::of(b"wrong"));
    assert!(spool(dir.path(), &bytes).seal(&wrong).is_err());
    // The seal of one file says nothing about another, nor about another digest.
    let (first, second) = (spool(dir.path(), &bytes), spool(dir.path(), &bytes));
    let writes = [
        bench.store.begin_spooled(&right, &second.reader()),
        bench.store.begin_spooled(&wrong, &first.reader()),
    ];
    let sealed = first.seal(&right).unwrap();
    for mut write in writes {
        write.send().await.unwrap();
        let committed = write.commit(&sealed).await;
        assert!(matches!(committed, Err(StoreError::Mismatch { .. })), "{committed:?}");
    }
    for digest in [right, wrong] {
        assert_eq!(bench.store.blob_size(&digest).await.unwrap(), None);
    }
    bench.leaves_nothing_open().await;
}

pub async fn a_spool_file_on_the_same_file_system_is_not_copied(bench: &Bench) {
    let Place::Directory(directory) = &bench.place else { unreachable!("a directory") };
    let dir = tempfile::tempdir_in(directory.path()).unwrap();
    let bytes = bytes_of(9, PART_BYTES + 1);
    let digest = Digest::of(&bytes);
    let path = directory.path().join(content_key(&digest));
    bench.overwrite(&content_key(&digest), "damaged").await;
    bench.overwrite(&format!("{}#1", content_key(&digest)), "half").await;
    let spooled = spool(dir.path(), &bytes);
    let mut write = bench.store.begin_spooled(&digest, &spooled.reader());
    assert_eq!(write.next_part(), None, "there is nothing to send");
    write.send().await.unwrap();
    write.commit(&spooled.seal(&digest).unwrap()).await.unwrap();
    assert_stored(bench, &digest, &bytes).await;
    let (found, usual) = (fs::metadata(&path).unwrap(), directory.path().join("usual"));
    fs::write(&usual, "").unwrap();
    assert_eq!(found.nlink(), 1);
    let mode = |meta: fs::Metadata| meta.permissions().mode();
    assert_eq!(mode(found), mode(fs::metadata(usual).unwrap()), "a stock registry reads it, too");
    assert_eq!(bench.store.end_other_writes(&digest).await.unwrap(), 1);
}

/// Once a name was taken away again, the file cannot be given another.
pub async fn a_file_that_cannot_be_named_is_copied(bench: &Bench) {
    let Place::Directory(directory) = &bench.place else { unreachable!("a directory") };
    let bytes = bytes_of(11, PART_BYTES + 1);
    let digest = Digest::of(&bytes);
    let spooled = spool(directory.path(), &bytes);
    let (reader, sealed) = (spooled.reader(), spooled.seal(&digest).unwrap());
    for _ in 0..2 {
        bench.store.begin_spooled(&digest, &reader).commit(&sealed).await.unwrap();
        assert_stored(bench, &digest, &bytes).await;
        fs::remove_file(directory.path().join(content_key(&digest))).unwrap();
    }
}
