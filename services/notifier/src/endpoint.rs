//! One webhook at work: its own consumer, its own connections, its own slots, so that nothing it
//! does or fails to do is felt by another.

use crate::{
    Settings, dead_letter,
    delivery::{Answer, Sender, Unsent, judge},
    disable::{self, Disabler},
    filter,
    settle::{self, Step},
    streak::{self, Streak},
};
use hydrant_bus::{Bus, ConsumeOptions, Consumer, Delivery, Verdict, consume};
use hydrant_egress::EgressError;
use hydrant_proto::{DeliveryAttempt, DeliveryOutcome, Event};
use hydrant_rules::Webhook;
use hydrant_store::Store;
use hydrant_telemetry::metrics::{DeliveryOutcome as Counted, metrics};
use jiff::{SignedDuration, Timestamp};
use std::{fmt::Display, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// How long a delivery rests whose end could not be recorded, because the store or the bus was
/// away.
const REST: Duration = Duration::from_secs(60);
/// Attempts of the log that are read to learn how the endpoint has been doing.
const LOG: usize = 1_000;

/// How often a failing endpoint is looked for in that log.
const HEED_EVERY: Duration = Duration::from_secs(60);

/// One enabled webhook.
#[derive(Debug)]
pub struct Endpoint {
    sender: Sender,
    bus: Bus,
    store: Store,
    disabler: Disabler,
    settings: Settings,
    streak: Arc<Streak>,
    /// Raised once nothing more may be sent, until the resources say so everywhere.
    paused: watch::Sender<bool>,
}

/// What is known of an endpoint before it is served.
#[derive(Clone, Copy, Debug)]
pub enum Past {
    /// It was served before this process began: the delivery log tells how it did.
    Logged,
    /// It is new, or was changed or enabled by somebody: what it did before counts no more.
    None,
}

/// One attempt at a delivery; the first is number 1.
#[derive(Debug)]
pub struct Attempt {
    pub delivery: Delivery,
    pub number: u64,
}

/// What an attempt came to, once that is recorded.
#[derive(Clone, Copy, Debug)]
struct Settled {
    verdict: Verdict,
    outcome: DeliveryOutcome,
}

impl Endpoint {
    /// Fails when TLS cannot be set up.
    pub fn new(
        webhook: Webhook,
        bus: Bus,
        store: Store,
        disabler: Disabler,
        settings: Settings,
    ) -> Result<Self, EgressError> {
        let sender = Sender::new(webhook, settings.limits)?;
        let (streak, paused) = (Arc::default(), watch::Sender::new(false));
        Ok(Self { sender, bus, store, disabler, settings, streak, paused })
    }

    /// Delivers until `stop`, then finishes what is under way within the drain deadline.
    pub async fn serve(
        self: Arc<Self>,
        consumer: Consumer<Event>,
        past: Past,
        stop: CancellationToken,
    ) {
        if let Past::Logged = past
            && let Ok(log) = self.bus.delivery_log(self.name(), LOG).await
        {
            self.streak.resume(&log);
        }
        let options = ConsumeOptions {
            slots: self.settings.concurrency,
            paused: self.paused.subscribe(),
            shutdown: stop.clone(),
            drain: self.settings.drain,
        };
        let (store, streak, served) = (self.store.clone(), self.streak.clone(), stop.clone());
        let _shown = metrics().webhooks.failing_for(self.name(), move || {
            (!served.is_cancelled()).then(|| streak.length(Timestamp::now()))
        });
        let heeding = Arc::clone(&self);
        let handle = move |delivery| {
            let endpoint = Arc::clone(&self);
            async move { endpoint.deliver(delivery).await }
        };
        let reject = move |rejected| {
            let store = store.clone();
            async move { dead_letter::keep_malformed(&store, rejected).await }
        };
        tokio::join!(
            consume(consumer, options, handle, reject),
            stop.run_until_cancelled(heeding.heed_others()),
        );
    }

    /// While the endpoint fails here, takes up what others got delivered: with few events the next
    /// delivery may long be theirs.
    async fn heed_others(&self) {
        loop {
            tokio::time::sleep(HEED_EVERY).await;
            let Some(since) = self.streak.since() else { continue };
            match self.bus.delivery_log(self.name(), LOG).await {
                Ok(log) if streak::broken_since(&log, since) => self.streak.resume(&log),
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// One attempt from beginning to end. Runs in a span whose parent is the trace of the event.
    async fn deliver(&self, delivery: Delivery) -> Verdict {
        if !filter::wants(self.sender.webhook(), &delivery.message) {
            metrics().webhooks.attempted(self.name(), Counted::Skipped, Duration::ZERO);
            return Verdict::Obsolete;
        }
        let number = self.number(&delivery).await;
        let attempt = Attempt { delivery, number };
        let (began, clock) = (Timestamp::now(), Instant::now());
        let Delivery { message, traceparent, .. } = &attempt.delivery;
        let result = self.sender.attempt(message, traceparent.as_deref()).await;
        let took = clock.elapsed();
        let settled = self.settle(&attempt, &result).await;
        self.record(&attempt, &result, settled.outcome, began, took).await;
        settled.verdict
    }

    /// The how-manieth attempt this is: the one after the last that failed. Deliveries that were
    /// given back, or died with their process, are none.
    async fn number(&self, delivery: &Delivery) -> u64 {
        if delivery.deliveries <= 1 {
            return 1;
        }
        let last = self.bus.last_attempt(self.name(), &delivery.message.id).await;
        settle::number(
            delivery.deliveries,
            last.ok().flatten(),
            Timestamp::now().duration_since(delivery.published),
            self.settings.patience,
        )
    }

    async fn settle(&self, attempt: &Attempt, result: &Result<Answer, Unsent>) -> Settled {
        let now = Timestamp::now();
        match settle::step(judge(result), attempt.number, &self.settings.schedule) {
            Step::Done => {
                self.streak.end();
                Settled { verdict: Verdict::Done, outcome: DeliveryOutcome::Delivered }
            }
            Step::Again(pause) => {
                self.lose_patience(now).await;
                Settled::again(pause, now)
            }
            Step::GiveUp => {
                self.lose_patience(now).await;
                self.bury(attempt, result, now).await
            }
            Step::Disable => {
                self.stop_sending();
                match self.disabler.disable(self.name(), disable::gone(now)).await {
                    Ok(()) => self.bury(attempt, result, now).await,
                    Err(error) => self.not_recorded("disable the webhook", &error, now),
                }
            }
        }
    }

    /// Writes the dead letter; only then may the event leave the bus.
    async fn bury(
        &self,
        attempt: &Attempt,
        result: &Result<Answer, Unsent>,
        now: Timestamp,
    ) -> Settled {
        match dead_letter::keep(&self.store, self.name(), attempt, result, now).await {
            Ok(()) => Settled { verdict: Verdict::Dead, outcome: DeliveryOutcome::DeadLettered },
            Err(error) => self.not_recorded("write the dead letter", &error, now),
        }
    }

    fn not_recorded(&self, what: &'static str, error: &dyn Display, now: Timestamp) -> Settled {
        // Without the record the delivery stays, and so does the endpoint.
        self.paused.send_replace(false);
        tracing::error!(webhook = self.name(), %error, "cannot {what}; the delivery is tried again");
        Settled::again(REST, now)
    }

    /// Nothing more is pulled from here on; the resources follow.
    fn stop_sending(&self) {
        self.paused.send_replace(true);
    }

    /// Disables an endpoint that has failed at everything for days, in this process and others.
    async fn lose_patience(&self, now: Timestamp) {
        let Some(since) = self.streak.failed(now, self.settings.patience) else { return };
        match self.bus.delivery_log(self.name(), LOG).await {
            Ok(log) if streak::broken_since(&log, since) => return self.streak.resume(&log),
            Ok(_) => {}
            Err(_) => return,
        }
        self.stop_sending();
        if let Err(error) = self.disabler.disable(self.name(), disable::failing(since)).await {
            self.paused.send_replace(false);
            tracing::error!(webhook = self.name(), %error, "cannot disable the webhook yet");
        }
    }

    /// Counts and logs the attempt, also on the bus where people look for it.
    async fn record(
        &self,
        Attempt { delivery, number }: &Attempt,
        result: &Result<Answer, Unsent>,
        outcome: DeliveryOutcome,
        at: Timestamp,
        took: Duration,
    ) {
        let event = &delivery.message;
        let attempt = DeliveryAttempt {
            webhook: self.name().to_owned(),
            event_id: event.id.clone(),
            kind: event.kind,
            attempt: *number,
            at,
            status: result.as_ref().ok().map(|answer| answer.status.as_u16()),
            error: settle::complaint(result),
            duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            outcome,
        };
        count(&attempt, event.time, took);
        tell(&attempt);
        if let Err(error) = self.bus.log_delivery(&attempt).await {
            tracing::debug!(webhook = self.name(), %error, "attempt is missing in the delivery log");
        }
    }

    pub fn name(&self) -> &str {
        self.sender.webhook().name.as_str()
    }
}

impl Settled {
    fn again(pause: Duration, now: Timestamp) -> Self {
        let pause_there = SignedDuration::try_from(pause).unwrap_or(SignedDuration::MAX);
        let at = now.saturating_add(pause_there).unwrap_or(Timestamp::MAX);
        Self { verdict: Verdict::Later(pause), outcome: DeliveryOutcome::Retry { at } }
    }
}

fn count(attempt: &DeliveryAttempt, event_time: Timestamp, took: Duration) {
    let counted = match attempt.outcome {
        DeliveryOutcome::Delivered => Counted::Delivered,
        DeliveryOutcome::Retry { .. } => Counted::Retried,
        DeliveryOutcome::DeadLettered => Counted::DeadLettered,
    };
    metrics().webhooks.attempted(&attempt.webhook, counted, took);
    if attempt.outcome == DeliveryOutcome::Delivered {
        let lag = Duration::try_from(attempt.at.duration_since(event_time)).unwrap_or_default();
        metrics().webhooks.delivered_after(&attempt.webhook, lag + took);
    }
}

/// One line per attempt, readable alone; the span adds event and trace.
fn tell(attempt: &DeliveryAttempt) {
    let DeliveryAttempt { webhook, event_id, attempt: number, status, duration_ms, .. } = attempt;
    let error = attempt.error.as_deref().unwrap_or_default();
    match attempt.outcome {
        DeliveryOutcome::Delivered => tracing::info!(
            webhook,
            event.id = event_id,
            attempt = number,
            status,
            duration_ms,
            "event delivered"
        ),
        DeliveryOutcome::Retry { at } => tracing::warn!(
            webhook, event.id = event_id, attempt = number, status, duration_ms, error,
            next_attempt = %at, "delivery failed, will be tried again"
        ),
        DeliveryOutcome::DeadLettered => tracing::error!(
            webhook,
            event.id = event_id,
            attempt = number,
            status,
            duration_ms,
            error,
            "delivery given up, kept as a dead letter"
        ),
    }
}
