//! What a killed process leaves is found, and swept once it is old.

use crate::bench::{Bench, Place, bytes_of, content_key};
use hydrant_proto::Digest;
use hydrant_store::PART_BYTES;
use std::{mem, time::Duration};

const HOUR: Duration = Duration::from_secs(3600);

pub async fn staged_files_of_a_killed_process_are_swept(bench: &Bench) {
    let Place::Directory(_) = &bench.place else { unreachable!("a directory") };
    let key = content_key(&Digest::of(b"x"));
    bench.overwrite(&format!("{key}#1"), "half").await;
    bench.overwrite(&format!("{key}#x"), "a name of somebody else").await;
    let left = bench.store.leftovers().await.unwrap();
    assert_eq!(left.iter().map(|left| &left.key).collect::<Vec<_>>(), [&key]);
    assert_eq!(bench.store.blob_size(&Digest::of(b"x")).await.unwrap(), None);
    assert_eq!(bench.store.sweep_leftovers(HOUR).await.unwrap(), 0);
    assert_eq!(bench.store.sweep_leftovers(Duration::ZERO).await.unwrap(), 1);
    assert_eq!(bench.objects().await.into_keys().collect::<Vec<_>>(), [format!("{key}#x")]);
}

pub async fn open_uploads_of_a_killed_process_are_swept(bench: &Bench) {
    let Place::S3 { server, prefix } = &bench.place else { unreachable!("S3") };
    let (bytes, digest) = (bytes_of(1, 2 * PART_BYTES), Digest::of(b"y"));
    let mut writer = bench.another().begin_blob(&digest, None);
    writer.write(bytes).await.unwrap();
    // As if the process were killed: no drop, no abort.
    mem::forget(writer);
    let key = format!("{prefix}/{}", content_key(&digest));
    assert_eq!(server.open_uploads().await, std::slice::from_ref(&key));
    let left = bench.store.leftovers().await.unwrap();
    assert_eq!(left.iter().map(|left| &left.key).collect::<Vec<_>>(), [&key]);
    assert_eq!(bench.store.sweep_leftovers(HOUR).await.unwrap(), 0);
    assert_eq!(bench.store.sweep_leftovers(Duration::ZERO).await.unwrap(), 1);
}
