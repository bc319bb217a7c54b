//! One message from delivery to settlement: decode, run the handler under the sender's trace, keep
//! the server informed, and turn the verdict into an acknowledgement.

use crate::{
    Bus, BusError, Consumed, Received, Rejected, Verdict, headers, source::published,
    unsettled::Unsettled,
};
use async_nats::jetstream::{AckKind, Message as Delivered};
use futures::FutureExt;
use hydrant_proto::codec;
use hydrant_telemetry::{metrics, metrics::JobVerdict};
use std::{
    fmt::Display,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::{MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// Deliveries after which a panicking handler is not tried again.
const MOST_PANICS: u64 = 5;
/// How long a message rests whose handler panicked, or whose dead letter could not be written.
const REST: Duration = Duration::from_secs(30);

/// Settles the messages of one upstream or webhook.
pub(crate) struct Settler<H, R> {
    pub(crate) owner: String,
    /// Cancelled when handlers have to stop at once.
    pub(crate) stop: CancellationToken,
    /// `None` of a work queue, which keeps only what is not done and needs no telling.
    pub(crate) unsettled: Option<Unsettled>,
    bus: Bus,
    ack_wait: Duration,
    handle: H,
    reject: R,
}

/// What is to be told to the server, and to the metrics.
struct Settlement {
    ack: AckKind,
    label: JobVerdict,
}

impl Settlement {
    fn returned() -> Self {
        Self { ack: AckKind::Nak(None), label: JobVerdict::Returned }
    }

    fn rest() -> Self {
        Self { ack: AckKind::Nak(Some(REST)), label: JobVerdict::Later }
    }
}

impl From<Verdict> for Settlement {
    fn from(verdict: Verdict) -> Self {
        let (ack, label) = match verdict {
            Verdict::Done => (AckKind::Ack, JobVerdict::Done),
            Verdict::Obsolete => (AckKind::Ack, JobVerdict::Obsolete),
            Verdict::Later(delay) => (AckKind::Nak(Some(delay)), JobVerdict::Later),
            Verdict::Dead => (AckKind::Term, JobVerdict::Dead),
        };
        Self { ack, label }
    }
}

impl<H, R> Settler<H, R> {
    pub(crate) fn new(
        owner: String,
        bus: &Bus,
        unsettled: Option<Unsettled>,
        handle: H,
        reject: R,
    ) -> Self {
        Self {
            owner,
            stop: CancellationToken::new(),
            unsettled,
            bus: bus.clone(),
            ack_wait: bus.config().ack_wait,
            handle,
            reject,
        }
    }

    /// Sees one message through; one that came too late to be `wanted` is given back.
    pub(crate) async fn take<M, F, G, E>(self: Arc<Self>, delivered: Delivered, wanted: bool)
    where
        M: Consumed,
        H: Fn(Received<M>) -> F,
        F: Future<Output = Verdict>,
        R: Fn(Rejected) -> G,
        G: Future<Output = Result<(), E>>,
        E: Display,
    {
        if let Some(unsettled) = &self.unsettled {
            unsettled.begin(&delivered);
        }
        metrics().bus.consumed(M::STREAM);
        let settlement = match wanted {
            true => self.handle_delivered(&delivered).await,
            false => Settlement::returned(),
        };
        self.acknowledge(&delivered, &settlement).await;
    }

    async fn handle_delivered<M, F, G, E>(&self, delivered: &Delivered) -> Settlement
    where
        M: Consumed,
        H: Fn(Received<M>) -> F,
        F: Future<Output = Verdict>,
        R: Fn(Rejected) -> G,
        G: Future<Output = Result<(), E>>,
        E: Display,
    {
        let started = Instant::now();
        let message = match read::<M>(delivered) {
            Ok(message) => message,
            Err(reason) => return self.rejected::<M, G, E>(delivered, reason, started).await,
        };
        let span = message.span(&self.owner);
        headers::continue_trace(&span, delivered.headers.as_ref());
        M::began(&self.owner);
        let received = Received {
            message,
            deliveries: deliveries(delivered),
            published: published(delivered).unwrap_or_default(),
            traceparent: headers::traceparent(delivered.headers.as_ref()),
        };
        // Called inside, so that also what the handler does before its first await is traced and
        // cannot take the loop down.
        let handler = AssertUnwindSafe(async { (self.handle)(received).await });
        let handler = handler.catch_unwind().instrument(span);
        let settlement = match self.watched(delivered, handler).await {
            Some(Ok(verdict)) => verdict.into(),
            None => Settlement::returned(),
            Some(Err(panic)) => {
                let reason = format!("the handler panicked: {}", panic_text(&*panic));
                tracing::error!(owner = self.owner, subject = %delivered.subject, reason);
                if deliveries(delivered) >= MOST_PANICS {
                    return self.rejected::<M, G, E>(delivered, reason, started).await;
                }
                Settlement::rest()
            }
        };
        settled::<M>(&self.owner, settlement.label, started);
        settlement
    }

    /// Runs the handler and tells the server every third of `ack_wait` that it does. `None` when
    /// it had to stop first.
    async fn watched<T>(
        &self,
        delivered: &Delivered,
        handler: impl Future<Output = T>,
    ) -> Option<T> {
        let every = (self.ack_wait / 3).max(Duration::from_millis(10));
        let mut ticks = interval_at(tokio::time::Instant::now() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut handler = std::pin::pin!(handler);
        loop {
            tokio::select! {
                biased;
                result = &mut handler => return Some(result),
                () = self.stop.cancelled() => return None,
                // While disconnected it may not even fit into the client's queue.
                _ = ticks.tick() => {
                    let _ = timeout(every / 10, delivered.ack_with(AckKind::Progress)).await;
                }
            }
        }
    }

    /// Has a dead letter written; without one the message stays.
    async fn rejected<M, G, E>(
        &self,
        delivered: &Delivered,
        reason: String,
        started: Instant,
    ) -> Settlement
    where
        M: Consumed,
        R: Fn(Rejected) -> G,
        G: Future<Output = Result<(), E>>,
        E: Display,
    {
        tracing::warn!(owner = self.owner, subject = %delivered.subject, reason, "message refused");
        let recorded = (self.reject)(Rejected {
            subject: delivered.subject.to_string(),
            payload: delivered.payload.clone(),
            reason,
            deliveries: deliveries(delivered),
            published: published(delivered).unwrap_or_default(),
        });
        match self.watched(delivered, recorded).await {
            Some(Ok(())) => {
                settled::<M>(&self.owner, JobVerdict::Malformed, started);
                Settlement { ack: AckKind::Term, label: JobVerdict::Malformed }
            }
            Some(Err(error)) => {
                tracing::error!(subject = %delivered.subject, %error, "cannot write the dead letter");
                Settlement::rest()
            }
            None => Settlement::returned(),
        }
    }

    /// Settles and waits for the server to confirm. Unconfirmed, the message may come again, which
    /// a handler must bear anyway.
    async fn acknowledge(&self, delivered: &Delivered, settlement: &Settlement) {
        if let (AckKind::Ack | AckKind::Term, Some(unsettled)) = (settlement.ack, &self.unsettled) {
            unsettled.end(delivered);
        }
        let mut link = self.bus.link();
        let epoch = link.borrow().epoch;
        // The answer cannot come over another connection: no use in holding the slot for it.
        let broken = link.wait_for(|link| !link.up || link.epoch != epoch);
        let confirmed = tokio::select! {
            confirmed = self.bus.settle(delivered, settlement.ack) => confirmed,
            _ = broken => Err(BusError::Disconnected("the connection broke".to_owned())),
        };
        if let Err(error) = confirmed {
            tracing::warn!(
                owner = self.owner,
                subject = %delivered.subject,
                verdict = settlement.label.as_str(),
                %error,
                "the server did not confirm, so the message may come again"
            );
        }
    }
}

/// Counts what a message came to.
fn settled<M: Consumed>(owner: &str, verdict: JobVerdict, started: Instant) {
    M::settled(owner, verdict, started.elapsed());
    metrics().bus.processed(M::STREAM, verdict, started.elapsed());
}

fn read<M: Consumed>(delivered: &Delivered) -> Result<M, String> {
    let message: M = codec::decode(&delivered.payload).map_err(|error| error.to_string())?;
    if message.subject() != delivered.subject.as_str() {
        return Err(format!("the message belongs on subject {}", message.subject()));
    }
    Ok(message)
}

fn deliveries(delivered: &Delivered) -> u64 {
    delivered.info().ok().and_then(|info| info.delivered.try_into().ok()).unwrap_or(1)
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
