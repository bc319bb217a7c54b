//! Key-value buckets: reads from the leader, writes whose outcome is known, and a watch that does
//! not end. Keys here are single tokens.

use crate::{
    Bus, BusError,
    source::{Pull, Source, published},
};
use async_nats::{
    HeaderMap,
    jetstream::{
        consumer::DeliverPolicy, message::PublishMessage, stream::LastRawMessageErrorKind,
    },
};
use bytes::Bytes;
use futures::{Stream, stream};
use hydrant_proto::subject;
use jiff::Timestamp;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// A watch looks again this often, whatever it was told.
const REREAD: Duration = Duration::from_secs(10);
const ERROR_PAUSE: Duration = Duration::from_millis(500);

/// A value and where it is in the bucket's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) value: Bytes,
    pub(crate) revision: u64,
    pub(crate) written_at: Timestamp,
}

#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    bus: Bus,
    name: &'static str,
    stream: &'static str,
}

impl Bucket {
    pub(crate) fn config(bus: &Bus) -> Self {
        Self { bus: bus.clone(), name: subject::CONFIG_BUCKET, stream: CONFIG_STREAM }
    }

    pub(crate) fn jobs(bus: &Bus) -> Self {
        Self { bus: bus.clone(), name: subject::JOBS_BUCKET, stream: JOBS_STREAM }
    }

    fn subject(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.name)
    }

    /// The value as the leader of the bucket knows it, not as some replica remembers it.
    pub(crate) async fn get(&self, key: &str) -> Result<Option<Entry>, BusError> {
        const WHAT: &str = "read a value";
        self.bus.reachable()?;
        let stream = self.bus.jetstream().get_stream_no_info(self.stream).await;
        let stream = stream.map_err(|e| BusError::unknown(WHAT, e))?;
        match stream.get_last_raw_message_by_subject(&self.subject(key)).await {
            Ok(message) if is_deleted(&message.headers) => Ok(None),
            Ok(message) => Ok(Some(Entry {
                value: message.payload,
                revision: message.sequence,
                written_at: Timestamp::from_nanosecond(message.time.unix_timestamp_nanos())
                    .unwrap_or_default(),
            })),
            Err(error) => match error.kind() {
                LastRawMessageErrorKind::NoMessageFound => Ok(None),
                LastRawMessageErrorKind::JetStream(e)
                    if e.error_code() == async_nats::jetstream::ErrorCode::STREAM_NOT_FOUND =>
                {
                    // A bucket that is gone has no values; the next check makes it again.
                    Ok(None)
                }
                LastRawMessageErrorKind::JetStream(_)
                | LastRawMessageErrorKind::InvalidSubject
                | LastRawMessageErrorKind::Other => Err(BusError::unknown(WHAT, error)),
            },
        }
    }

    /// Writes whatever was there before.
    pub(crate) async fn put(&self, key: &str, value: Bytes) -> Result<u64, BusError> {
        let message = PublishMessage::build().payload(value).expected_stream(self.stream);
        self.bus.publish("write a value", self.stream, self.subject(key), message).await
    }

    /// Writes if the last revision is `expected` (0: there is none), else [`BusError::Conflict`].
    pub(crate) async fn put_if(
        &self,
        key: &str,
        value: Bytes,
        expected: u64,
    ) -> Result<u64, BusError> {
        let message = PublishMessage::build()
            .payload(value)
            .expected_stream(self.stream)
            .expected_last_subject_sequence(expected);
        self.bus.publish("write a value", self.stream, self.subject(key), message).await
    }

    /// The last value of each key that has one.
    pub(crate) async fn all(&self) -> Result<Vec<Bytes>, BusError> {
        let filter = format!("$KV.{}.>", self.name);
        let mut source =
            Source::reader(&self.bus, self.stream, filter, DeliverPolicy::LastPerSubject);
        let messages = crate::source::read_all(&mut source).await?;
        let live = messages.into_iter().filter(|m| !m.headers.as_ref().is_some_and(is_deleted));
        Ok(live.map(|message| message.payload.clone()).collect())
    }

    /// The value now and each time it changes, for ever. Changes in quick succession may be seen
    /// as one.
    pub(crate) fn watch(&self, key: &str) -> impl Stream<Item = Entry> + Send + use<> {
        let source = Source::reader(
            &self.bus,
            self.stream,
            self.subject(key),
            DeliverPolicy::LastPerSubject,
        );
        let watch =
            Watch { bucket: self.clone(), key: key.to_owned(), source, pull: None, seen: None };
        stream::unfold(watch, |mut watch| async move { Some((watch.next().await, watch)) })
    }
}

const CONFIG_STREAM: &str = "KV_hydrant_config";
const JOBS_STREAM: &str = "KV_hydrant_jobs";

fn is_deleted(headers: &HeaderMap) -> bool {
    headers.get("KV-Operation").is_some() || headers.get("Nats-Marker-Reason").is_some()
}

struct Watch {
    bucket: Bucket,
    key: String,
    source: Source,
    pull: Option<Pull>,
    seen: Option<u64>,
}

impl Watch {
    async fn next(&mut self) -> Entry {
        loop {
            match self.step().await {
                // A revision below the seen one is a bucket that was restored or made anew: the
                // leader said so.
                Ok(Some(entry)) if self.seen != Some(entry.revision) => {
                    self.seen = Some(entry.revision);
                    return entry;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(key = self.key, %error, "cannot watch, trying again");
                    self.pull = None;
                    self.source.lost();
                    self.pause().await;
                }
            }
        }
    }

    /// What a change told, or, when nothing was told for a while, what is there.
    async fn step(&mut self) -> Result<Option<Entry>, BusError> {
        let Some(pull) = &mut self.pull else {
            self.pull = Some(self.source.pull(64, Some(REREAD)).await?);
            return self.bucket.get(&self.key).await;
        };
        match pull.next().await {
            None => {
                self.pull = None;
                Ok(None)
            }
            Some(message) => {
                let message = message?;
                if message.headers.as_ref().is_some_and(is_deleted) {
                    return Ok(None);
                }
                // Only newer than what was seen: a message on the way may have been overtaken.
                let info = message.info().map_err(|e| BusError::unknown("watch a value", e))?;
                let newer = self.seen.is_none_or(|seen| info.stream_sequence > seen);
                Ok(newer.then(|| Entry {
                    value: message.payload.clone(),
                    revision: info.stream_sequence,
                    written_at: published(&message).unwrap_or_default(),
                }))
            }
        }
    }

    async fn pause(&self) {
        sleep(ERROR_PAUSE).await;
        let mut link = self.bucket.bus.link();
        let _ = timeout(REREAD, link.wait_for(|link| link.up)).await;
    }
}
