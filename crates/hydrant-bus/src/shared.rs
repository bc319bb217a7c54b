//! Small shared state with a lifetime: claims on flights, probe slots, breakers, quotas.
//!
//! It lives in a bucket in memory, since losing it costs only work. When the server restarts all
//! of it is gone at once and two processes may do the same work until their next write: nothing
//! but work may depend on a claim.
//!
//! Decide by what [`SharedState::create`] and [`SharedState::update`] answer, never by what was
//! read. Every write carries its own lifetime, since the server keeps none from the value before;
//! `async-nats`' own `create` and `update` for KV forget it.

use crate::{
    Bus, BusError, Revision,
    kv::{self, Bucket},
    publish::is_token,
    topology::MAX_TTL,
};
use bytes::Bytes;
use futures::{Stream, StreamExt, future};
use hydrant_proto::{SharedValue, codec, subject::StateKey};
use std::time::Duration;

/// Tries to create a key whose past changes under our hands, before giving up with a conflict.
const CREATE_TRIES: usize = 4;
/// Longest value in bytes; the envelope needs the rest of what a message may have.
const MAX_VALUE: usize = codec::MAX_BYTES - 4 * 1024;

/// A value as it was read. It may be another one by now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The process that wrote it; see [`SharedState::owner`].
    pub owner: String,
    pub value: Bytes,
    pub revision: Revision,
    pub(crate) nonce: u64,
}

/// What became of an attempt to be the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed<T> {
    Mine(T),
    /// Somebody has it, at the time of looking.
    Taken(Entry),
}

/// The shared state. Clones are the same one.
#[derive(Clone, Debug)]
pub struct SharedState {
    bus: Bus,
    pub(crate) bucket: Bucket,
}

/// A value that was written where there was none.
pub(crate) struct Won {
    pub(crate) revision: u64,
    /// The one before it expired, and was not removed.
    pub(crate) after_expiry: bool,
}

/// A value in its envelope.
pub(crate) struct Sealed {
    pub(crate) nonce: u64,
    bytes: Bytes,
}

impl Bus {
    pub fn shared_state(&self) -> SharedState {
        SharedState { bus: self.clone(), bucket: Bucket::state(self) }
    }
}

impl SharedState {
    /// What this process is called in the values it writes: its name and a random number, so that
    /// it is another one after a restart.
    pub fn owner(&self) -> &str {
        self.bus.owner()
    }

    /// Writes if the key has no value. Of any number of callers one gets [`Claimed::Mine`].
    ///
    /// The value is gone `ttl` (1 s to 24 h, rounded up to whole seconds) after it was stored.
    /// [`BusError::Unknown`]: it may be there, or may appear yet, and then goes by itself.
    pub async fn create(
        &self,
        key: &StateKey,
        value: Bytes,
        ttl: Duration,
    ) -> Result<Claimed<Revision>, BusError> {
        Ok(match self.create_sealed(&name(key)?, &self.seal(&value)?, ttl).await? {
            Claimed::Mine(won) => Claimed::Mine(Revision(won.revision)),
            Claimed::Taken(entry) => Claimed::Taken(entry),
        })
    }

    /// Writes if the key's revision is `expected`, else [`BusError::Conflict`]; a value that
    /// expired or was removed has no revision that fits. The lifetime begins anew.
    pub async fn update(
        &self,
        key: &StateKey,
        value: Bytes,
        expected: Revision,
        ttl: Duration,
    ) -> Result<Revision, BusError> {
        let (key, sealed) = (name(key)?, self.seal(&value)?);
        match self.put(&key, &sealed, expected.0, ttl).await {
            Ok(revision) => Ok(Revision(revision)),
            Err(unknown @ BusError::Unknown { .. }) => match self.read(&key).await {
                Ok((_, Some(found))) if found.nonce == sealed.nonce => Ok(found.revision),
                Ok(_) | Err(_) => Err(unknown),
            },
            Err(error) => Err(error),
        }
    }

    /// Writes whatever was there: for a key with one writer, or one where the newest is right.
    pub async fn put_over(
        &self,
        key: &StateKey,
        value: Bytes,
        ttl: Duration,
    ) -> Result<(), BusError> {
        let (key, sealed) = (name(key)?, self.seal(&value)?);
        self.bucket.put_over(&key, sealed.bytes, lifetime(ttl)?).await.map(drop)
    }

    /// The value as the bucket's leader knows it; `None` when there is none or it expired.
    pub async fn get(&self, key: &StateKey) -> Result<Option<Entry>, BusError> {
        Ok(self.read(&name(key)?).await?.1)
    }

    /// Removes the value if its revision is `expected`, else [`BusError::Conflict`].
    pub async fn remove(&self, key: &StateKey, expected: Revision) -> Result<(), BusError> {
        self.remove_at(&name(key)?, expected.0).await
    }

    /// What is there now and after each change, for ever, through reconnects and restarts; `None`
    /// when there is no value, or it expired or was removed. Quick changes may be seen as one.
    pub fn watch(
        &self,
        key: &StateKey,
    ) -> Result<impl Stream<Item = Option<Entry>> + Send + use<>, BusError> {
        let entries = self.bucket.watch(&name(key)?);
        Ok(entries.filter_map(|entry| {
            // What cannot be read was written by another version; whoever it is, it is no news.
            future::ready(entry.map(Entry::open).transpose().ok())
        }))
    }

    pub(crate) fn seal(&self, value: &Bytes) -> Result<Sealed, BusError> {
        check_size(value)?;
        let nonce = rand::random();
        let value = SharedValue { owner: self.owner().to_owned(), nonce, value: value.to_vec() };
        Ok(Sealed { nonce, bytes: codec::encode(&value).into() })
    }

    pub(crate) async fn create_sealed(
        &self,
        key: &str,
        sealed: &Sealed,
        ttl: Duration,
    ) -> Result<Claimed<Won>, BusError> {
        let (mut expected, mut after_expiry) = (0, false);
        for _ in 0..CREATE_TRIES {
            let failed = match self.put(key, sealed, expected, ttl).await {
                Ok(revision) => return Ok(Claimed::Mine(Won { revision, after_expiry })),
                Err(error @ (BusError::Conflict { .. } | BusError::Unknown { .. })) => error,
                Err(error) => return Err(error),
            };
            let last = self.bucket.last(key).await;
            let found = match &last {
                Ok(last) => last.entry.clone().map(Entry::open).transpose()?,
                Err(_) => None,
            };
            match (failed, last, found) {
                (_, _, Some(found)) if found.nonce == sealed.nonce => {
                    let revision = found.revision.0;
                    return Ok(Claimed::Mine(Won { revision, after_expiry }));
                }
                (_, _, Some(found)) => return Ok(Claimed::Taken(found)),
                // Expired or removed. Either left a mark, which is what has to be replaced.
                (BusError::Conflict { .. }, Ok(last), None) => {
                    (expected, after_expiry) = (last.revision, last.expired);
                }
                (unknown @ BusError::Unknown { .. }, _, None) => return Err(unknown),
                (_, Err(error), None) => return Err(error),
                (error, Ok(_), None) => return Err(error),
            }
        }
        Err(BusError::Conflict { what: "create a shared value" })
    }

    /// One compare-and-set, with whatever became of it.
    pub(crate) async fn put(
        &self,
        key: &str,
        sealed: &Sealed,
        expected: u64,
        ttl: Duration,
    ) -> Result<u64, BusError> {
        self.bucket.put_for(key, sealed.bytes.clone(), expected, lifetime(ttl)?).await
    }

    /// What is there, and the revision to replace.
    pub(crate) async fn read(&self, key: &str) -> Result<(u64, Option<Entry>), BusError> {
        let last = self.bucket.last(key).await?;
        Ok((last.revision, last.entry.map(Entry::open).transpose()?))
    }

    pub(crate) async fn remove_at(&self, key: &str, expected: u64) -> Result<(), BusError> {
        self.bucket.remove(key, expected).await
    }
}

impl Entry {
    pub(crate) fn open(entry: kv::Entry) -> Result<Self, BusError> {
        const WHAT: &str = "read a shared value";
        let SharedValue { owner, nonce, value } = codec::decode(&entry.value)
            .map_err(|source| BusError::Malformed { what: WHAT, source })?;
        Ok(Self { owner, nonce, value: value.into(), revision: Revision(entry.revision) })
    }
}

pub(crate) fn check_size(value: &Bytes) -> Result<(), BusError> {
    match value.len() {
        0..=MAX_VALUE => Ok(()),
        len => Err(refused(format!("the value has {len} bytes, more than {MAX_VALUE}"))),
    }
}

/// The key's text, which is part of a subject.
pub(crate) fn name(key: &StateKey) -> Result<String, BusError> {
    let text = key.to_string();
    match text.split('.').all(is_token) {
        true => Ok(text),
        false => Err(refused(format!("key {text:?} is not made of words of a subject"))),
    }
}

/// The server counts whole seconds and drops the rest of one, so a lifetime is rounded up: nobody
/// may find a key free while its writer still counts on it. 0 would mean for ever.
fn lifetime(ttl: Duration) -> Result<Duration, BusError> {
    if ttl.is_zero() || ttl > MAX_TTL {
        return Err(refused(format!("{ttl:?} is no lifetime between 1 s and {MAX_TTL:?}")));
    }
    Ok(Duration::from_secs(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)))
}

pub(crate) fn refused(reason: String) -> BusError {
    BusError::Refused { what: "share a value", reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_never_shortened() {
        let whole = |ttl| lifetime(ttl).unwrap().as_secs();
        assert_eq!(whole(Duration::from_millis(1)), 1);
        assert_eq!(whole(Duration::from_secs(1)), 1);
        assert_eq!(whole(Duration::from_millis(1_500)), 2);
        assert_eq!(whole(MAX_TTL), MAX_TTL.as_secs());
        assert!(lifetime(Duration::ZERO).is_err());
        assert!(lifetime(MAX_TTL + Duration::from_nanos(1)).is_err());
    }

    #[test]
    fn a_name_that_is_no_word_makes_no_key() {
        assert_eq!(name(&StateKey::Quota("docker-hub".to_owned())).unwrap(), "quota.docker-hub");
        for bad in ["", "*", ">", "a b", "a\r\nb", "a..b"] {
            assert!(name(&StateKey::Probe(bad.to_owned())).is_err(), "{bad:?}");
        }
    }
}
