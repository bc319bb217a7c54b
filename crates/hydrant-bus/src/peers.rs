//! What processes write beside each other: one key each, read by all.

use crate::{
    BusError, Entry, SharedState,
    kv::{Bucket, Last, REREAD},
    publish::is_token,
    shared::refused,
    source::{Pull, Source, read_all},
};
use async_nats::jetstream::Message;
use futures::{Stream, stream};
use hydrant_proto::subject::{self, StateKey};

/// What a process wrote, or (`None`) that its value expired or was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub process: String,
    pub entry: Option<Entry>,
}

impl SharedState {
    /// The key under which this process writes what it saw of `upstream`.
    pub fn own_breaker(&self, upstream: &str) -> StateKey {
        StateKey::Breaker { upstream: upstream.to_owned(), process: self.process() }
    }

    /// What this process is called in keys.
    pub fn process(&self) -> String {
        let word = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        self.owner().chars().map(word).collect()
    }

    /// What each process has seen of `upstream`, now and at each change, for ever and through
    /// reconnects. When the bus lost values nobody tells of it, so a reader lets them age.
    pub fn watch_breakers(
        &self,
        upstream: &str,
    ) -> Result<impl Stream<Item = Told> + Send + use<>, BusError> {
        let source = self.bucket.readings(&filter(upstream)?);
        let peers = Peers { bucket: self.bucket.clone(), source, pull: None };
        Ok(stream::unfold(peers, |mut peers| async move { Some((peers.next().await, peers)) }))
    }

    /// What each process has seen of `upstream`, as far as it is there now.
    pub async fn breakers(&self, upstream: &str) -> Result<Vec<Told>, BusError> {
        let mut source = self.bucket.readings(&filter(upstream)?);
        let messages = read_all(&mut source).await?;
        let told = messages.iter().filter_map(|message| told(&self.bucket, message));
        Ok(told.filter(|told| told.entry.is_some()).collect())
    }
}

fn filter(upstream: &str) -> Result<String, BusError> {
    match is_token(upstream) {
        true => Ok(subject::breakers(upstream)),
        false => Err(refused(format!("{upstream:?} is not a word of a subject"))),
    }
}

struct Peers {
    bucket: Bucket,
    source: Source,
    pull: Option<Pull>,
}

impl Peers {
    async fn next(&mut self) -> Told {
        loop {
            match self.step().await {
                Ok(Some(told)) => return told,
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "cannot watch other processes, trying again");
                    self.pull = None;
                    self.source.lost();
                    self.bucket.pause().await;
                }
            }
        }
    }

    async fn step(&mut self) -> Result<Option<Told>, BusError> {
        let pull = match &mut self.pull {
            Some(pull) => pull,
            None => self.pull.insert(self.source.pull(64, Some(REREAD)).await?),
        };
        match pull.next().await {
            None => {
                self.pull = None;
                Ok(None)
            }
            Some(message) => Ok(told(&self.bucket, &message?)),
        }
    }
}

/// What cannot be read was written by another version and is no news.
fn told(bucket: &Bucket, message: &Message) -> Option<Told> {
    let (key, Last { entry, .. }) = bucket.told(message).ok()?;
    let process = subject::parse_breaker(&key)?.to_owned();
    let entry = entry.map(Entry::open).transpose().ok()?;
    Some(Told { process, entry })
}
