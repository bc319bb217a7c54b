//! The state of jobs, kept in memory on the bus for a day after the last change.

use crate::{Bus, BusError, kv::Bucket};
use futures::{Stream, StreamExt, future};
use hydrant_proto::{JobId, JobState, codec};

/// Reads, writes and watches the state of jobs. Losing it costs progress bars and attempt counts.
#[derive(Clone, Debug)]
pub struct JobStates {
    bucket: Bucket,
}

impl Bus {
    pub fn job_states(&self) -> JobStates {
        JobStates { bucket: Bucket::jobs(self) }
    }
}

impl JobStates {
    /// Writes the state; the last writer wins, and says in `writer` who it is.
    pub async fn put(&self, state: &JobState) -> Result<(), BusError> {
        self.bucket.put(state.id().as_str(), codec::encode(state).into()).await?;
        Ok(())
    }

    /// Sends the state without waiting for it to be stored: for progress, of which the next report
    /// makes good for a lost one.
    pub async fn tell(&self, state: &JobState) -> Result<(), BusError> {
        self.bucket.send(state.id().as_str(), codec::encode(state).into()).await
    }

    pub async fn get(&self, id: &JobId) -> Result<Option<JobState>, BusError> {
        let Some(entry) = self.bucket.get(id.as_str()).await? else { return Ok(None) };
        let state = codec::decode(&entry.value);
        state.map(Some).map_err(|source| BusError::Malformed { what: "read a job's state", source })
    }

    /// The state now and after each change, for ever. Quick changes may be seen as one.
    pub fn watch(&self, id: &JobId) -> impl Stream<Item = JobState> + Send + use<> {
        let entries = self.bucket.watch(id.as_str());
        entries.filter_map(|entry| {
            future::ready(entry.and_then(|entry| codec::decode(&entry.value).ok()))
        })
    }

    /// Every job with a state, the latest changed first.
    pub async fn list(&self) -> Result<Vec<JobState>, BusError> {
        let values = self.bucket.all().await?;
        let mut states: Vec<JobState> =
            values.iter().filter_map(|value| codec::decode(value).ok()).collect();
        states.sort_by_key(|state| std::cmp::Reverse(state.updated_at));
        Ok(states)
    }
}
