//! One importer process: it takes a job, makes an attempt, and says what becomes of the job.

use crate::{
    announce,
    error::{ImportError, Remedy},
    import::import,
    progress::Progress,
};
use hydrant_boot::{ResourceFeed, Schedule};
use hydrant_bus::{Bus, Job, Rejected, Verdict};
use hydrant_flight::Flights;
use hydrant_proto::{
    Event, FailureClass, HydrationRequested, codec,
    state::{JobPhase, JobState},
    subject,
};
use hydrant_rules::Table;
use hydrant_store::{DeadLetter, DeadLetterId, GivenUp, Store, StoreError};
use hydrant_telemetry::metrics::{JobVerdict, metrics};
use hydrant_upstream::Upstreams;
use jiff::Timestamp;
use std::{sync::Arc, time::Duration};

/// Deliveries of a job of another generation before it is dropped, and the pause between them. Who
/// published it may have heard of a change that this process hears of within ten seconds; with the
/// job its misses would be lost.
const NEWS_DELIVERIES: u64 = 3;
const NEWS_PAUSE: Duration = Duration::from_secs(5);

/// How the last attempt was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// Its verdict was told, as far as is known.
    Told,
    /// It began and came to no verdict: its process was killed, stopped before it was done, or was
    /// cut off.
    Running,
}

/// What every attempt uses. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Worker {
    pub bus: Bus,
    pub store: Store,
    pub flights: Flights,
    pub upstreams: Upstreams,
    pub feed: ResourceFeed,
    pub schedule: Schedule,
    /// How long bytes may stand still before a worker is needed elsewhere; the flight goes on.
    pub patience: Duration,
}

impl Worker {
    pub fn table(&self) -> Arc<Table> {
        self.feed.current()
    }

    /// Makes one attempt at `job`.
    pub async fn handle(&self, job: Job) -> Verdict {
        let request = &job.message;
        let (failed, left) = self.left(&job).await;
        let progress = Progress::new(self.bus.job_states(), request, failed);
        if left == Left::Running {
            return self.lost(progress.state(), failed).await;
        }
        if job.deliveries > 1 {
            // Should it end with the process, its next delivery shows that it began.
            self.tell(progress.state()).await;
        }
        let outcome = tokio::select! {
            outcome = import(self, request, &progress) => outcome,
            () = progress.tell_regularly() => unreachable!("progress is told for ever"),
        };
        let state = progress.state();
        match outcome {
            Ok(()) => self.done(state).await,
            Err(ImportError::Fenced(reason)) if job.deliveries <= NEWS_DELIVERIES => {
                let reason = Some(format!("{reason}, or its change is not known here yet"));
                self.wait(JobState { reason, ..state }, NEWS_PAUSE).await
            }
            Err(error) => self.failed(state, failed, &error).await,
        }
    }

    /// Attempts that failed so far, and how the last one was left: none when it is delivered for the
    /// first time. When the bus lost them, its delivery count is the guess, of which little is
    /// believed: most deliveries of a job that waits for a sick upstream fail nothing, and no job
    /// is given up by a guess.
    async fn left(&self, job: &Job) -> (u32, Left) {
        if job.deliveries <= 1 {
            return (0, Left::Told);
        }
        match self.bus.job_states().get(&job.id()).await {
            Ok(Some(state)) if state.phase == JobPhase::Running => (state.attempts, Left::Running),
            Ok(Some(state)) if !state.phase.is_final() => (state.attempts, Left::Told),
            Ok(Some(_)) => (0, Left::Told),
            _ => (1, Left::Told),
        }
    }

    /// Counts an attempt of which nobody said how it ended. A job that kills its process would
    /// otherwise be tried for ever; the jitter of the schedule keeps it from taking the same
    /// neighbours along each time.
    async fn lost(&self, state: JobState, failed: u32) -> Verdict {
        let error = ImportError::Lost;
        let (class, reason) = (Some(error.class()), Some(error.to_string()));
        let state = JobState { attempts: failed + 1, class, reason, ..state };
        match error.remedy() {
            Remedy::Retry { attempts } if state.attempts >= attempts => {
                self.dead_letter(state).await
            }
            _ => self.wait(state, self.schedule.delay(failed)).await,
        }
    }

    async fn done(&self, state: JobState) -> Verdict {
        tracing::info!(job.id = %state.id(), image.repository = %state.job.repository,
            image.reference = %state.job.reference, size_bytes = state.bytes_total, "image hydrated");
        metrics().hydrations.ended(&state.job.rule, JobVerdict::Done);
        let took = Timestamp::now().duration_since(state.job.requested_at);
        metrics().hydrations.local_after(&state.job.upstream, took.try_into().unwrap_or_default());
        let done = JobState { phase: JobPhase::Done, class: None, reason: None, ..state };
        if let Err(error) = self.bus.job_states().tell(&done).await {
            tracing::debug!(job.id = %done.id(), %error, "job state not told");
        }
        Verdict::Done
    }

    async fn failed(&self, state: JobState, failed: u32, error: &ImportError) -> Verdict {
        let state =
            JobState { class: Some(error.class()), reason: Some(error.to_string()), ..state };
        if state.class == Some(FailureClass::UpstreamAuth) {
            self.mention(&announce::credential_rejected(&state)).await;
        }
        match error.remedy() {
            Remedy::Obsolete => self.obsolete(state).await,
            Remedy::Wait(delay) => self.wait(state, delay).await,
            Remedy::Retry { attempts } if failed + 1 < attempts => {
                let delay = self.schedule.delay(failed);
                let state = JobState { attempts: failed + 1, ..state };
                self.mention(&announce::failed(&state)).await;
                self.wait(state, delay).await
            }
            Remedy::Retry { .. } | Remedy::DeadLetter => {
                self.dead_letter(JobState { attempts: failed + 1, ..state }).await
            }
        }
    }

    async fn obsolete(&self, state: JobState) -> Verdict {
        tracing::info!(job.id = %state.id(), reason = state.reason, "job is obsolete");
        // Its wishes are obsolete with it; another generation's job has another id.
        if let Err(error) = self.forget(&state.job).await {
            tracing::warn!(job.id = %state.id(), %error, "misses of an obsolete job not forgotten");
        }
        self.tell(JobState { phase: JobPhase::Obsolete, ..state }).await;
        Verdict::Obsolete
    }

    async fn wait(&self, state: JobState, delay: Duration) -> Verdict {
        tracing::warn!(job.id = %state.id(), image.repository = %state.job.repository,
            image.reference = %state.job.reference, upstream = state.job.upstream,
            class = state.class.map(|class| class.as_str()), reason = state.reason,
            attempts = state.attempts, delay_ms = delay.as_millis(), "hydration postponed");
        self.tell(JobState { phase: JobPhase::Waiting, ..state }).await;
        Verdict::Later(delay)
    }

    /// Records the dead letter, tells of it, then lets the queue forget the job. When the record
    /// cannot be written the job stays.
    async fn dead_letter(&self, state: JobState) -> Verdict {
        let (id, class) = (state.id(), state.class);
        tracing::error!(job.id = %id, image.repository = %state.job.repository,
            image.reference = %state.job.reference, upstream = state.job.upstream,
            class = class.map(|class| class.as_str()), reason = state.reason, "hydration given up");
        let recorded = async {
            self.store.put_dead_letter(&DeadLetter::of_job(&state)).await?;
            self.bus.publish_event(&announce::dead_lettered(&state)).await?;
            self.forget(&state.job).await
        };
        match recorded.await {
            Ok(()) => {
                metrics().hydrations.ended(&state.job.rule, JobVerdict::Dead);
                self.tell(JobState { phase: JobPhase::DeadLettered, ..state }).await;
                Verdict::Dead
            }
            Err(error) => {
                let delay = match error.remedy() {
                    Remedy::Wait(delay) => delay,
                    _ => Duration::from_secs(5),
                };
                self.wait(state, delay).await
            }
        }
    }

    /// Keeps a message that cannot be handled where people find it. A job that can be read, and
    /// made its handler panic, is given up with its misses: the sweep would only bring it back.
    pub async fn reject(&self, rejected: Rejected) -> Result<(), StoreError> {
        let Rejected { subject, payload, reason, deliveries, .. } = rejected;
        tracing::error!(subject, reason, "job cannot be handled");
        let request = readable(&subject, &payload);
        let (id, given_up) = match request.clone() {
            Some(request) => (DeadLetterId::of_job(&request.id()), GivenUp::Job { request }),
            None => (
                DeadLetterId::of_malformed(&subject, &payload),
                GivenUp::malformed(&subject, &payload),
            ),
        };
        let (attempts, at) = (deliveries, Timestamp::now());
        let letter = DeadLetter { id, given_up, class: None, reason, attempts, at };
        self.store.put_dead_letter(&letter).await?;
        match request {
            Some(request) => {
                let misses = self.store.misses(&request.id()).await?;
                self.store.forget_misses(&misses).await
            }
            None => Ok(()),
        }
    }

    async fn forget(&self, request: &HydrationRequested) -> Result<(), ImportError> {
        let misses = self.store.misses(&request.id()).await?;
        Ok(self.store.forget_misses(&misses).await?)
    }

    /// Tells of something that will be told again if it matters; when the bus is away it is not.
    pub async fn mention(&self, event: &Event) {
        if let Err(error) = self.bus.publish_event(event).await {
            tracing::debug!(kind = %event.kind, %error, "event not published");
        }
    }

    /// A lost state costs only a progress bar.
    async fn tell(&self, state: JobState) {
        let state = JobState { updated_at: Timestamp::now(), ..state };
        if let Err(error) = self.bus.job_states().put(&state).await {
            tracing::debug!(job.id = %state.id(), %error, "job state not told");
        }
    }
}

/// The job, if the message is one and came under its own key.
fn readable(subject: &str, payload: &[u8]) -> Option<HydrationRequested> {
    let request: HydrationRequested = codec::decode(payload).ok()?;
    (subject::job(&request) == subject).then_some(request)
}

#[cfg(test)]
mod tests;
