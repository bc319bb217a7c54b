//! The one consume loop: pulls exactly as many messages as there are free slots, hands each to a
//! handler, and alone settles them.

use crate::{
    Bus, BusError, Consumed, Received, Rejected, Verdict,
    settle::{Settler, Unsettled},
    source::Source,
};
use async_nats::jetstream::{Message as Delivered, consumer::DeliverPolicy};
use hydrant_proto::{Event, HydrationRequested, Lane, subject};
use jiff::Timestamp;
use std::{fmt::Display, future::Future, marker::PhantomData, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

/// How long the first lane is waited on before the others are looked at again; also how long a
/// stop or a pause can go unnoticed.
const IDLE_WAIT: Duration = Duration::from_secs(1);
/// Pause after the bus failed, unless the connection changes first.
const ERROR_PAUSE: Duration = Duration::from_millis(500);

/// Where messages of one upstream or one webhook come from: lanes in order of urgency.
pub struct Consumer<M> {
    owner: String,
    lanes: Vec<Source>,
    kind: PhantomData<fn() -> M>,
}

impl Bus {
    /// The jobs of one upstream: interactive ones first, background ones for the slots that are
    /// still free. Any number of processes may consume the same upstream and share its jobs.
    pub fn jobs(&self, upstream: &str) -> Consumer<HydrationRequested> {
        let lane = |lane| {
            Source::durable(
                self,
                subject::JOBS_STREAM,
                subject::job_consumer(upstream, lane),
                subject::job_filter(upstream, lane),
                DeliverPolicy::All,
            )
        };
        let lanes = [Lane::Interactive, Lane::Background].map(lane).into();
        Consumer { owner: upstream.to_owned(), lanes, kind: PhantomData }
    }

    /// The events for one webhook, from the moment its consumer is first made. Each webhook has
    /// its own, so a slow one delays only itself.
    pub fn event_deliveries(&self, webhook: &str) -> Consumer<Event> {
        let source = Source::durable(
            self,
            subject::EVENTS_STREAM,
            subject::webhook_consumer(webhook),
            subject::EVENTS_SUBJECTS.to_owned(),
            DeliverPolicy::New,
        );
        Consumer { owner: webhook.to_owned(), lanes: vec![source], kind: PhantomData }
    }
}

impl Consumer<Event> {
    /// Begins with the events stored since `time` when the consumer is made for the first time,
    /// such as when the webhook was written, so that none is missed before anybody attached.
    pub fn since(mut self, time: Timestamp) -> Self {
        for lane in &mut self.lanes {
            lane.begin_at(time);
        }
        self
    }
}

impl<M> Consumer<M> {
    /// Makes the consumer on the server now. [`consume`] does so by itself; this is for who must
    /// know that nothing published from here on is missed.
    pub async fn attach(&mut self) -> Result<(), BusError> {
        for lane in &mut self.lanes {
            lane.attach().await?;
        }
        Ok(())
    }
}

/// How a consume loop runs.
#[derive(Debug)]
pub struct ConsumeOptions {
    /// Most handlers at once.
    pub slots: usize,
    /// While true nothing is pulled, such as while the upstream's breaker is open; handlers under
    /// way go on.
    pub paused: watch::Receiver<bool>,
    /// Stops the pulling.
    pub shutdown: CancellationToken,
    /// How long handlers may go on after `shutdown`; then they are dropped and their messages
    /// given back.
    pub drain: Duration,
}

/// Runs until `shutdown`, then drains. Survives reconnects, and makes consumers and streams again
/// that were deleted.
///
/// `handle` returns a verdict; its future is dropped only when `drain` has passed. While it runs
/// the server is told so every third of `ack_wait`. A panic counts as a failure that may pass,
/// five of them as a message that cannot be handled.
///
/// `reject` writes a dead letter for a message that cannot be handled. When it fails the message
/// is given back, so that no message is lost without one.
pub async fn consume<M, H, F, R, G, E>(
    mut consumer: Consumer<M>,
    options: ConsumeOptions,
    handle: H,
    reject: R,
) where
    M: Consumed,
    H: Fn(Received<M>) -> F + Send + Sync + 'static,
    F: Future<Output = Verdict> + Send + 'static,
    R: Fn(Rejected) -> G + Send + Sync + 'static,
    G: Future<Output = Result<(), E>> + Send + 'static,
    E: Display + Send + 'static,
{
    let ConsumeOptions { slots, mut paused, shutdown, drain } = options;
    let Some(bus) = consumer.lanes.first().map(|lane| lane.bus().clone()) else { return };
    let settler = Arc::new(Settler::new(consumer.owner, &bus, handle, reject));
    let mut work = JoinSet::new();
    while let Some(free) = next_turn(&mut work, slots, &mut paused, &shutdown).await {
        let take = |message| {
            let wanted = !shutdown.is_cancelled() && !*paused.borrow();
            work.spawn(Arc::clone(&settler).take(message, wanted));
        };
        if let Err(error) = fill(&mut consumer.lanes, free, &settler.unsettled, take).await {
            tracing::debug!(owner = settler.owner, %error, "cannot pull, trying again");
            pause(&bus, &shutdown).await;
        }
    }
    drain_handlers(work, &settler.stop, drain).await;
}

/// Waits until something may be pulled, and says how much; `None` when it is time to stop.
async fn next_turn(
    work: &mut JoinSet<()>,
    slots: usize,
    paused: &mut watch::Receiver<bool>,
    shutdown: &CancellationToken,
) -> Option<usize> {
    let ready = async {
        while work.try_join_next().is_some() {}
        while work.len() >= slots.max(1) {
            work.join_next().await;
        }
        // A gate whose owner is gone stays as it was left.
        if paused.wait_for(|paused| !paused).await.is_err() {
            std::future::pending::<()>().await;
        }
        slots.max(1) - work.len()
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => None,
        free = ready => Some(free),
    }
}

/// Fills the free slots: each lane is asked for what the lanes before it left open, and when none
/// had anything the first is waited on.
async fn fill(
    lanes: &mut [Source],
    free: usize,
    unsettled: &Unsettled,
    mut take: impl FnMut(Delivered),
) -> Result<(), BusError> {
    let mut open = free;
    if lanes.len() > 1 {
        for lane in &mut *lanes {
            if open > 0 {
                open -= draw(lane, open, None, unsettled, &mut take).await?;
            }
        }
    }
    match lanes.first_mut() {
        Some(first) if open == free => {
            draw(first, free, Some(IDLE_WAIT), unsettled, &mut take).await?;
        }
        Some(_) | None => {}
    }
    Ok(())
}

/// Pulls up to `max` messages of one lane, handing on each as it arrives.
async fn draw(
    lane: &mut Source,
    max: usize,
    wait: Option<Duration>,
    unsettled: &Unsettled,
    take: &mut impl FnMut(Delivered),
) -> Result<usize, BusError> {
    if let Some(time) = unsettled.resume_at() {
        lane.begin_at(time);
    }
    let mut drawn = 0;
    let outcome = async {
        let mut pull = lane.pull(max, wait).await?;
        while let Some(message) = pull.next().await {
            take(message?);
            drawn += 1;
        }
        Ok(())
    }
    .await;
    if outcome.is_err() {
        lane.lost();
    }
    outcome.map(|()| drawn)
}

/// Waits a little, or until the connection is new.
async fn pause(bus: &Bus, shutdown: &CancellationToken) {
    let mut link = bus.link();
    let now = link.borrow_and_update().clone();
    let better = link.wait_for(|link| link.up && (!now.up || link.epoch != now.epoch));
    tokio::select! {
        () = shutdown.cancelled() => {}
        _ = timeout(ERROR_PAUSE, better) => {}
    }
}

/// Lets handlers finish for `limit`, then has their messages given back.
async fn drain_handlers(mut work: JoinSet<()>, stop: &CancellationToken, limit: Duration) {
    let finished = timeout(limit, async { while work.join_next().await.is_some() {} }).await;
    if finished.is_err() {
        tracing::warn!(handlers = work.len(), "drain deadline passed, giving messages back");
        stop.cancel();
        while work.join_next().await.is_some() {}
    }
}
