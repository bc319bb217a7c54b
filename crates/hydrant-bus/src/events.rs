//! Following events live, for frontends and for people; nothing is acknowledged.

use crate::{
    Bus, BusError,
    source::{Pull, Source, published},
};
use async_nats::jetstream::consumer::DeliverPolicy;
use futures::{Stream, stream};
use hydrant_proto::{Event, codec, subject};
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;
use tokio::time::{sleep, timeout};

const WAIT: Duration = Duration::from_secs(10);
const ERROR_PAUSE: Duration = Duration::from_millis(500);

impl Bus {
    /// Every event stored since `since` (`None`: from when the stream is first polled), in order and
    /// for ever: it goes on where it was after a reconnect, and with new events after the bus was
    /// wiped.
    pub fn follow_events(
        &self,
        since: Option<Timestamp>,
    ) -> impl Stream<Item = Event> + Send + use<> {
        let mut source = Source::reader(
            self,
            subject::EVENTS_STREAM,
            subject::EVENTS_SUBJECTS.to_owned(),
            DeliverPolicy::New,
        );
        if let Some(since) = since {
            source.begin_at(since);
        }
        let follower = Follower { source, pull: None };
        stream::unfold(
            follower,
            |mut follower| async move { Some((follower.next().await, follower)) },
        )
    }
}

struct Follower {
    source: Source,
    pull: Option<Pull>,
}

impl Follower {
    async fn next(&mut self) -> Event {
        loop {
            match self.step().await {
                Ok(Some(event)) => return event,
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "cannot follow events, trying again");
                    self.pull = None;
                    self.source.lost();
                    self.pause().await;
                }
            }
        }
    }

    async fn step(&mut self) -> Result<Option<Event>, BusError> {
        let Some(pull) = &mut self.pull else {
            self.pull = Some(self.source.pull(256, Some(WAIT)).await?);
            return Ok(None);
        };
        let Some(message) = pull.next().await else {
            self.pull = None;
            return Ok(None);
        };
        let message = message?;
        if let Some(published) = published(&message) {
            self.source.begin_at(published + SignedDuration::from_nanos(1));
        }
        match codec::decode(&message.payload) {
            Ok(event) => Ok(Some(event)),
            Err(error) => {
                tracing::warn!(subject = %message.subject, %error, "event passed over");
                Ok(None)
            }
        }
    }

    async fn pause(&self) {
        sleep(ERROR_PAUSE).await;
        let mut link = self.source.bus().link();
        let _ = timeout(WAIT, link.wait_for(|link| link.up)).await;
    }
}
