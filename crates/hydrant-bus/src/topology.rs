//! The streams and buckets hydrant needs, made when they are missing and put right when edited.
//!
//! What the protocol rests on (subjects, retention, discard policy, age, duplicate window) is
//! enforced. How large a stream may grow, its replicas and its placement belong to the operator
//! once it exists.

use crate::{BusConfig, BusError, error::describe, kv::TOMBSTONE};
use async_nats::jetstream::{
    Context, ErrorCode,
    context::{CreateStreamErrorKind, GetStreamErrorKind},
    stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType},
};
use hydrant_proto::{codec, subject};
use hydrant_telemetry::metrics;
use jiff::Timestamp;
use std::time::Duration;

const MIB: i64 = 1024 * 1024;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest lifetime of a shared value, and how long one without any is kept.
pub(crate) const MAX_TTL: Duration = DAY;
/// How long an event can be announced again and still be seen as the same one by the server.
/// Later repeats are told apart by their id, by whoever reads them.
const EVENT_DUPLICATES: Duration = Duration::from_secs(60 * 60);
/// Attempts kept per webhook in the delivery log.
pub(crate) const DELIVERIES_PER_WEBHOOK: i64 = 1_000;

/// Makes every stream as it should be, or says which one cannot be and why. What the look finds of
/// their copies is recorded.
pub(crate) async fn ensure(jetstream: &Context, config: &BusConfig) -> Result<(), BusError> {
    for wanted in wanted(config) {
        ensure_stream(jetstream, wanted).await?;
    }
    Ok(())
}

fn wanted(config: &BusConfig) -> [Config; 6] {
    let replicas = config.replicas;
    [
        jobs(config),
        events(),
        deliveries(),
        bucket(subject::CONFIG_BUCKET, StorageType::File, 16 * MIB, 16, Duration::ZERO),
        // Full, it forgets the oldest state instead of refusing the newest.
        Config {
            discard: DiscardPolicy::Old,
            ..bucket(subject::JOBS_BUCKET, StorageType::Memory, 64 * MIB, 1, DAY)
        },
        state(),
    ]
    .map(|stream| Config { num_replicas: replicas, ..stream })
}

/// The work queue. There is no limit per subject: one outstanding job per key comes from the
/// expected sequence of each publish, which answers differently for "queued" and for "full".
fn jobs(config: &BusConfig) -> Config {
    Config {
        name: subject::JOBS_STREAM.to_owned(),
        description: Some("hydrant: images to make durable".to_owned()),
        subjects: vec![subject::JOBS_SUBJECTS.to_owned()],
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::New,
        storage: StorageType::File,
        max_messages: i64::try_from(config.max_jobs).unwrap_or(i64::MAX),
        max_bytes: 512 * MIB,
        max_message_size: i32::try_from(codec::MAX_BYTES).unwrap_or(i32::MAX),
        ..Config::default()
    }
}

fn events() -> Config {
    Config {
        name: subject::EVENTS_STREAM.to_owned(),
        description: Some("hydrant: what happened, for webhooks and followers".to_owned()),
        subjects: vec![subject::EVENTS_SUBJECTS.to_owned()],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        storage: StorageType::File,
        max_age: 7 * DAY,
        max_bytes: 512 * MIB,
        duplicate_window: EVENT_DUPLICATES,
        ..Config::default()
    }
}

fn deliveries() -> Config {
    Config {
        name: subject::DELIVERIES_STREAM.to_owned(),
        description: Some("hydrant: recent webhook attempts".to_owned()),
        subjects: vec![subject::DELIVERIES_SUBJECTS.to_owned()],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        storage: StorageType::Memory,
        max_age: 7 * DAY,
        max_bytes: 64 * MIB,
        max_messages_per_subject: DELIVERIES_PER_WEBHOOK,
        ..Config::default()
    }
}

/// A KV bucket, which is a stream of this shape (NATS ADR-8).
fn bucket(name: &str, storage: StorageType, bytes: i64, history: i64, age: Duration) -> Config {
    Config {
        name: format!("KV_{name}"),
        subjects: vec![format!("$KV.{name}.>")],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::New,
        storage,
        max_age: age,
        max_bytes: bytes,
        max_messages_per_subject: history,
        allow_rollup: true,
        deny_delete: true,
        allow_direct: true,
        allow_message_ttl: true,
        ..Config::default()
    }
}

/// Leases and small shared state. A value that expires leaves a mark, so that watchers hear of it.
fn state() -> Config {
    let made_at = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
    Config {
        subject_delete_marker_ttl: Some(TOMBSTONE),
        // A bucket in memory is made anew when the server restarts. Its revisions must not begin
        // again: a holder's compare-and-set with an old one could hit another's claim.
        first_sequence: Some(made_at),
        ..bucket(subject::STATE_BUCKET, StorageType::Memory, 64 * MIB, 1, MAX_TTL)
    }
}

async fn ensure_stream(jetstream: &Context, wanted: Config) -> Result<(), BusError> {
    let found = match jetstream.get_stream(&wanted.name).await {
        Ok(stream) => {
            let info = stream.cached_info();
            metrics().bus.replicas_missing(&wanted.name, missing_copies(info));
            info.config.clone()
        }
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(e) if e.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                return create(jetstream, wanted).await;
            }
            _ => return Err(BusError::unknown("look up a stream", error)),
        },
    };
    match repaired(&found, &wanted) {
        None => Ok(()),
        Some(repaired) => update(jetstream, repaired).await,
    }
}

/// Copies that the stream is to have less those that are there and up to date.
fn missing_copies(info: &Info) -> u64 {
    let followers = info.cluster.as_ref().map_or(&[][..], |cluster| &cluster.replicas);
    let led = info.cluster.as_ref().is_none_or(|cluster| cluster.leader.is_some());
    let current = followers.iter().filter(|peer| peer.current && !peer.offline).count();
    (info.config.num_replicas as u64).saturating_sub(current as u64 + u64::from(led))
}

async fn create(jetstream: &Context, wanted: Config) -> Result<(), BusError> {
    let name = wanted.name.clone();
    match jetstream.create_stream(wanted).await {
        Ok(stream) => {
            metrics().bus.replicas_missing(&name, missing_copies(stream.cached_info()));
            tracing::info!(stream = name, "created stream");
            Ok(())
        }
        Err(error) => match error.kind() {
            // Another process was quicker; what it made is looked at by the next check.
            CreateStreamErrorKind::JetStream(e)
                if e.error_code() == ErrorCode::STREAM_NAME_EXIST =>
            {
                Ok(())
            }
            CreateStreamErrorKind::TimedOut => Err(BusError::unknown("create a stream", error)),
            _ => Err(refused(&name, &error)),
        },
    }
}

async fn update(jetstream: &Context, wanted: Config) -> Result<(), BusError> {
    let name = wanted.name.clone();
    match jetstream.update_stream(wanted).await {
        Ok(_) => {
            tracing::warn!(stream = name, "stream had been edited and was put right");
            Ok(())
        }
        Err(error) if error.kind() == CreateStreamErrorKind::TimedOut => {
            Err(BusError::unknown("put a stream right", error))
        }
        Err(error) => Err(refused(&name, &error)),
    }
}

fn refused(stream: &str, error: &(dyn std::error::Error + 'static)) -> BusError {
    BusError::Refused {
        what: "set up the streams",
        reason: format!(
            "stream {stream} is not as hydrant needs it and the server refuses to make it so ({}); \
             free JetStream storage, or remove the stream (what is on it comes back by itself)",
            describe(error)
        ),
    }
}

/// `found` with everything the protocol rests on as in `wanted`; `None` when it is so already.
fn repaired(found: &Config, wanted: &Config) -> Option<Config> {
    let right = Config {
        subjects: wanted.subjects.clone(),
        retention: wanted.retention,
        discard: wanted.discard,
        discard_new_per_subject: wanted.discard_new_per_subject,
        storage: wanted.storage,
        max_age: wanted.max_age,
        // Left open by us, the server chooses; only what we chose is compared.
        duplicate_window: pick(wanted.duplicate_window, found.duplicate_window, Duration::ZERO),
        max_messages_per_subject: pick(
            wanted.max_messages_per_subject,
            if found.max_messages_per_subject > 0 { -1 } else { found.max_messages_per_subject },
            0,
        ),
        max_message_size: pick(wanted.max_message_size, found.max_message_size, 0),
        no_ack: wanted.no_ack,
        sealed: wanted.sealed,
        allow_rollup: wanted.allow_rollup || found.allow_rollup,
        allow_direct: wanted.allow_direct || found.allow_direct,
        allow_message_ttl: wanted.allow_message_ttl || found.allow_message_ttl,
        subject_delete_marker_ttl: wanted
            .subject_delete_marker_ttl
            .or(found.subject_delete_marker_ttl),
        mirror: None,
        sources: None,
        subject_transform: None,
        republish: found.republish.clone(),
        ..found.clone()
    };
    (right != *found).then_some(right)
}

fn pick<T: PartialEq>(wanted: T, found: T, open: T) -> T {
    if wanted == open { found } else { wanted }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_belong_to_the_operator_and_the_protocol_to_us() {
        let wanted = jobs(&BusConfig::new("nats://localhost", "test"));
        let larger = Config {
            max_messages: 5_000_000,
            max_bytes: -1,
            num_replicas: 3,
            duplicate_window: Duration::from_secs(120),
            max_messages_per_subject: -1,
            ..wanted.clone()
        };
        assert_eq!(repaired(&larger, &wanted), None);
        for edited in [
            Config { discard: DiscardPolicy::Old, ..larger.clone() },
            Config { max_messages_per_subject: 1, ..larger.clone() },
            Config { retention: RetentionPolicy::Limits, ..larger.clone() },
            Config { subjects: vec!["other.>".to_owned()], ..larger.clone() },
            Config { max_age: DAY, ..larger.clone() },
        ] {
            let right = repaired(&edited, &wanted).expect("an edit is seen");
            assert_eq!(repaired(&right, &wanted), None);
            assert_eq!(right.max_messages, 5_000_000);
        }
    }
}
