//! The bytes on the wire: kept as fixtures, read back whole, and refused when they are not whole.
//!
//! A fixture that no longer fits means that processes of two versions would misunderstand each
//! other. After a deliberate change (and a raised `VERSION`), `HYDRANT_WRITE_FIXTURES=1` writes
//! them anew.

// Test helpers fail by panicking, as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

use hydrant_proto::{
    BlobProgress, Cause, CodecError, DeliveryAttempt, DeliveryOutcome, Digest, Event, EventData,
    EventKind, FailureClass, FlightRecord, HydrationRequested, JobPhase, JobState, Lane,
    ManifestRecord, MediaType, Message, PartsRecord, QuotaReport, SharedValue, UpstreamReport,
    Verdict,
    codec::{self, decode, encode},
};
use jiff::Timestamp;
use proptest::prelude::*;
use std::{fmt::Debug, fs, path::PathBuf};

fn fixture<M: Message + PartialEq + Debug>(name: &str, message: &M) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(format!("{name}.msgpack"));
    if std::env::var_os("HYDRANT_WRITE_FIXTURES").is_some() {
        fs::write(&path, encode(message)).unwrap();
    }
    let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(decode::<M>(&bytes).expect("the fixture decodes"), *message, "{name}");
    assert_eq!(encode(message), bytes, "{name} is written as it always was");
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn job() -> HydrationRequested {
    HydrationRequested {
        rule: "lab".to_owned(),
        generation: "0123456789abcdef".to_owned(),
        upstream: "lab".to_owned(),
        repository: "lab/app".parse().unwrap(),
        reference: "1.0".parse().unwrap(),
        lane: Lane::Background,
        platforms: vec!["linux/arm/v7".parse().unwrap()],
        requested_at: time(1_700_000_000),
    }
}

fn event() -> Event {
    let data = EventData {
        upstream: Some("lab".to_owned()),
        rule: Some("lab".to_owned()),
        generation: Some("0123456789abcdef".to_owned()),
        repository: Some("lab/app".parse().unwrap()),
        reference: Some("1.0".parse().unwrap()),
        digest: Some(Digest::of(b"new")),
        media_type: Some("application/vnd.oci.image.index.v1+json".to_owned()),
        previous_digest: Some(Digest::of(b"old")),
        platforms: vec!["linux/amd64".parse().unwrap()],
        size_bytes: Some(1 << 40),
        blobs: Some(7),
        seq: 3,
        class: Some(FailureClass::Integrity),
        reason: Some("for people".to_owned()),
    };
    Event::new(EventKind::TagMoved, time(1_700_000_001), data)
}

fn state() -> JobState {
    JobState {
        phase: JobPhase::Waiting,
        attempts: 2,
        blobs_total: 3,
        blobs_done: 1,
        bytes_total: 300,
        bytes_done: 120,
        blobs: vec![BlobProgress { digest: Digest::of(b"layer"), size: 200, done: 20 }],
        digest: Some(Digest::of(b"manifest")),
        class: Some(FailureClass::UpstreamDown),
        reason: Some("connection refused".to_owned()),
        writer: "importer-1".to_owned(),
        ..JobState::queued(job(), time(1_700_000_002))
    }
}

fn attempt() -> DeliveryAttempt {
    DeliveryAttempt {
        webhook: "ci".to_owned(),
        event_id: event().id,
        kind: EventKind::ImageHydrated,
        attempt: 2,
        at: time(1_700_000_003),
        status: Some(503),
        error: Some("busy".to_owned()),
        duration_ms: 41,
        outcome: DeliveryOutcome::Retry { at: time(1_700_000_013) },
    }
}

fn report() -> UpstreamReport {
    let verdict = Verdict::Open { left: 5_000, streak: 1, cause: Cause::Failing, since: 900 };
    UpstreamReport { failed: vec![900, 4], slow: vec![70], good: Some(1_000), verdict, seq: 3 }
}

#[test]
fn every_message_is_written_as_it_always_was() {
    fixture("hydration-requested", &job());
    fixture("event", &event());
    fixture("event-bare", &Event::new(EventKind::BreakerOpened, time(0), EventData::default()));
    fixture("event-addressed", &Event::test("ci", time(1_700_000_004)));
    fixture("job-state", &state());
    fixture("job-state-queued", &JobState::queued(job(), time(0)));
    fixture("delivery-attempt", &attempt());
    let delivered = DeliveryAttempt {
        status: None,
        error: None,
        outcome: DeliveryOutcome::Delivered,
        ..attempt()
    };
    fixture("delivery-attempt-delivered", &delivered);
    let value = b"any \x00 bytes".to_vec();
    let shared = SharedValue { owner: "importer-1".to_owned(), nonce: u64::MAX, value };
    fixture("shared-value", &shared);
    fixture("upstream-report", &report());
    fixture("upstream-report-bare", &UpstreamReport::default());
    let (limit, kinds) = (Some(100), vec!["manifest".to_owned()]);
    let (reset, window) = (21_000_000, Some(21_600_000));
    fixture("quota-report", &QuotaReport { limit, remaining: 76, reset, window, kinds });
    let flight = FlightRecord {
        peer: "10.0.0.7:5002".to_owned(),
        key: "capability".to_owned(),
        upstream: "hub".to_owned(),
        grants: vec!["lab/app here".to_owned()],
        stored: None,
    };
    fixture("flight-record", &flight);
    let parts = PartsRecord {
        upload: "2~vn5Kq".to_owned(),
        size: 100_000_000,
        parts: 3,
        part_size: 8_388_608,
        tags: Digest::of(b"tags"),
        hash: vec![7; 105],
    };
    fixture("parts-record", &parts);
    fixture("manifest-record-asked", &ManifestRecord::Asked);
    fixture("manifest-record-ordered", &ManifestRecord::Ordered);
    let brought = ManifestRecord::Brought {
        digest: Digest::of(b"{}"),
        media_type: MediaType::OciIndex,
        asked_at: Timestamp::UNIX_EPOCH,
        bytes: Some(b"{}".to_vec()),
    };
    fixture("manifest-record-brought", &brought);
    let failed = ManifestRecord::Failed {
        class: FailureClass::UpstreamLimit,
        reason: "429".to_owned(),
        retry_after_seconds: Some(30),
    };
    fixture("manifest-record-failed", &failed);
    fixture("flight-record-stored", &FlightRecord { stored: Some(7), ..flight });
}

#[test]
fn ids_are_the_same_in_every_version() {
    assert_eq!(job().id().to_string(), JOB_ID);
    assert_eq!(event().id, EVENT_ID);
    let told_later = Event::new(event().kind, time(9), event().data);
    assert_eq!(told_later.id, event().id, "when it was told does not matter");
}

const JOB_ID: &str = "9c7e33c8666acc35431a1c3f63c7f3c3";
const EVENT_ID: &str = "438cf4c8018df076eec574fa3f54142d";

#[test]
fn a_message_cut_anywhere_is_refused() {
    let bytes = encode(&job());
    for end in 0..bytes.len() {
        let outcome = decode::<HydrationRequested>(&bytes[..end]);
        assert!(matches!(outcome, Err(CodecError::Malformed(_))), "cut at {end}: {outcome:?}");
    }
}

#[test]
fn bytes_after_the_end_are_refused() {
    let mut bytes = encode(&event());
    bytes.extend([0xc0, 0xc0]);
    assert!(matches!(decode::<Event>(&bytes), Err(CodecError::Trailing(2))));
}

#[test]
fn what_is_too_long_is_refused_unread() {
    let bytes = vec![0; codec::MAX_BYTES + 1];
    let outcome = decode::<Event>(&bytes);
    assert!(matches!(outcome, Err(CodecError::TooLong(n)) if n == bytes.len()));
}

#[test]
fn one_message_is_not_taken_for_another() {
    let outcome = decode::<Event>(&encode(&job()));
    assert!(matches!(outcome, Err(CodecError::WrongKind { expected: "event", .. })), "{outcome:?}");
}

/// A later version of a message this crate knows.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Later {
    #[serde(flatten)]
    job: HydrationRequested,
    priority: u8,
}

impl Message for Later {
    const KIND: &'static str = HydrationRequested::KIND;
    const VERSION: u16 = HydrationRequested::VERSION;
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Unreadable(HydrationRequested);

impl Message for Unreadable {
    const KIND: &'static str = HydrationRequested::KIND;
    const VERSION: u16 = HydrationRequested::VERSION + 1;
}

#[test]
fn a_field_added_later_is_passed_over_and_a_raised_version_refused() {
    let later = encode(&Later { job: job(), priority: 9 });
    assert_eq!(decode::<HydrationRequested>(&later).unwrap(), job());
    let outcome = decode::<HydrationRequested>(&encode(&Unreadable(job())));
    assert!(matches!(outcome, Err(CodecError::UnknownVersion { supported: 1, found: 2 })));
}

#[test]
fn names_outside_the_grammar_do_not_decode() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Loose {
        rule: String,
        generation: String,
        upstream: String,
        repository: String,
        reference: String,
        lane: Lane,
        requested_at: Timestamp,
    }
    impl Message for Loose {
        const KIND: &'static str = HydrationRequested::KIND;
        const VERSION: u16 = HydrationRequested::VERSION;
    }
    let loose = |repository: &str, reference: &str| Loose {
        rule: "lab".to_owned(),
        generation: "g".to_owned(),
        upstream: "lab".to_owned(),
        repository: repository.to_owned(),
        reference: reference.to_owned(),
        lane: Lane::Interactive,
        requested_at: time(0),
    };
    assert!(decode::<HydrationRequested>(&encode(&loose("lab/app", "1"))).is_ok());
    for (repository, reference) in
        [("../etc", "1"), ("lab/App", "1"), ("lab/app", ".x"), ("lab/app", "md5:00"), ("", "")]
    {
        let outcome = decode::<HydrationRequested>(&encode(&loose(repository, reference)));
        assert!(outcome.is_err(), "{repository} {reference}");
    }
}

fn any_job() -> impl Strategy<Value = HydrationRequested> {
    (
        ("[a-z0-9]{1,20}", "[a-f0-9]{0,64}", "[a-z0-9]{1,63}"),
        "[a-z0-9]{1,20}(/[a-z0-9]{1,20}){0,3}",
        prop_oneof!["[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", "sha256:[0-9a-f]{64}"],
        any::<bool>(),
        prop::collection::vec("[a-z]{1,8}/[a-z0-9]{1,8}(/v[0-9])?", 0..4),
        -377_705_023_201_i64..253_402_207_200,
    )
        .prop_map(|(names, repository, reference, interactive, platforms, at)| {
            HydrationRequested {
                rule: names.0,
                generation: names.1,
                upstream: names.2,
                repository: repository.parse().unwrap(),
                reference: reference.parse().unwrap(),
                lane: if interactive { Lane::Interactive } else { Lane::Background },
                platforms: platforms.iter().map(|p| p.parse().unwrap()).collect(),
                requested_at: time(at),
            }
        })
}

proptest! {
    #[test]
    fn jobs_survive_the_wire(job in any_job()) {
        prop_assert_eq!(decode::<HydrationRequested>(&encode(&job)).unwrap(), job);
    }

    #[test]
    fn states_survive_the_wire(
        job in any_job(),
        phase in prop::sample::select(JobPhase::ALL.to_vec()),
        counts in any::<[u64; 4]>(),
        attempts in any::<u32>(),
        class in prop::option::of(prop::sample::select(FailureClass::ALL.to_vec())),
        reason in prop::option::of(".{0,80}"),
    ) {
        let [blobs_total, blobs_done, bytes_total, bytes_done] = counts;
        let state = JobState {
            phase, attempts, blobs_total, blobs_done, bytes_total, bytes_done, class, reason,
            ..JobState::queued(job, time(5))
        };
        prop_assert_eq!(decode::<JobState>(&encode(&state)).unwrap(), state);
    }

    #[test]
    fn events_survive_the_wire(
        kind in prop::sample::select(EventKind::ALL.to_vec()),
        seq in any::<u64>(),
        reason in prop::option::of(".{0,80}"),
        size_bytes in prop::option::of(any::<u64>()),
    ) {
        let data = EventData { reason, size_bytes, seq, ..EventData::default() };
        let event = Event::new(kind, time(1), data);
        prop_assert_eq!(decode::<Event>(&encode(&event)).unwrap(), event);
    }

    #[test]
    fn attempts_survive_the_wire(
        attempt in any::<u64>(),
        status in prop::option::of(any::<u16>()),
        error in prop::option::of(".{0,80}"),
    ) {
        let attempt = DeliveryAttempt { attempt, status, error, ..self::attempt() };
        prop_assert_eq!(decode::<DeliveryAttempt>(&encode(&attempt)).unwrap(), attempt);
    }

    #[test]
    fn any_bytes_are_refused_or_understood_without_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let _ = decode::<HydrationRequested>(&bytes);
        let _ = decode::<Event>(&bytes);
        let _ = decode::<JobState>(&bytes);
        let _ = decode::<DeliveryAttempt>(&bytes);
        let _ = decode::<SharedValue>(&bytes);
        let _ = decode::<FlightRecord>(&bytes);
        let _ = decode::<PartsRecord>(&bytes);
        let _ = decode::<ManifestRecord>(&bytes);
    }

    #[test]
    fn a_flipped_byte_is_refused_or_understood_without_a_panic(
        at in 0_usize..400, value in any::<u8>(),
    ) {
        let mut bytes = encode(&state());
        let at = at % bytes.len();
        bytes[at] = value;
        let _ = decode::<JobState>(&bytes);
    }
}
