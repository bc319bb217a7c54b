//! One upstream read per manifest: whoever asks first fetches it and leaves it on the bus for a
//! while, since manifests are small. Those who ask meanwhile wait for it. A client does not wait for
//! what is asked in the background: in its own process that becomes urgent, and from another one the
//! question is taken over.

use crate::{
    error::{FlightError, is_of_the_upstream},
    flights::Flights,
    question::Question,
    turn::LEASE,
};
use bytes::Bytes;
use hydrant_bus::{Claimed, Entry, SharedState};
use hydrant_proto::{
    Digest, ManifestRecord, MediaType, Reference, RepositoryName, codec, subject::StateKey,
};
use hydrant_upstream::{Client, FetchedManifest, Priority, UpstreamError, Urgency};
use jiff::Timestamp;
use std::{future::pending, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// Longest time a manifest is left for others.
const LONGEST: Duration = Duration::from_secs(60);
/// How long a failure of the upstream is.
const FAILED: Duration = Duration::from_secs(1);
/// Most bytes of a manifest left on the bus itself, whose memory for all shared state is 64 MiB.
const INLINE: usize = 32 * 1024;
/// How long a client waits for what another process asks in the background: when it need not queue, an
/// upstream rarely takes longer.
const BEHIND: Duration = Duration::from_millis(500);
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Where a manifest can be had.
#[derive(Clone, Debug)]
pub struct ManifestSource {
    pub client: Arc<Client>,
    pub upstream_repository: RepositoryName,
    pub reference: Reference,
    /// Fingerprint of where the rule leads (`Route::origin`): who asks the same upstream for the
    /// same repository with the same credential may share the answer.
    pub origin: Arc<str>,
    pub priority: Priority,
    /// How old an answer to somebody else may be. Zero: only one to a question that was still open
    /// when this one was asked.
    pub remember: Duration,
}

impl ManifestSource {
    fn key(&self) -> StateKey {
        let Self { origin, upstream_repository, reference, .. } = self;
        let text = format!("{origin}\n{upstream_repository}\n{reference}");
        StateKey::Manifest(Digest::of(text.as_bytes()).hex().to_owned())
    }

    async fn fetch(&self, urgency: impl Into<Urgency>) -> Result<Sourced, UpstreamError> {
        let asked_at = Timestamp::now();
        let asked = self.client.manifest(&self.upstream_repository, &self.reference, urgency);
        Ok(Sourced { manifest: asked.await?, asked_at })
    }

    /// The server counts whole seconds.
    fn kept_for(&self) -> Duration {
        self.remember.clamp(Duration::from_secs(1), LONGEST)
    }
}

/// A manifest, and how old the upstream's word on it is.
#[derive(Clone, Debug)]
pub struct Sourced {
    pub manifest: FetchedManifest,
    /// Just before the upstream was asked, maybe by another process and by its clock.
    pub asked_at: Timestamp,
}

impl Sourced {
    fn is_within(&self, window: Duration) -> bool {
        let age = Timestamp::now().duration_since(self.asked_at);
        // One from a clock ahead of ours is new.
        Duration::try_from(age).unwrap_or_default() < window
    }
}

/// What another process did.
enum Word {
    Asking(Priority),
    Brought(Sourced),
    Failed(FlightError),
    /// Nothing that helps.
    Unclear,
}

/// How a wait for another process's answer ended.
enum Waited {
    /// The entry is another one, or gone, or nobody works on it.
    Over,
    /// It took too long; the entry as it was read last.
    Enough(Entry),
}

impl Flights {
    /// The manifest, verified, by one GET in the whole cluster, however many ask at the same time.
    pub async fn manifest(&self, source: &ManifestSource) -> Result<Sourced, FlightError> {
        let priority = source.priority;
        let Some(state) = self.0.turns.state() else { return Ok(source.fetch(priority).await?) };
        let key = source.key();
        let (mut waited, mut former) = (false, None);
        loop {
            let takes_over = former.is_some();
            let entry = match self.claim(state, &key, former.take(), priority).await {
                Some(Claimed::Mine(question)) => {
                    match self.fetch_for_all(source, state, &key, question).await? {
                        Some(found) => return Ok(found),
                        // Who took it over asked after this did.
                        None => waited = true,
                    }
                    continue;
                }
                Some(Claimed::Taken(entry)) => entry,
                None if takes_over => {
                    waited = false;
                    continue;
                }
                None => return Ok(source.fetch(priority).await?),
            };
            match self.word(&entry, source).await {
                Word::Asking(by) if !self.0.questions.is_stray(state, &key, &entry) => {
                    // Our own has become a client's by our asking for it.
                    let is_behind = by == Priority::Background
                        && priority == Priority::Interactive
                        && entry.owner != state.owner();
                    let longest = is_behind.then_some(BEHIND);
                    match self.wait(state, &key, entry, longest).await {
                        Waited::Over => waited = true,
                        Waited::Enough(entry) => former = Some(entry),
                    }
                }
                Word::Brought(found) if waited || found.is_within(source.remember) => {
                    return Ok(found);
                }
                Word::Failed(error) if waited => return Err(error),
                Word::Unclear => return Ok(source.fetch(priority).await?),
                Word::Asking(_) | Word::Brought(_) | Word::Failed(_) => former = Some(entry),
            }
        }
    }

    /// Claims the key, in place of `former` where that is given; `None` when the bus does not say
    /// in time whose it is.
    async fn claim(
        &self,
        state: &SharedState,
        key: &StateKey,
        former: Option<Entry>,
        priority: Priority,
    ) -> Option<Claimed<Question>> {
        let (asked, questions) = (asked(priority), &self.0.questions);
        let claim = questions.claim(state, key.clone(), asked, former, LEASE, priority);
        self.0.turns.in_time(self.0.tasks.spawn(claim)).await?.ok()?.ok()
    }

    /// Waits for what comes of the entry, no longer than `longest`.
    async fn wait(
        &self,
        state: &SharedState,
        key: &StateKey,
        mut entry: Entry,
        longest: Option<Duration>,
    ) -> Waited {
        let (began, mut pause) = (Instant::now(), FIRST_PAUSE);
        while !self.0.questions.is_stray(state, key, &entry) {
            if longest.is_some_and(|longest| began.elapsed() >= longest) {
                return Waited::Enough(entry);
            }
            sleep(pause).await;
            match state.get(key).await {
                Ok(Some(now)) if is_same(&now, &entry) => entry = now,
                // Without a bus the next claim says what to do.
                Ok(_) | Err(_) => return Waited::Over,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Waited::Over
    }

    /// `None` when a client of another process asks in our place.
    async fn fetch_for_all(
        &self,
        source: &ManifestSource,
        state: &SharedState,
        key: &StateKey,
        question: Question,
    ) -> Result<Option<Sourced>, FlightError> {
        let fetched = tokio::select! {
            fetched = source.fetch(question.urgency().clone()) => fetched,
            () = taken_over(state, key, &question) => return Ok(None),
        };
        let left = match &fetched {
            Ok(found) => Some((brought(found), source.kept_for())),
            // What is kept for clients may be there for who waits.
            Err(UpstreamError::Reserved { .. }) => None,
            Err(error) if is_of_the_upstream(error.class()) => Some((failed(error), FAILED)),
            // It may be ours alone; the next one asks.
            Err(_) => None,
        };
        if let Some((record, kept_for)) = left {
            let flights = self.clone();
            let manifest = fetched.as_ref().ok().map(|found| found.manifest.clone());
            self.0.tasks.spawn(async move {
                flights.leave_for_others(question, record, manifest, kept_for).await
            });
        }
        Ok(Some(fetched?))
    }

    /// Off the path of the answer. What cannot be left is asked for again.
    async fn leave_for_others(
        &self,
        question: Question,
        record: ManifestRecord,
        manifest: Option<FetchedManifest>,
        kept_for: Duration,
    ) {
        if let (ManifestRecord::Brought { bytes: None, .. }, Some(manifest)) = (&record, manifest) {
            let store = self.0.keeper.store();
            if store.stage_manifest(&manifest.digest, manifest.bytes).await.is_err() {
                return;
            }
        }
        if let Err(error) = question.answer(codec::encode(&record).into(), kept_for).await {
            tracing::debug!(%error, "manifest not left for others");
        }
    }

    async fn word(&self, entry: &Entry, source: &ManifestSource) -> Word {
        match codec::decode::<ManifestRecord>(&entry.value) {
            Ok(ManifestRecord::Asked) => Word::Asking(Priority::Interactive),
            Ok(ManifestRecord::Ordered) => Word::Asking(Priority::Background),
            Ok(ManifestRecord::Brought { digest, media_type, asked_at, bytes }) => {
                let bytes = match bytes {
                    Some(bytes) => Some(Bytes::from(bytes)),
                    None => self.0.keeper.store().staged_manifest(&digest).await.ok().flatten(),
                };
                let manifest = bytes.and_then(|bytes| checked(digest, media_type, bytes, source));
                let found = manifest.map(|manifest| Sourced { manifest, asked_at });
                found.map_or(Word::Unclear, Word::Brought)
            }
            Ok(ManifestRecord::Failed { class, reason, retry_after_seconds }) => {
                let retry_after = retry_after_seconds.map(Duration::from_secs);
                Word::Failed(FlightError::Elsewhere { class, retry_after, reason })
            }
            // Another version's.
            Err(_) => Word::Unclear,
        }
    }
}

/// Ends when a client of another process has taken the question over while none asks here. Tells the
/// others when one does.
async fn taken_over(state: &SharedState, key: &StateKey, question: &Question) {
    if question.urgency().now() == Priority::Interactive {
        return pending().await;
    }
    let taken = async {
        loop {
            // Sooner than the answer to a client may be gone again.
            sleep(BEHIND / 2).await;
            if let Ok(Some(entry)) = state.get(key).await
                && entry.owner != state.owner()
            {
                return;
            }
        }
    };
    tokio::select! {
        () = taken => {}
        () = question.urgency().raised() => {
            question.say(asked(Priority::Interactive));
            pending().await
        }
    }
}

fn asked(priority: Priority) -> Bytes {
    let record = match priority {
        Priority::Interactive => ManifestRecord::Asked,
        Priority::Background => ManifestRecord::Ordered,
    };
    codec::encode(&record).into()
}

/// Whether it is what was asked for is not taken on trust.
fn checked(
    digest: Digest,
    media_type: MediaType,
    bytes: Bytes,
    source: &ManifestSource,
) -> Option<FetchedManifest> {
    let named = match &source.reference {
        Reference::Digest(named) => *named == digest,
        Reference::Tag(_) => true,
    };
    let right = named && digest.matches(&bytes);
    right.then_some(FetchedManifest { digest, media_type, bytes })
}

fn brought(Sourced { manifest, asked_at }: &Sourced) -> ManifestRecord {
    let inline = manifest.bytes.len() <= INLINE;
    ManifestRecord::Brought {
        digest: manifest.digest.clone(),
        media_type: manifest.media_type,
        asked_at: *asked_at,
        bytes: inline.then(|| manifest.bytes.to_vec()),
    }
}

fn failed(error: &UpstreamError) -> ManifestRecord {
    ManifestRecord::Failed {
        class: error.class(),
        reason: error.to_string(),
        retry_after_seconds: error.retry_after().map(|pause| pause.as_secs()),
    }
}

/// A lease that is only kept alive says the same under a new revision.
fn is_same(one: &Entry, other: &Entry) -> bool {
    (&one.owner, &one.value) == (&other.owner, &other.value)
}
