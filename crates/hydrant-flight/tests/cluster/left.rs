//! What a process left of a flight that nobody followed: gone on with by who comes after, and never
//! believed.

use crate::{Lab, Member, collect, lab, lab::MIB, spooled};
use hydrant_flight::FlightError;
use hydrant_proto::{Digest, FailureClass};
use hydrant_store::{S3Settings, Store, StoreConfig, StoreUrl};
use hydrant_testkit::Fault;
use std::{fs, path::Path, path::PathBuf};

const LAYER: u64 = 40 * MIB;
/// What is sent and not taken when a process ends: buffers of the connection.
const ON_ITS_WAY: u64 = 8 * MIB;

/// A member that stopped in the middle of the flight, with its spool.
async fn ended(lab: &Lab, store: Store) -> Member {
    let member = lab.member_on(store).await;
    let slow = lab.upstream.inject("*/blobs/*", Fault::slow(32 * MIB));
    let flight = member.lead().await;
    spooled(&flight, LAYER / 2).await;
    member.flights.stop().await;
    slow.remove();
    member
}

/// Another one, on the spool of one that ended.
async fn heir(lab: &Lab, ended: Member) -> Member {
    let spool = ended._spool;
    drop(ended.joined);
    Member {
        joined: lab::Member::join(&lab.nats, lab.store.clone(), spool.path().into()).await,
        client: ended.client,
        digest: ended.digest,
        _spool: spool,
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flight_goes_on_from_the_spool_of_a_process_that_ended() {
    let lab = Lab::start(LAYER).await;
    let ended = ended(&lab, lab.store.clone()).await;
    let lasting = ended._spool.path().join("lasting");
    assert_eq!(files(&lasting).len(), 1);
    let heir = heir(&lab, ended).await;
    let flight = heir.lead().await;
    assert_eq!(Digest::of(&collect(&flight).await.unwrap()), lab.layer.digest);
    assert_eq!(flight.stored().await.unwrap(), LAYER);
    assert!(lab.read_bytes() < LAYER + ON_ITS_WAY, "{} bytes", lab.read_bytes());
    assert!(files(&lasting).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_without_ranges_is_read_from_its_beginning_and_the_bytes_are_right() {
    for fault in [Fault::no_range(), Fault::shifted_range(7)] {
        let lab = Lab::start(LAYER).await;
        let ended = ended(&lab, lab.store.clone()).await;
        lab.upstream.inject("*/blobs/*", fault);
        let flight = heir(&lab, ended).await.lead().await;
        assert_eq!(Digest::of(&collect(&flight).await.unwrap()), lab.layer.digest);
        assert!(lab.read_bytes() > LAYER + ON_ITS_WAY, "it was not read anew");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_were_left_wrong_are_not_stored_and_in_nobodys_way_for_long() {
    let lab = Lab::start(LAYER).await;
    let ended = ended(&lab, lab.store.clone()).await;
    let left = files(&ended._spool.path().join("lasting")).pop().unwrap();
    let mut bytes = fs::read(&left).unwrap();
    bytes[5] ^= 1;
    fs::write(&left, bytes).unwrap();
    let heir = heir(&lab, ended).await;
    let failed = collect(&heir.lead().await).await.unwrap_err();
    assert_eq!(failed.class(), FailureClass::Integrity);
    assert!(matches!(failed, FlightError::Integrity(_)), "{failed}");
    assert_eq!(lab.store.blob_size(&lab.layer.digest).await.unwrap(), None);
    let flight = heir.lead().await;
    assert_eq!(Digest::of(&collect(&flight).await.unwrap()), lab.layer.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_share_a_directory_go_on_with_what_any_of_them_left() {
    let lab = Lab::start(LAYER).await;
    let directory = tempfile::tempdir().unwrap();
    let open = || {
        let url = StoreUrl::Directory(directory.path().to_owned());
        let s3 = S3Settings::default();
        Store::open(&StoreConfig { url, s3, public_endpoint: None }).unwrap()
    };
    let _ended = ended(&lab, open()).await;
    let flight = lab.member_on(open()).await.lead().await;
    assert_eq!(Digest::of(&collect(&flight).await.unwrap()), lab.layer.digest);
    flight.stored().await.unwrap();
    assert!(lab.read_bytes() < LAYER + ON_ITS_WAY, "{} bytes", lab.read_bytes());
    assert!(files(&directory.path().join("hydrant/v1/spool")).is_empty());
}
