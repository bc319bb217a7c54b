//! The miss log: who missed what, kept until it is hydrated, so that a lost bus loses no miss.

use crate::{
    Store,
    cas::MAX_ROUNDS,
    error::StoreError,
    key,
    key::Key,
    object::{Object, Stored},
};
use futures::{Stream, StreamExt, TryStreamExt, future};
use hydrant_proto::{Digest, HydrationRequested, JobId, Platform};
use jiff::Timestamp;
use object_store::{PutMode, path::Path};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What of an image was missed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    /// The image as its rule's platform policy says.
    Whole,
    /// Every platform of an index.
    All,
    /// One platform of an index.
    Platform(Platform),
    /// One manifest of an index.
    Child(Digest),
    /// The upstream's word on the tag, even where the rule says that it is never asked.
    Refresh,
}

impl Wanted {
    /// The last component of the record's key. Hashed where the text could be a path (`..`).
    pub(crate) fn key(&self) -> String {
        match self {
            Self::Whole => "whole".to_owned(),
            Self::All => "all".to_owned(),
            Self::Refresh => "refresh".to_owned(),
            Self::Platform(platform) => {
                let digest = Digest::of(platform.to_string().as_bytes());
                format!("platform-{}", &digest.hex()[..32])
            }
            Self::Child(digest) => {
                format!("child-{}.{}", digest.algorithm().as_str(), digest.hex())
            }
        }
    }
}

/// One miss. Its key is made of the job's id and of what was wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissRecord {
    pub request: HydrationRequested,
    pub wanted: Wanted,
    pub missed_at: Timestamp,
    /// The manifest that was missed, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Whether the same was wanted before of another manifest, by a record that was still there: the
    /// job of that one may have asked the upstream already. Set by [`Store::record_miss`].
    #[serde(default, skip_serializing_if = "is_false")]
    pub again: bool,
}

fn is_false(again: &bool) -> bool {
    !again
}

impl MissRecord {
    pub fn new(request: HydrationRequested, wanted: Wanted, missed_at: Timestamp) -> Self {
        Self { request, wanted, missed_at, digest: None, again: false }
    }

    /// A record that came later lies beside the first, so that forgetting that one leaves it.
    pub(crate) fn again(&self) -> Option<&Digest> {
        self.digest.as_ref().filter(|_| self.again)
    }
}

impl Store {
    /// Keeps a miss. Telling the same miss again changes nothing, so its age is that of the first;
    /// only a damaged record is replaced. What is missed of another manifest, because the tag has
    /// moved, is another miss.
    pub async fn record_miss(&self, miss: &MissRecord) -> Result<(), StoreError> {
        let path = self.miss_at(miss);
        for _ in 0..MAX_ROUNDS {
            match self.put_json(&path, miss, PutMode::Create).await {
                Err(StoreError::Conflict { .. }) => {}
                done => return done,
            }
            let first = match self.get_record::<MissRecord>(&path).await? {
                Some(Stored::Readable(first, _)) => first,
                Some(Stored::Unreadable(damaged)) => {
                    return self.replace_damaged_miss(&path, miss, &damaged).await;
                }
                // Forgotten a moment ago, with a job that may not have seen what we did.
                None => continue,
            };
            return match &miss.digest {
                Some(missed) if first.digest.as_ref() != Some(missed) => {
                    let again = MissRecord { again: true, ..miss.clone() };
                    match self.put_json(&self.miss_at(&again), &again, PutMode::Create).await {
                        Err(StoreError::Conflict { .. }) => Ok(()),
                        done => done,
                    }
                }
                _ => Ok(()),
            };
        }
        Err(StoreError::Conflict { key: path.to_string() })
    }

    fn miss_at(&self, miss: &MissRecord) -> Path {
        self.at(Key::Miss(&miss.request.id(), &miss.wanted, miss.again()))
    }

    async fn replace_damaged_miss(
        &self,
        path: &Path,
        miss: &MissRecord,
        damaged: &Object,
    ) -> Result<(), StoreError> {
        match self.compare_and_set_json(path, miss, &self.stamp(damaged)).await {
            Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Everything missed of one job.
    pub async fn misses(&self, job: &JobId) -> Result<Vec<MissRecord>, StoreError> {
        let whole = self.at(Key::Miss(job, &Wanted::Whole, None));
        let wishes = self.records(key::wishes_of(job), None).try_collect::<Vec<_>>();
        let (whole, wishes) = tokio::try_join!(self.get_record(&whole), wishes)?;
        let whole = whole.and_then(Stored::readable).map(|(record, _)| record);
        Ok(whole.into_iter().chain(wishes).collect())
    }

    /// Drops exactly these misses, because they were hydrated, given up or are obsolete.
    pub async fn forget_misses(&self, misses: &[MissRecord]) -> Result<(), StoreError> {
        let forget = async |miss: &MissRecord| self.delete(&self.miss_at(miss)).await;
        future::try_join_all(misses.iter().map(forget)).await.map(drop)
    }

    /// Every miss that was recorded at least `older_than` ago, by the store's clock; for the sweep.
    pub fn all_misses(
        &self,
        older_than: Duration,
    ) -> impl Stream<Item = Result<MissRecord, StoreError>> + Send + use<> {
        self.records(key::misses(), Some(older_than)).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_wanted_is_always_one_harmless_component() {
        let odd: Platform = "../..".parse().unwrap();
        let digest = Digest::of(b"x");
        for wanted in [Wanted::Whole, Wanted::All, Wanted::Platform(odd), Wanted::Child(digest)] {
            let key = wanted.key();
            assert!(!key.contains('/') && !key.contains("..") && !key.contains('#'), "{key}");
        }
    }
}
