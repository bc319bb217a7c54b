//! A consumer on a stream: made when first needed, made again when it is gone, and pulled from.

use crate::{Bus, BusError, config::REQUEST_TIMEOUT, error::describe, link::LinkState};
use async_nats::{
    datetime,
    jetstream::{
        ErrorCode, Message,
        consumer::{AckPolicy, Consumer, DeliverPolicy, pull},
        stream::ConsumerErrorKind,
    },
};
use futures::StreamExt;
use jiff::Timestamp;
use std::time::Duration;
use tokio::{sync::watch, time::timeout};

/// How long a consumer without a name outlives its reader.
const EPHEMERAL: Duration = Duration::from_secs(60);

pub(crate) struct Source {
    bus: Bus,
    stream: String,
    config: pull::Config,
    consumer: Option<Consumer<pull::Config>>,
}

impl Source {
    /// A durable work consumer: explicit acks, any number of deliveries, any number outstanding.
    pub(crate) fn durable(
        bus: &Bus,
        stream: &str,
        name: String,
        filter: String,
        deliver: DeliverPolicy,
    ) -> Self {
        let config = pull::Config {
            durable_name: Some(name),
            filter_subject: filter,
            deliver_policy: deliver,
            ack_policy: AckPolicy::Explicit,
            ack_wait: bus.config().ack_wait,
            max_deliver: -1,
            max_ack_pending: -1,
            ..pull::Config::default()
        };
        Self { bus: bus.clone(), stream: stream.to_owned(), config, consumer: None }
    }

    /// A reader of its own, without acks, that the server forgets a minute after its last pull.
    pub(crate) fn reader(bus: &Bus, stream: &str, filter: String, deliver: DeliverPolicy) -> Self {
        let config = pull::Config {
            filter_subject: filter,
            deliver_policy: deliver,
            ack_policy: AckPolicy::None,
            inactive_threshold: EPHEMERAL,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        Self { bus: bus.clone(), stream: stream.to_owned(), config, consumer: None }
    }

    pub(crate) fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Whether the consumer has to begin where it was, should it be made again. A work queue keeps
    /// only what is not done, so there it is always the beginning.
    pub(crate) fn resumes(&self) -> bool {
        self.config.deliver_policy != DeliverPolicy::All
    }

    /// Where to begin if the consumer has to be made again.
    pub(crate) fn begin_at(&mut self, time: Timestamp) {
        if !self.resumes() {
            return;
        }
        if let Ok(start_time) = datetime::from_nanos(time.as_nanosecond()) {
            self.config.deliver_policy = DeliverPolicy::ByStartTime { start_time };
        }
    }

    /// The stream sequence up to which everything was settled; `None` when that cannot be told.
    pub(crate) async fn settled_to(&self) -> Option<u64> {
        let consumer = self.consumer.as_ref()?;
        let info = timeout(REQUEST_TIMEOUT, consumer.get_info()).await.ok()?.ok()?;
        Some(info.ack_floor.stream_sequence)
    }

    /// Makes the consumer now instead of at the first pull, so that nothing that is published
    /// from here on is missed.
    pub(crate) async fn attach(&mut self) -> Result<(), BusError> {
        if self.consumer.is_none() {
            let consumer = self.find_or_create().await?;
            if self.config.durable_name.is_none()
                && self.config.deliver_policy == DeliverPolicy::New
            {
                // Should it have to be made again before anything was read: by the server's clock.
                let made = consumer.cached_info().created.unix_timestamp_nanos();
                self.begin_at(Timestamp::from_nanosecond(made).unwrap_or_default());
            }
            self.consumer = Some(consumer);
        }
        Ok(())
    }

    /// Asks for up to `max` messages. With `wait` the server holds the request open that long;
    /// without, it ends when nothing more is there.
    pub(crate) async fn pull(
        &mut self,
        max: usize,
        wait: Option<Duration>,
    ) -> Result<Pull, BusError> {
        const WHAT: &str = "pull messages";
        self.attach().await?;
        let consumer = self.consumer.as_ref().expect("attach made it");
        let link = self.bus.link();
        let epoch = link.borrow().epoch;
        // No heartbeats: a batch that meets one is never woken again (async-nats 0.51).
        let request = async {
            match wait {
                Some(wait) => consumer.batch().max_messages(max).expires(wait).messages().await,
                None => consumer.fetch().max_messages(max).messages().await,
            }
        };
        let batch = match timeout(REQUEST_TIMEOUT, request).await {
            Ok(batch) => batch.map_err(|e| BusError::unknown(WHAT, e))?,
            Err(elapsed) => return Err(BusError::unknown(WHAT, elapsed)),
        };
        let limit = wait.unwrap_or(Duration::ZERO) + REQUEST_TIMEOUT;
        Ok(Pull { batch, link, epoch, limit })
    }

    /// Forgets the consumer after a failure, so that the next pull looks for it again.
    pub(crate) fn lost(&mut self) {
        self.consumer = None;
    }

    async fn find_or_create(&self) -> Result<Consumer<pull::Config>, BusError> {
        self.bus.reachable()?;
        if let Some(name) = &self.config.durable_name
            && let Some(found) = self.find(name).await?
            && self.fits(found.cached_info())
        {
            return Ok(found);
        }
        match self.create().await {
            Err(error) if is(&error, ErrorCode::STREAM_NOT_FOUND) => {
                self.bus.ensure_topology().await?;
                self.create().await.map_err(|e| self.failed(e))
            }
            other => other.map_err(|e| self.failed(e)),
        }
    }

    async fn find(&self, name: &str) -> Result<Option<Consumer<pull::Config>>, BusError> {
        let found = self.bus.jetstream().get_consumer_from_stream(name, &self.stream).await;
        match found {
            Ok(consumer) => Ok(Some(consumer)),
            Err(e) if is(&e, ErrorCode::CONSUMER_NOT_FOUND) => Ok(None),
            Err(e) if is(&e, ErrorCode::STREAM_NOT_FOUND) => Ok(None),
            Err(e) => Err(self.failed(e)),
        }
    }

    /// Whether a consumer that is there does what we rely on. Where it began is its own affair.
    fn fits(&self, found: &async_nats::jetstream::consumer::Info) -> bool {
        let (found, wanted) = (&found.config, &self.config);
        found.filter_subject == wanted.filter_subject
            && found.ack_policy == wanted.ack_policy
            && found.ack_wait == wanted.ack_wait
            && found.max_deliver == wanted.max_deliver
            && found.max_ack_pending == wanted.max_ack_pending
            && found.backoff.is_empty()
            && !found.headers_only
    }

    async fn create(
        &self,
    ) -> Result<Consumer<pull::Config>, async_nats::jetstream::stream::ConsumerError> {
        let mut config = self.config.clone();
        if let Some(name) = &config.durable_name
            && let Ok(Some(found)) = self.find(name).await
        {
            // An update may change anything but where the consumer began.
            config.deliver_policy = found.cached_info().config.deliver_policy;
        }
        self.bus.jetstream().create_consumer_on_stream(config, &self.stream).await
    }

    fn failed(&self, error: async_nats::jetstream::stream::ConsumerError) -> BusError {
        const WHAT: &str = "set up a consumer";
        match error.kind() {
            ConsumerErrorKind::JetStream(_) | ConsumerErrorKind::InvalidName => {
                let name = self.config.durable_name.as_deref().unwrap_or("reader");
                let reason =
                    format!("consumer {name} on stream {}: {}", self.stream, describe(&error));
                BusError::Refused { what: WHAT, reason }
            }
            ConsumerErrorKind::TimedOut
            | ConsumerErrorKind::Request
            | ConsumerErrorKind::InvalidConsumerType
            | ConsumerErrorKind::Other => BusError::unknown(WHAT, error),
        }
    }
}

fn is(error: &async_nats::jetstream::stream::ConsumerError, code: ErrorCode) -> bool {
    matches!(error.kind(), ConsumerErrorKind::JetStream(e) if e.error_code() == code)
}

/// One request for messages under way.
pub(crate) struct Pull {
    batch: pull::Batch,
    link: watch::Receiver<LinkState>,
    epoch: u64,
    limit: Duration,
}

impl Pull {
    /// The next message; `None` when the request has ended. A request does not survive its
    /// connection: what was on the way comes again after `ack_wait`.
    pub(crate) async fn next(&mut self) -> Option<Result<Message, BusError>> {
        const WHAT: &str = "receive messages";
        let epoch = self.epoch;
        let broken = self.link.wait_for(|link| !link.up || link.epoch != epoch);
        tokio::select! {
            biased;
            next = timeout(self.limit, self.batch.next()) => match next {
                Ok(next) => next.map(|m| m.map_err(|e| BusError::unknown(WHAT, e))),
                Err(elapsed) => Some(Err(BusError::unknown(WHAT, elapsed))),
            },
            _ = broken => Some(Err(BusError::Disconnected("the connection broke".to_owned()))),
        }
    }
}

/// When the server stored the message.
pub(crate) fn published(message: &Message) -> Option<Timestamp> {
    let info = message.info().ok()?;
    Timestamp::from_nanosecond(info.published.unix_timestamp_nanos()).ok()
}

/// Everything a reader finds now, in order.
pub(crate) async fn read_all(source: &mut Source) -> Result<Vec<Message>, BusError> {
    const PAGE: usize = 256;
    let mut messages = Vec::new();
    loop {
        let before = messages.len();
        let mut pull = source.pull(PAGE, None).await?;
        while let Some(message) = pull.next().await {
            messages.push(message?);
        }
        if messages.len() == before {
            return Ok(messages);
        }
    }
}
