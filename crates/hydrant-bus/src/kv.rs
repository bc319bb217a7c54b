//! Key-value buckets: reads from the leader, writes whose outcome is known, and a watch that does
//! not end.

use crate::{
    Bus, BusError,
    source::{Pull, Source, published},
};
use async_nats::{
    HeaderMap,
    jetstream::{
        Message, consumer::DeliverPolicy, message::PublishMessage, stream::LastRawMessageErrorKind,
    },
};
use bytes::Bytes;
use futures::{Stream, stream};
use hydrant_proto::subject;
use jiff::Timestamp;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// A watch looks again this often, whatever it was told.
pub(crate) const REREAD: Duration = Duration::from_secs(10);
const ERROR_PAUSE: Duration = Duration::from_millis(500);

/// How long the mark of a removed value stays, for those who were cut off meanwhile.
pub(crate) const TOMBSTONE: Duration = Duration::from_secs(60);

/// A value and where it is in the bucket's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) value: Bytes,
    pub(crate) revision: u64,
    pub(crate) written_at: Timestamp,
}

/// The last thing that happened to a key: a value was written, or it was removed or expired, or
/// (revision 0) nothing is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Last {
    pub(crate) revision: u64,
    pub(crate) entry: Option<Entry>,
    /// There is none because its lifetime was over, and not because somebody removed it.
    pub(crate) expired: bool,
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

    pub(crate) fn state(bus: &Bus) -> Self {
        Self { bus: bus.clone(), name: subject::STATE_BUCKET, stream: STATE_STREAM }
    }

    fn subject(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.name)
    }

    /// The value as the leader of the bucket knows it, not as some replica remembers it.
    pub(crate) async fn get(&self, key: &str) -> Result<Option<Entry>, BusError> {
        Ok(self.last(key).await?.entry)
    }

    /// Like [`Bucket::get`], and where in the history the key is when it has no value.
    pub(crate) async fn last(&self, key: &str) -> Result<Last, BusError> {
        last_on(&self.bus, self.stream, &self.subject(key)).await
    }

    /// Writes whatever was there before.
    pub(crate) async fn put(&self, key: &str, value: Bytes) -> Result<u64, BusError> {
        let message = PublishMessage::build().payload(value).expected_stream(self.stream);
        self.bus.publish("write a value", self.stream, self.subject(key), message).await
    }

    /// Writes like [`Bucket::put`], and does not wait for the answer.
    pub(crate) async fn send(&self, key: &str, value: Bytes) -> Result<(), BusError> {
        self.bus.send(self.subject(key), value).await
    }

    /// Writes if the last revision is `expected` (0: there is none), else [`BusError::Conflict`].
    pub(crate) async fn put_if(
        &self,
        key: &str,
        value: Bytes,
        expected: u64,
    ) -> Result<u64, BusError> {
        let message = self.guarded(value, expected);
        self.bus.publish("write a value", self.stream, self.subject(key), message).await
    }

    /// Like [`Bucket::put_if`]; the value is gone `ttl` after the server stored it, in whole
    /// seconds. Each write says so again: the server keeps no lifetime from the last one.
    pub(crate) async fn put_for(
        &self,
        key: &str,
        value: Bytes,
        expected: u64,
        ttl: Duration,
    ) -> Result<u64, BusError> {
        let message = self.guarded(value, expected).ttl(ttl);
        self.bus.publish("write a value", self.stream, self.subject(key), message).await
    }

    /// Like [`Bucket::put_for`], whatever was there before.
    pub(crate) async fn put_over(
        &self,
        key: &str,
        value: Bytes,
        ttl: Duration,
    ) -> Result<u64, BusError> {
        let message = PublishMessage::build().payload(value).expected_stream(self.stream).ttl(ttl);
        self.bus.publish("write a value", self.stream, self.subject(key), message).await
    }

    /// Removes the value if its revision is `expected`, else [`BusError::Conflict`].
    pub(crate) async fn remove(&self, key: &str, expected: u64) -> Result<(), BusError> {
        let tombstone = self.guarded(Bytes::new(), expected).ttl(TOMBSTONE);
        let tombstone = tombstone.header(KV_OPERATION, "DEL");
        self.bus.publish("remove a value", self.stream, self.subject(key), tombstone).await?;
        Ok(())
    }

    fn guarded(&self, value: Bytes, expected: u64) -> PublishMessage {
        PublishMessage::build()
            .payload(value)
            .expected_stream(self.stream)
            .expected_last_subject_sequence(expected)
    }

    /// The last value of each key that has one.
    pub(crate) async fn all(&self) -> Result<Vec<Bytes>, BusError> {
        let mut source = self.readings(">");
        let messages = crate::source::read_all(&mut source).await?;
        let live = messages.into_iter().filter(|m| !m.headers.as_ref().is_some_and(is_deleted));
        Ok(live.map(|message| message.payload.clone()).collect())
    }

    /// After a failure: until the connection is up, but not for long.
    pub(crate) async fn pause(&self) {
        sleep(ERROR_PAUSE).await;
        let mut link = self.bus.link();
        let _ = timeout(REREAD, link.wait_for(|link| link.up)).await;
    }

    /// Where the values of the keys that fit `filter` are told, the last of each first.
    pub(crate) fn readings(&self, filter: &str) -> Source {
        let filter = self.subject(filter);
        Source::reader(&self.bus, self.stream, filter, DeliverPolicy::LastPerSubject)
    }

    /// The key and what happened to it.
    pub(crate) fn told(&self, message: &Message) -> Result<(String, Last), BusError> {
        let key = message.subject.strip_prefix(&self.subject("")).unwrap_or_default().to_owned();
        Ok((key, Last::of(message)?))
    }

    /// The value now and each time it changes, for ever; `None` when there is none or it is gone.
    /// Changes in quick succession may be seen as one.
    pub(crate) fn watch(&self, key: &str) -> impl Stream<Item = Option<Entry>> + Send + use<> {
        let source = self.readings(key);
        let bucket = self.clone();
        let watch =
            Watch { bucket, key: key.to_owned(), source, pull: None, told: None, newest: 0 };
        stream::unfold(watch, |mut watch| async move { Some((watch.next().await, watch)) })
    }
}

/// The last message on a subject, as the leader of its stream knows it.
pub(crate) async fn last_on(bus: &Bus, stream: &str, subject: &str) -> Result<Last, BusError> {
    const WHAT: &str = "read a value";
    bus.reachable()?;
    let stream = bus.jetstream().get_stream_no_info(stream).await;
    let stream = stream.map_err(|e| BusError::unknown(WHAT, e))?;
    match stream.get_last_raw_message_by_subject(subject).await {
        Ok(message) => {
            let nanos = message.time.unix_timestamp_nanos();
            let written_at = Timestamp::from_nanosecond(nanos).unwrap_or_default();
            let (revision, value) = (message.sequence, message.payload.clone());
            let entry = Entry { value, revision, written_at };
            Ok(Last::told(entry, Some(&message.headers)))
        }
        Err(error) => match error.kind() {
            LastRawMessageErrorKind::NoMessageFound => Ok(Last::default()),
            LastRawMessageErrorKind::JetStream(e)
                if e.error_code() == async_nats::jetstream::ErrorCode::STREAM_NOT_FOUND =>
            {
                // What is gone has no values; the next check makes it again.
                Ok(Last::default())
            }
            LastRawMessageErrorKind::JetStream(_)
            | LastRawMessageErrorKind::InvalidSubject
            | LastRawMessageErrorKind::Other => Err(BusError::unknown(WHAT, error)),
        },
    }
}

const CONFIG_STREAM: &str = "KV_hydrant_config";
const JOBS_STREAM: &str = "KV_hydrant_jobs";
const STATE_STREAM: &str = "KV_hydrant_state";

/// Marks a value that a client removed (NATS ADR-8).
const KV_OPERATION: &str = "KV-Operation";
/// Marks a value that the server removed, for its age or otherwise (NATS ADR-43).
const MARKER_REASON: &str = "Nats-Marker-Reason";

fn is_deleted(headers: &HeaderMap) -> bool {
    headers.get(KV_OPERATION).is_some() || headers.get(MARKER_REASON).is_some()
}

fn is_expired(headers: &HeaderMap) -> bool {
    headers.get(MARKER_REASON).is_some_and(|reason| reason.as_str() == "MaxAge")
}

struct Watch {
    bucket: Bucket,
    key: String,
    source: Source,
    pull: Option<Pull>,
    /// The revision told last; `Some(None)` when it was told that there is no value.
    told: Option<Option<u64>>,
    /// Where in its history the key was seen last.
    newest: u64,
}

impl Watch {
    async fn next(&mut self) -> Option<Entry> {
        loop {
            match self.step().await {
                Ok(Some(Last { revision, entry, .. })) => {
                    // A revision below the newest is a bucket that was restored or made anew: the
                    // leader said so. Revision 0 only says that there is nothing.
                    self.newest = if revision == 0 { self.newest } else { revision };
                    let news = Some(entry.as_ref().map(|entry| entry.revision));
                    if self.told != news {
                        self.told = news;
                        return entry;
                    }
                }
                Ok(None) => {}
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
    async fn step(&mut self) -> Result<Option<Last>, BusError> {
        let Some(pull) = &mut self.pull else {
            self.pull = Some(self.source.pull(64, Some(REREAD)).await?);
            return self.bucket.last(&self.key).await.map(Some);
        };
        let Some(message) = pull.next().await else {
            self.pull = None;
            return Ok(None);
        };
        // Only newer than what was seen: a message on the way may have been overtaken.
        let last = Last::of(&message?)?;
        Ok((last.revision > self.newest).then_some(last))
    }

    async fn pause(&self) {
        self.bucket.pause().await;
    }
}

impl Last {
    fn of(message: &Message) -> Result<Self, BusError> {
        let info = message.info().map_err(|e| BusError::unknown("watch a value", e))?;
        let revision = info.stream_sequence;
        let written_at = published(message).unwrap_or_default();
        let entry = Entry { value: message.payload.clone(), revision, written_at };
        Ok(Self::told(entry, message.headers.as_ref()))
    }

    fn told(entry: Entry, headers: Option<&HeaderMap>) -> Self {
        let expired = headers.is_some_and(is_expired);
        let revision = entry.revision;
        let entry = (!headers.is_some_and(is_deleted)).then_some(entry);
        Self { revision, entry, expired }
    }
}
