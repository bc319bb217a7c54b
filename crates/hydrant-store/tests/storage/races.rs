//! Races: one writer wins, the others know it.

use crate::bench::{Bench, Place, bytes_of, open_directory, repository, tag};
use futures::future::join_all;
use hydrant_proto::{Digest, MediaType};
use hydrant_store::{Owner, PART_BYTES, Store, StoreError, TagRecord, Version};
use jiff::Timestamp;
use std::{env, process::Command};

const RACERS: usize = 32;
const CHILD_DIRECTORY: &str = "HYDRANT_TEST_RACE_DIRECTORY";
/// Records each process adds to the chain.
const LINKS: u64 = 40;

pub fn record(of: &str) -> TagRecord {
    let (digest, size) = (Digest::of(of.as_bytes()), of.len() as u64);
    let at = Timestamp::UNIX_EPOCH;
    let record = TagRecord::new(Owner::Cache, digest, MediaType::OciManifest, size, at);
    TagRecord { rule: Some("lab".to_owned()), generation: Some("g1".to_owned()), ..record }
}

/// Lets all write against the same version; the digest that won.
async fn race(stores: &[Store], from: Option<Version>) -> Digest {
    let round = from.as_ref().map_or(0, Version::seq);
    let racer = |n: usize| {
        let (store, from) = (stores[n % stores.len()].clone(), from.clone());
        tokio::spawn(async move {
            let record = record(&format!("racer {n} of round {round}"));
            let digest = record.digest.clone();
            let put = store.put_tag(&repository("lab/app"), &tag("v1"), record, from).await;
            put.map(|_| digest)
        })
    };
    let mut winners = Vec::new();
    for answer in join_all((0..RACERS).map(racer)).await {
        match answer.unwrap() {
            Ok(digest) => winners.push(digest),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(winners.len(), 1);
    winners.remove(0)
}

async fn standing(store: &Store) -> (TagRecord, Version) {
    store.tag(&repository("lab/app"), &tag("v1")).await.unwrap().unwrap()
}

pub async fn one_of_many_creators_wins(bench: &Bench) {
    let winner = race(std::slice::from_ref(&bench.store), None).await;
    let (record, version) = standing(&bench.store).await;
    assert_eq!((record.digest, record.seq, version.seq()), (winner, 1, 1));
}

pub async fn one_of_many_successors_wins(bench: &Bench) {
    race(std::slice::from_ref(&bench.store), None).await;
    for round in 2..4 {
        let (_, version) = standing(&bench.store).await;
        let winner = race(std::slice::from_ref(&bench.store), Some(version)).await;
        let (record, _) = standing(&bench.store).await;
        assert_eq!((record.digest, record.seq), (winner, round));
    }
}

pub async fn two_handles_decide_the_same_race(bench: &Bench) {
    let stores = [bench.store.clone(), bench.another()];
    let first = race(&stores, None).await;
    let (record, version) = standing(&stores[1]).await;
    assert_eq!(record.digest, first);
    let second = race(&stores, Some(version)).await;
    assert_eq!(standing(&stores[0]).await.0.digest, second);
}

/// Both add to one chain; a lost update would leave it shorter than the sum.
pub async fn two_processes_decide_the_same_race(bench: &Bench) {
    let Place::Directory(directory) = &bench.place else { unreachable!("a directory") };
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "races::the_other_process_of_a_race", "--ignored"])
        .env(CHILD_DIRECTORY, directory.path())
        .spawn()
        .unwrap();
    add_to_chain(&bench.store).await;
    let status = tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
    assert!(status.success());
    assert_eq!(standing(&bench.store).await.0.seq, 2 * LINKS);
}

#[tokio::test]
#[ignore = "run by two_processes_decide_the_same_race"]
async fn the_other_process_of_a_race() {
    let directory = env::var_os(CHILD_DIRECTORY).expect("set by the parent");
    add_to_chain(&open_directory(directory.as_ref())).await;
}

async fn add_to_chain(store: &Store) {
    let mut added = 0;
    while added < LINKS {
        let seen = store.tag(&repository("lab/app"), &tag("v1")).await.unwrap();
        let version = seen.map(|(_, version)| version);
        let record = record(&format!("{} {added}", std::process::id()));
        match store.put_tag(&repository("lab/app"), &tag("v1"), record, version).await {
            Ok(_) => added += 1,
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// A writer that was ended must not give the place to what a third has written so far.
pub async fn of_three_writers_of_a_blob_none_leaves_it_cut_off(bench: &Bench) {
    let bytes = bytes_of(3, 2 * PART_BYTES + 5);
    let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
    let begin = async |part: usize| {
        let mut writer = bench.another().begin_blob(&digest, Some(size));
        writer.write(bytes.slice(..part)).await.unwrap();
        writer
    };
    let (mut ended, mut first) = (begin(PART_BYTES).await, begin(PART_BYTES).await);
    first.write(bytes.slice(PART_BYTES..)).await.unwrap();
    first.commit().await.unwrap();
    bench.store.end_other_writes(&digest).await.unwrap();
    let mut third = begin(PART_BYTES).await;
    let rest = ended.write(bytes.slice(PART_BYTES..)).await;
    assert!(bench.store.has_blob(&digest, size).await.unwrap());
    match rest {
        Ok(()) => drop(ended.commit().await),
        Err(_) => ended.abort().await,
    }
    assert!(bench.store.has_blob(&digest, size).await.unwrap(), "what was whole is cut off");
    third.write(bytes.slice(PART_BYTES..)).await.unwrap();
    assert_eq!(third.commit().await.unwrap(), size);
    assert!(bench.store.has_blob(&digest, size).await.unwrap());
}
