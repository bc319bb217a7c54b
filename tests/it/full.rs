//! Disks that are really full, below the spool and below the store. Mounting them needs root;
//! without it these tests say so and check nothing.

use crate::{
    audit,
    lab::{config, hydrated, role},
};
use hydrant_testkit::{FakeUpstream, Image, ImageBuilder, NatsServer, Skopeo};
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

const MIB: usize = 1024 * 1024;

/// A small file system of its own, gone when it is dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    /// `None` where it cannot be mounted.
    fn of(mebibytes: usize) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let size = format!("size={mebibytes}m");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "hydrant-it"]).arg(directory.path());
        if mount.output().is_ok_and(|output| output.status.success()) {
            return Some(Self(directory));
        }
        eprintln!("skipped: mounting a small disk needs root");
        None
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all the room there is; the file to remove for having it again.
    fn fill(&self) -> PathBuf {
        let path = self.path().join("ballast");
        let mut file = File::create(&path).unwrap();
        let full = (0..).find_map(|_| file.write_all(&[0; MIB / 16]).err()).unwrap();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whoever still has a file open there keeps only that.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).output();
    }
}

fn insert(upstream: &FakeUpstream, repository: &str, layer: usize) -> Image {
    let image = ImageBuilder::new(layer as u64).layers(&[layer as u64]).build();
    upstream.insert(&image, repository, "1");
    image
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_below_the_spool_harms_only_what_has_no_room_and_is_got_over() {
    let Some(disk) = Disk::of(16) else { return };
    let (upstream, store) = (FakeUpstream::start().await, tempfile::tempdir().unwrap());
    let (nats, large) = (NatsServer::start().await, insert(&upstream, "large", 4 * MIB));
    let small = insert(&upstream, "small", 1_000);
    let mut hydrant = role("up", &config(&upstream.url()))
        .data(&disk.path().join("data"))
        .store(store.path().to_str().unwrap())
        .nats(&nats.url())
        .start()
        .await;
    let ballast = disk.fill();
    let pull = async |repository: &str| {
        Skopeo::pull(format!("{}/lab/{repository}:1", hydrant.host())).run().await
    };
    // The first is cut off, never ended cleanly too early; those after it are passed through.
    let layer = large.all_blobs().into_iter().max_by_key(|blob| blob.size).unwrap();
    let url = format!("{}/v2/lab/large/blobs/{}", hydrant.url(), layer.digest);
    let answer = reqwest::get(url).await.expect("hydrant answers");
    if answer.status() == 200
        && let Ok(bytes) = answer.bytes().await
    {
        assert_eq!(bytes.len() as u64, layer.size);
    }
    assert_eq!(pull("large").await.expect("a pull without room").digest, large.digest);
    assert_eq!(pull("small").await.expect("what fits in memory").digest, small.digest);
    hydrated(&hydrant, "lab/small:1").await;
    fs::remove_file(ballast).unwrap();
    hydrated(&hydrant, "lab/large:1").await;
    assert!(hydrant.terminate().await.success());
    assert_eq!(audit::directory(store.path()), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_below_the_store_lets_pulls_through_and_is_got_over() {
    let Some(disk) = Disk::of(16) else { return };
    let (upstream, nats) = (FakeUpstream::start().await, NatsServer::start().await);
    let (large, store) = (insert(&upstream, "large", 4 * MIB), disk.path().join("store"));
    let mut hydrant = role("up", &config(&upstream.url()))
        .store(store.to_str().unwrap())
        .nats(&nats.url())
        .env("HYDRANT_SWEEP_AFTER", "1s")
        .env("HYDRANT_SWEEP_EVERY", "2s")
        .start()
        .await;
    let ballast = disk.fill();
    let pulled = Skopeo::pull(format!("{}/lab/large:1", hydrant.host())).run().await;
    assert_eq!(pulled.expect("a pull without room in storage").digest, large.digest);
    let ordered = hydrant.command(["hydrate", "lab/large:1"]).await;
    assert!(ordered.stderr.contains("storage"), "{ordered:?}");
    fs::remove_file(ballast).unwrap();
    hydrant.command(["hydrate", "lab/large:1"]).await.success();
    hydrated(&hydrant, "lab/large:1").await;
    assert!(hydrant.terminate().await.success());
    assert_eq!(audit::directory(&store), 1);
}
