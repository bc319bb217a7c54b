//! The consumers that are there: how much waits at each, and removing those nobody needs.

use crate::{Bus, BusError};
use async_nats::jetstream::{
    consumer::Info,
    stream::{RawMessageErrorKind, Stream},
};
use futures::TryStreamExt;
use hydrant_proto::{Lane, subject};
use hydrant_telemetry::metrics::{LaneStock, metrics};
use jiff::Timestamp;
use std::time::Duration;

/// How much one lane of one upstream has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueDepth {
    pub upstream: String,
    pub lane: Lane,
    /// Jobs that no worker has.
    pub waiting: u64,
    /// Jobs that a worker has, or that rest before another try.
    pub outstanding: u64,
}

impl Bus {
    /// The depth of every lane that was ever consumed.
    pub async fn queue_depth(&self) -> Result<Vec<QueueDepth>, BusError> {
        Ok(self.consumers(subject::JOBS_STREAM).await?.iter().filter_map(depth).collect())
    }

    /// Records how deep the queues of `upstreams` are and how old their oldest jobs. A queue without
    /// consumers gets them, those that workers use: what waits is counted by consumer, so without them
    /// nobody who counts would see that a worker is needed.
    pub async fn take_stock(&self, upstreams: &[&str]) -> Result<(), BusError> {
        let mut depths = self.queue_depth().await?;
        let lanes_of = |upstream| depths.iter().filter(|depth| depth.upstream == upstream).count();
        let new: Vec<_> = upstreams.iter().filter(|of| lanes_of(**of) < Lane::ALL.len()).collect();
        for upstream in &new {
            self.jobs(upstream).attach().await?;
        }
        if !new.is_empty() {
            depths = self.queue_depth().await?;
        }
        let mut lanes = Vec::new();
        for depth in depths {
            // Jobs of an upstream that is gone are nobody's, and go with it.
            if upstreams.contains(&&*depth.upstream) {
                let oldest = self.oldest(&depth).await?;
                let QueueDepth { upstream, lane, waiting, .. } = depth;
                lanes.push(LaneStock { upstream, lane, waiting, oldest });
            }
        }
        metrics().queue.found(lanes);
        Ok(())
    }

    async fn oldest(&self, depth: &QueueDepth) -> Result<Duration, BusError> {
        if depth.waiting + depth.outstanding == 0 {
            return Ok(Duration::ZERO);
        }
        let filter = subject::job_filter(&depth.upstream, depth.lane);
        let jobs = self.stream(subject::JOBS_STREAM).await?;
        match jobs.get_first_raw_message_by_subject(filter, 1).await {
            Ok(first) => Ok(age(first.time.unix_timestamp())),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(Duration::ZERO),
            Err(error) => Err(BusError::unknown("look at the oldest job", error)),
        }
    }

    async fn stream(&self, name: &str) -> Result<Stream<()>, BusError> {
        let stream = self.jetstream().get_stream_no_info(name).await;
        stream.map_err(|e| BusError::unknown("look up a stream", e))
    }

    /// Removes the consumers and the queued jobs of upstreams that are not in `existing`. Their
    /// jobs are obsolete: no rule leads to that upstream any more.
    pub async fn retain_upstreams(&self, existing: &[&str]) -> Result<(), BusError> {
        for info in self.consumers(subject::JOBS_STREAM).await? {
            let Some((upstream, _)) = subject::parse_job_consumer(&info.name) else { continue };
            if !existing.contains(&upstream) {
                self.delete_consumer(subject::JOBS_STREAM, &info.name).await?;
                self.purge_jobs(upstream).await?;
            }
        }
        Ok(())
    }

    /// Removes the consumers of webhooks that are not in `existing`, with what they had yet to
    /// deliver.
    pub async fn retain_webhooks(&self, existing: &[&str]) -> Result<(), BusError> {
        for info in self.consumers(subject::EVENTS_STREAM).await? {
            match subject::parse_webhook_consumer(&info.name) {
                Some(webhook) if !existing.contains(&webhook) => {
                    self.delete_consumer(subject::EVENTS_STREAM, &info.name).await?;
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }

    async fn consumers(&self, stream: &str) -> Result<Vec<Info>, BusError> {
        const WHAT: &str = "list consumers";
        self.reachable()?;
        let stream = self.jetstream().get_stream_no_info(stream).await;
        let stream = stream.map_err(|e| BusError::unknown(WHAT, e))?;
        stream.consumers().try_collect().await.map_err(|e| BusError::unknown(WHAT, e))
    }

    async fn delete_consumer(&self, stream: &str, name: &str) -> Result<(), BusError> {
        tracing::info!(stream, consumer = name, "removing a consumer that is no longer needed");
        let deleted = self.jetstream().delete_consumer_from_stream(name, stream).await;
        deleted.map(|_| ()).map_err(|e| BusError::unknown("remove a consumer", e))
    }

    async fn purge_jobs(&self, upstream: &str) -> Result<(), BusError> {
        const WHAT: &str = "remove the jobs of an upstream";
        let stream = self.jetstream().get_stream_no_info(subject::JOBS_STREAM).await;
        let stream = stream.map_err(|e| BusError::unknown(WHAT, e))?;
        let purged = stream.purge().filter(subject::upstream_jobs(upstream)).await;
        purged.map(|_| ()).map_err(|e| BusError::unknown(WHAT, e))
    }
}

/// How long ago a moment was; one ahead of our clock is now.
fn age(unix_seconds: i64) -> Duration {
    let seconds = Timestamp::now().as_second().saturating_sub(unix_seconds);
    Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

fn depth(info: &Info) -> Option<QueueDepth> {
    let (upstream, lane) = subject::parse_job_consumer(&info.name)?;
    Some(QueueDepth {
        upstream: upstream.to_owned(),
        lane,
        waiting: info.num_pending,
        outstanding: info.num_ack_pending as u64,
    })
}
