//! The one consume loop: pulls as many messages as there are free slots, hands each to a handler, and
//! alone settles them. An empty queue costs it one request of ten seconds for each lane.

use crate::{
    Bus, BusError, Consumed, Received, Rejected, Verdict,
    settle::Settler,
    source::{Pull, Source},
    unsettled::Unsettled,
};
use async_nats::jetstream::{Message as Delivered, consumer::DeliverPolicy};
use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use hydrant_proto::{Event, HydrationRequested, Lane, subject};
use jiff::Timestamp;
use std::{fmt::Display, future::Future, marker::PhantomData, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

/// How long an empty lane is listened to in one request. Nothing waits for its end: only a consumer
/// that vanished without a word goes unnoticed so long.
const LISTEN: Duration = Duration::from_secs(10);
/// Pause after the bus failed, unless the connection changes first.
const ERROR_PAUSE: Duration = Duration::from_millis(500);
/// From so many slots on, a loop of which more than three quarters are taken waits so long for more
/// of them before it asks for messages: each request costs the bus as much as a message.
const MANY_SLOTS: usize = 32;
const GATHER: Duration = Duration::from_millis(5);

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
    consumer: Consumer<M>,
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
    let mut ears: Vec<_> = consumer.lanes.into_iter().map(Ear::new).collect();
    let resumes = ears.iter().any(|ear| ear.source.resumes());
    let unsettled = resumes.then(|| Unsettled::new(bus.config().ack_wait));
    let settler = Arc::new(Settler::new(consumer.owner, &bus, unsettled, handle, reject));
    let mut work = JoinSet::new();
    let slots = slots.max(1);
    let take = |work: &mut JoinSet<()>, message, wanted| {
        work.spawn(Arc::clone(&settler).take(message, wanted));
    };
    while !shutdown.is_cancelled() {
        reap(&mut work);
        let free = if *paused.borrow() { 0 } else { slots.saturating_sub(work.len()) };
        let filled = fill(&mut ears, free, settler.unsettled.as_ref(), |message| {
            let wanted = !shutdown.is_cancelled() && !*paused.borrow();
            take(&mut work, message, wanted);
        });
        let mut outcome = filled.await;
        if outcome.is_ok() {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {}
                // A gate whose owner is gone stays as it was left.
                Ok(()) = paused.changed() => {}
                heard = hear(&mut ears) => {
                    reap(&mut work);
                    let wanted = !*paused.borrow() && work.len() < slots;
                    outcome = heard.map(|heard| {
                        heard.into_iter().for_each(|message| take(&mut work, message, wanted));
                    });
                }
                Some(_) = work.join_next() => gather(&mut work, slots).await,
            }
        }
        if let Err(error) = outcome {
            tracing::debug!(owner = settler.owner, %error, "cannot pull, trying again");
            pause(&bus, &shutdown).await;
        }
    }
    give_back(&mut ears, |message| take(&mut work, message, false));
    drop(ears);
    drain_handlers(work, &settler.stop, drain).await;
}

/// Lets some more handlers end, if nearly all slots are taken.
async fn gather(work: &mut JoinSet<()>, slots: usize) {
    let enough = async { while work.len() * 4 > slots * 3 && work.join_next().await.is_some() {} };
    if slots >= MANY_SLOTS {
        let _ = timeout(GATHER, enough).await;
    }
}

fn reap(work: &mut JoinSet<()>) {
    while work.try_join_next().is_some() {}
}

/// One lane of a loop, and the request for its next message that stands open while it is empty.
struct Ear {
    source: Source,
    open: Option<Pull>,
    /// A message came for the open request.
    is_answered: bool,
    /// The last request ran out unanswered: the lane is empty, so there is no use in drawing first.
    is_quiet: bool,
}

impl Ear {
    fn new(source: Source) -> Self {
        Self { source, open: None, is_answered: false, is_quiet: false }
    }

    /// Takes up to `max` messages that are there now, handing on each as it arrives.
    async fn draw(
        &mut self,
        max: usize,
        take: &mut impl FnMut(Delivered),
    ) -> Result<usize, BusError> {
        let mut pull = self.source.pull(max, None).await?;
        let mut drawn = 0;
        while let Some(message) = pull.next().await {
            take(message?);
            drawn += 1;
        }
        Ok(drawn)
    }

    /// Where to begin should the consumer vanish.
    async fn remember(&mut self, unsettled: &Unsettled) {
        if unsettled.is_due()
            && let Some(floor) = self.source.settled_to().await
        {
            unsettled.settled_to(floor);
        }
        if let Some(time) = unsettled.resume_at() {
            self.source.begin_at(time);
        }
    }

    async fn listen(&mut self, max: usize) -> Result<(), BusError> {
        self.open = Some(self.source.pull(max, Some(LISTEN)).await?);
        self.is_answered = false;
        Ok(())
    }

    /// The next message of the open request; `None` when that has ended.
    async fn hear(&mut self) -> Result<Option<Delivered>, BusError> {
        let Some(open) = &mut self.open else { return std::future::pending().await };
        let heard = open.next().await;
        match &heard {
            Some(_) => self.is_answered = true,
            // An answered request ends as well, and then there may be more.
            None => (self.open, self.is_quiet) = (None, !self.is_answered),
        }
        heard.transpose()
    }

    fn lost(&mut self) {
        (self.open, self.is_quiet) = (None, false);
        self.source.lost();
    }
}

/// Fills the free slots: each lane gives what it has, the urgent first, and one that had too little
/// is listened to. One lane alone may fill all slots by itself; of several each is listened to for
/// one message, so that what comes to all at once is at most one too many for each.
async fn fill(
    ears: &mut [Ear],
    mut free: usize,
    unsettled: Option<&Unsettled>,
    mut take: impl FnMut(Delivered),
) -> Result<(), BusError> {
    let several = ears.len() > 1;
    if free == 0 {
        // Until there is a free slot again, something may come.
        let idle = ears.iter_mut().filter(|ear| ear.open.is_none());
        idle.for_each(|ear| ear.is_quiet = false);
    }
    for ear in ears.iter_mut().filter(|ear| ear.open.is_none()) {
        if free == 0 {
            break;
        }
        if let Some(unsettled) = unsettled {
            ear.remember(unsettled).await;
        }
        let filled = async {
            if several && !std::mem::take(&mut ear.is_quiet) {
                free -= ear.draw(free, &mut take).await?;
            }
            if free > 0 {
                ear.listen(if several { 1 } else { free }).await?;
            }
            Ok(())
        };
        let filled = filled.await;
        if filled.is_err() {
            ear.lost();
            return filled;
        }
    }
    Ok(())
}

/// The next message of any lane that is listened to; `None` when a request has ended.
async fn hear(ears: &mut [Ear]) -> Result<Option<Delivered>, BusError> {
    let open = ears.iter_mut().filter(|ear| ear.open.is_some());
    let mut hearing: FuturesUnordered<_> = open
        .map(|ear| async {
            let heard = ear.hear().await;
            if heard.is_err() {
                ear.lost();
            }
            heard
        })
        .collect();
    match hearing.next().await {
        Some(heard) => heard,
        None => std::future::pending().await,
    }
}

/// Gives back what has come in the meantime. What is still on its way comes again to another
/// process, after `ack_wait`.
fn give_back(ears: &mut [Ear], mut take: impl FnMut(Delivered)) {
    for open in ears.iter_mut().filter_map(|ear| ear.open.as_mut()) {
        while let Some(Some(Ok(message))) = open.next().now_or_never() {
            take(message);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, sleep};

    /// How many still run, and how long was waited, where the handler number `n` of `count` ends
    /// after `n` times `millis`.
    async fn gathered(slots: usize, count: u32, millis: u64) -> (usize, Duration) {
        let mut work = JoinSet::new();
        for n in 0..count {
            work.spawn(sleep(Duration::from_millis(millis) * n));
        }
        let begun = Instant::now();
        gather(&mut work, slots).await;
        (work.len(), begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_is_nearly_full_waits_a_moment_for_a_quarter_of_its_slots() {
        assert_eq!(gathered(64, 63, 0).await, (48, Duration::ZERO));
        let (left, waited) = gathered(64, 63, 1).await;
        assert!((57..=58).contains(&left) && waited == GATHER, "{left} after {waited:?}");
        assert_eq!(gathered(64, 48, 1_000).await, (48, Duration::ZERO), "enough slots are free");
        assert_eq!(gathered(8, 7, 1_000).await, (7, Duration::ZERO), "a request for each does");
    }
}
