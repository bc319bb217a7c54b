//! The upload on S3 that a process left of a flight that no client waited for: gone on with by another
//! one that has nothing of it, and never believed.

use crate::{LIMIT, Lab, Member, collect, lab::MIB, lab::grant};
use bytes::Bytes;
use futures::TryStreamExt;
use hydrant_flight::{Flight, FlightError, Source};
use hydrant_proto::{Algorithm, Digest, PartsRecord, codec, subject::StateKey};
use hydrant_store::{PART_BYTES, S3Settings, Spooled, Standing, Store, StoreConfig};
use hydrant_testkit::{Content, Fault, Gate, S3Front, SeaweedFs, Spoiling, Spoilt, until};
use hydrant_upstream::Priority;
use std::{mem, time::Duration};
use tokio::time::timeout;

const LAYER: u64 = 40 * MIB;
const PART: u64 = PART_BYTES as u64;
/// Parts that were stored.
const PARTS: u64 = 3;
/// Most that the death of a process may cost.
const COST: u64 = 16 * MIB;

async fn lab() -> (Lab, SeaweedFs) {
    let s3 = SeaweedFs::start().await;
    (lab_on(&s3, &s3.endpoint()).await, s3)
}

async fn lab_on(s3: &SeaweedFs, endpoint: &str) -> Lab {
    let mut lab = Lab::start(LAYER).await;
    let url = format!("s3://{}/cache", s3.bucket()).parse().unwrap();
    let settings = S3Settings::from_vars(s3.env_through(endpoint));
    lab.store = Store::open(&StoreConfig { url, s3: settings, public_endpoint: None }).unwrap();
    lab
}

/// As an importer does it.
async fn import(lab: &Lab, member: &Member) -> Flight {
    let urgency = Priority::Background.into();
    let source = Source { size: Some(lab.layer.size), urgency, ..member.source() };
    let flight = member.flights.begin(source, &grant("lab/app")).unwrap().unwrap();
    flight.opened().await.ok();
    flight
}

/// What a process leaves that stored the first parts of `content`, and says it of the layer.
async fn left(lab: &Lab, content: &Content) -> PartsRecord {
    let dir = tempfile::tempdir().unwrap();
    let mut spooled = Spooled::create(dir.path(), Algorithm::Sha256).unwrap();
    content.chunks(0..PARTS * PART).for_each(|chunk| spooled.append(&chunk).unwrap());
    let mut write = lab.store.begin_spooled(&lab.layer.digest, &spooled.reader());
    for _ in 0..PARTS {
        write.send().await.unwrap();
    }
    while write.standing().unwrap().parts < PARTS {
        write.advanced().await.unwrap();
    }
    let hash = spooled.reader().hash_at(PARTS * PART).unwrap();
    let Standing { upload, parts, part_size, tags } = write.standing().unwrap();
    // As if the process were killed.
    mem::forget(write);
    PartsRecord { upload, size: lab.layer.size, parts, part_size, tags, hash }
}

async fn tell(member: &Member, record: &PartsRecord) {
    let (key, value) = (StateKey::Parts(member.digest.clone()), codec::encode(record).into());
    let state = member.bus.shared_state();
    state.put_over(&key, value, Duration::from_secs(60)).await.unwrap();
}

async fn is_stored_right(lab: &Lab) {
    let found = lab.store.read_blob(&lab.layer.digest, None).await.unwrap().expect("it is stored");
    let bytes = found.stream.try_collect::<Vec<_>>().await.unwrap().concat();
    assert_eq!(Digest::of(&bytes), lab.layer.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flight_goes_on_with_the_upload_of_a_process_that_ended() {
    let (lab, s3) = lab().await;
    let slow = lab.upstream.inject("*/blobs/*", Fault::slow(8 * MIB));
    let ended = lab.member().await;
    let flight = import(&lab, &ended).await;
    let key = StateKey::Parts(lab.layer.digest.clone());
    let record = until("the record of some parts", LIMIT, async || {
        let entry = ended.bus.shared_state().get(&key).await.ok()??;
        codec::decode::<PartsRecord>(&entry.value).ok().filter(|record| record.parts >= 2)
    })
    .await;
    ended.flights.stop().await;
    slow.remove();
    assert!(flight.progress().spooled < record.parts * PART + COST, "far ahead of storage");
    let heir = lab.member().await;
    assert_eq!(import(&lab, &heir).await.stored().await.unwrap(), LAYER);
    assert!(lab.read_bytes() < LAYER + COST, "{} bytes", lab.read_bytes());
    is_stored_right(&lab).await;
    assert!(s3.open_uploads().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_who_comes_gets_all_of_it_and_costs_only_what_is_missing() {
    let (lab, _s3) = lab().await;
    let (leader, other) = (lab.member().await, lab.member().await);
    tell(&leader, &left(&lab, &lab.layer.content).await).await;
    lab.upstream.inject("*/blobs/*", Fault::slow(16 * MIB));
    let flight = import(&lab, &leader).await;
    let (here, there) = tokio::join!(collect(&flight), async { collect(&other.fly().await).await });
    assert_eq!(Digest::of(&here.unwrap()), lab.layer.digest);
    assert_eq!(Digest::of(&there.unwrap()), lab.layer.digest);
    assert_eq!(flight.stored().await.unwrap(), LAYER);
    assert_eq!(lab.read_bytes(), LAYER, "each byte came once, after the parts that were there");
    is_stored_right(&lab).await;
}

/// As who mounts a layer, or pulls it in several ranges.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_who_wants_a_part_of_it_need_not_wait_for_the_rest() {
    let (lab, _s3) = lab().await;
    let leader = lab.member().await;
    tell(&leader, &left(&lab, &lab.layer.content).await).await;
    let gate = Gate::default();
    lab.upstream.inject("*/blobs/*", Fault::hold(2 * MIB, &gate).times(1));
    let flight = import(&lab, &leader).await;
    let stored = PARTS * PART;
    for part in [MIB..9 * MIB, stored - 5 * MIB..stored + MIB, stored + 7..stored + MIB] {
        let bytes = flight.part(part.clone()).try_collect::<Vec<Bytes>>();
        let bytes = timeout(LIMIT, bytes).await.expect("a part comes").unwrap().concat();
        let content: Vec<u8> = lab.layer.content.chunks(part.clone()).flatten().collect();
        assert!(bytes == content, "{part:?}");
    }
    gate.open();
    assert_eq!(flight.stored().await.unwrap(), LAYER);
    is_stored_right(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_that_fails_again_and_again_is_not_filled_with_parts() {
    let s3 = SeaweedFs::start().await;
    let front = S3Front::start(&s3).await;
    let lab = lab_on(&s3, &front.endpoint()).await;
    let member = lab.member().await;
    let last = Spoiling::of("PUT", "*/blobs/*", Spoilt::Refused(404, "NoSuchUpload"));
    let failing = front.spoil(last.query("partNumber=5"));
    let flight = import(&lab, &member).await;
    until("some tries", LIMIT, async || (failing.fired() >= 3).then_some(())).await;
    let open = s3.open_uploads().await;
    assert!(open.len() <= 1, "{open:?}");
    failing.end();
    assert_eq!(flight.stored().await.unwrap(), LAYER);
    assert!(s3.open_uploads().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_without_ranges_is_read_from_its_beginning() {
    for fault in [Fault::no_range(), Fault::shifted_range(7)] {
        let (lab, s3) = lab().await;
        let heir = lab.member().await;
        tell(&heir, &left(&lab, &lab.layer.content).await).await;
        lab.upstream.inject("*/blobs/*", fault);
        let flight = import(&lab, &heir).await;
        assert_eq!(Digest::of(&collect(&flight).await.unwrap()), lab.layer.digest);
        assert_eq!(flight.stored().await.unwrap(), LAYER);
        is_stored_right(&lab).await;
        assert!(s3.open_uploads().await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_does_not_fit_what_storage_has_is_of_no_use_and_no_harm() {
    let lies: [fn(&mut PartsRecord); 6] = [
        |record| record.upload = "f00d".to_owned(),
        |record| record.tags = Digest::of(b"other parts"),
        |record| record.parts = PARTS - 1,
        |record| record.part_size = 1,
        |record| record.size += 1,
        |record| record.hash.truncate(5),
    ];
    for lie in lies {
        let (lab, s3) = lab().await;
        let heir = lab.member().await;
        let mut record = left(&lab, &lab.layer.content).await;
        lie(&mut record);
        tell(&heir, &record).await;
        assert_eq!(import(&lab, &heir).await.stored().await.unwrap(), LAYER);
        assert_eq!(lab.read_bytes(), LAYER, "{record:?}");
        is_stored_right(&lab).await;
        assert!(s3.open_uploads().await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_somebody_ended_is_begun_anew() {
    let (lab, _s3) = lab().await;
    let heir = lab.member().await;
    tell(&heir, &left(&lab, &lab.layer.content).await).await;
    assert_eq!(lab.store.end_other_writes(&lab.layer.digest).await.unwrap(), 1);
    assert_eq!(import(&lab, &heir).await.stored().await.unwrap(), LAYER);
    assert_eq!(lab.read_bytes(), LAYER);
}

/// The next flight begins anew.
async fn is_found_out(lab: &Lab, record: &PartsRecord) -> FlightError {
    let heir = lab.member().await;
    tell(&heir, record).await;
    let flight = import(lab, &heir).await;
    let failed = flight.stored().await.unwrap_err();
    assert_eq!(lab.store.blob_size(&lab.layer.digest).await.unwrap(), None, "wrong content stays");
    assert_eq!(import(lab, &heir).await.stored().await.unwrap(), LAYER);
    is_stored_right(lab).await;
    failed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hash_of_other_bytes_is_found_out_by_the_seal() {
    let (lab, _s3) = lab().await;
    let other = Content::Generated { seed: 77, length: LAYER };
    let wrong = left(&lab, &other).await.hash;
    lab.store.end_other_writes(&lab.layer.digest).await.unwrap();
    let record = PartsRecord { hash: wrong, ..left(&lab, &lab.layer.content).await };
    assert!(matches!(is_found_out(&lab, &record).await, FlightError::Integrity(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_other_bytes_are_found_out_when_they_are_read_back() {
    let (lab, _s3) = lab().await;
    let right = left(&lab, &lab.layer.content).await.hash;
    lab.store.end_other_writes(&lab.layer.digest).await.unwrap();
    let other = Content::Generated { seed: 77, length: LAYER };
    let record = PartsRecord { hash: right, ..left(&lab, &other).await };
    assert!(matches!(is_found_out(&lab, &record).await, FlightError::Store(_)));
}
