//! Manifests by tag: which digest a tag names now, and how sure that is.
//!
//! Inside the rule's freshness window the newest thing heard is served, without a word to the
//! upstream. After it the upstream is asked once, by HEAD, for all clients of the process, and
//! shortly. While it cannot tell, the newest thing heard is served, marked stale, for as long as
//! the rule allows. "The tag is gone" counts as "cannot tell": content that somebody runs is not
//! taken away because an upstream lost it; it ends with the rule's `stale_for`.
//!
//! The newest thing heard is the tag's record in storage, or an observation of this process that is
//! younger, because the hydration of what was observed is still under way. Once a manifest went out
//! to a client, no older one does: its bytes are in memory or staged in storage.

use crate::{
    answer::{Answer, Facts},
    asking::by_tag,
    error::{Failure, What},
    held::Held,
    manifest::{Found, Manifests, certain},
    memory::{Observation, Seen},
    place::Place,
    request::Read,
    rumours::Rumours,
};
use hydrant_proto::{Digest, Tag};
use hydrant_store::{Owner, TagRecord, Wanted};
use hydrant_telemetry::metrics::PullOutcome;
use hydrant_upstream::Head;
use jiff::Timestamp;
use std::{sync::Arc, time::Duration};

/// Clock differences between processes that are put up with.
const SKEW: Duration = Duration::from_secs(60);

/// What tags are served from.
pub struct Tags {
    pub manifests: Manifests,
    pub rumours: Rumours,
}

/// What is known of a tag before the upstream is asked.
struct Standing {
    /// The newest thing heard.
    newest: Option<Heard>,
    /// The record, when something newer was heard that no client has got yet.
    before: Option<Heard>,
    /// A customer deleted it; the upstream has no say.
    is_deleted: bool,
    /// Why the record could not be read.
    storage: Option<Failure>,
}

/// What a tag was heard to name.
#[derive(Clone)]
struct Heard {
    digest: Digest,
    /// When the upstream last said so.
    confirmed_at: Timestamp,
    word: Word,
}

/// Whose word it is.
#[derive(Clone)]
enum Word {
    /// Storage: the closure is durable.
    Record(Arc<Seen>),
    /// The upstream's, and not yet local under this tag.
    Observation(Arc<Observation>),
}

impl Tags {
    pub async fn by_tag(&self, place: &Place, tag: &Tag, read: Read) -> Result<Answer, Failure> {
        let standing = self.standing(place, tag).await;
        if standing.is_deleted {
            return Err(Failure::Missing(What::Manifest));
        }
        let served = match &standing.newest {
            None => self.unheard_of(place, tag, read).await,
            Some(newest) if newest.is_fresh(place) => self.serve(place, tag, newest, read).await,
            Some(newest) => self.checked(place, tag, newest, read).await,
        };
        match served {
            Ok(answer) => Ok(answer),
            Err(failure) => self.stale(place, tag, standing, failure, read).await,
        }
    }

    /// Reads the record, from memory when it was read a moment ago, and compares it with what was
    /// observed since.
    async fn standing(&self, place: &Place, tag: &Tag) -> Standing {
        let (seen, storage) = match self.record(place, tag).await {
            Ok(seen) => (seen, None),
            Err(failure) => (None, Some(failure)),
        };
        let deleted = seen.as_ref().filter(|seen| seen.record.deleted);
        let is_deleted = deleted.is_some_and(|seen| seen.record.owner == Owner::Push);
        let seen = seen.filter(|seen| !seen.record.deleted);
        let observed = self.manifests.memory.observation(&place.spot(tag));
        let (newest, before) = newest(seen, observed);
        Standing { newest, before, is_deleted, storage }
    }

    async fn record(&self, place: &Place, tag: &Tag) -> Result<Option<Arc<Seen>>, Failure> {
        let memory = &self.manifests.memory;
        let seen = memory.record(place.repository(), tag, self.rumours.are_heard());
        match self.manifests.origins.are_own(place).await {
            Ok(false) => return Ok(None),
            Err(failure) if !seen.as_ref().is_some_and(|seen| is_of(seen, place)) => {
                return Err(failure);
            }
            _ => {}
        }
        if seen.is_some() {
            return Ok(seen);
        }
        let shelf = &self.manifests.shelf;
        let found = shelf.ask(shelf.store.tag(place.repository(), tag)).await?;
        let seen = found.map(|(record, version)| Arc::new(Seen::now(record, version)));
        if let Some(seen) = &seen {
            memory.keep_record(place.repository(), tag, seen.clone());
        }
        Ok(seen)
    }

    /// A tag nobody here has heard of: HEAD is answered by HEAD, GET by GET.
    async fn unheard_of(&self, place: &Place, tag: &Tag, read: Read) -> Result<Answer, Failure> {
        if read == Read::Get {
            return self.fetch(place, tag).await;
        }
        let head = self.manifests.asking.head(place, &by_tag(tag)).await?;
        self.observe(place, tag, &head);
        Ok(Found::told(head).answer(true))
    }

    /// Asks the upstream what the tag names now, and serves that.
    async fn checked(
        &self,
        place: &Place,
        tag: &Tag,
        newest: &Heard,
        read: Read,
    ) -> Result<Answer, Failure> {
        let head = self.asked(place, tag).await?;
        let Some(digest) = head.digest.clone() else {
            // A registry that does not say; only the manifest itself does.
            return self.fetch(place, tag).await;
        };
        let observation = Observation::heard(digest, &head);
        if observation.digest == newest.digest {
            self.observe(place, tag, &head);
            self.rumours.confirm(place, tag, newest.seen());
            let confirmed = Heard { confirmed_at: observation.at, ..newest.clone() };
            return self.serve(place, tag, &confirmed, read).await;
        }
        tracing::info!(image.repository = %place.repository(), image.tag = %tag,
            from = %newest.digest, to = %observation.digest, "tag moved upstream");
        if read == Read::Head {
            self.observe(place, tag, &head);
        }
        self.serve(place, tag, &Heard::observed(Arc::new(observation)), read).await
    }

    /// The upstream's word on a tag. Its failure counts for a moment, so that a slow upstream does
    /// not make every client wait for the whole budget.
    async fn asked(&self, place: &Place, tag: &Tag) -> Result<Head, Failure> {
        let spot = place.spot(tag);
        if let Some(failure) = self.rumours.silence(&spot) {
            return Err(failure);
        }
        let head = self.manifests.asking.head(place, &by_tag(tag)).await;
        if let Err(failure) = &head {
            self.rumours.keep_silence(spot, failure);
        }
        head
    }

    /// Serves what the tag was heard to name.
    async fn serve(
        &self,
        place: &Place,
        tag: &Tag,
        heard: &Heard,
        read: Read,
    ) -> Result<Answer, Failure> {
        let found = match heard.facts_for(read) {
            Some(found) => found,
            None => self.manifests.find(place, &heard.digest, read).await?,
        };
        self.manifests.family.named(place.spot(&heard.digest), tag);
        let is_settled = found.outcome == PullOutcome::Hit && heard.seen().is_some();
        if !is_settled && let Some(held) = found.held.as_ref().filter(|_| read == Read::Get) {
            let observation = Observation::of(held, heard.confirmed_at);
            self.manifests.memory.observe(place.spot(tag), observation);
            self.manifests.missed(place, by_tag(tag), Wanted::Whole, held);
        }
        Ok(found.answer(true).aged(heard.age()))
    }

    /// Serves the newest thing heard although the upstream could not confirm or deliver it; or the
    /// one before, when no client has got the newest and nobody can have it now.
    async fn stale(
        &self,
        place: &Place,
        tag: &Tag,
        standing: Standing,
        failure: Failure,
        read: Read,
    ) -> Result<Answer, Failure> {
        for heard in standing.newest.iter().chain(&standing.before) {
            if heard.age() > place.route.rule.stale_for.0 {
                continue;
            }
            if let Some(found) = self.at_hand(place, heard, read).await {
                failure.log();
                self.manifests.family.named(place.spot(&heard.digest), tag);
                self.rumours.served_stale(place, tag, heard.seen(), &heard.digest, &failure);
                return Ok(found.answer(true).aged(heard.age()).stale(&failure));
            }
        }
        Err(certain(failure, standing.storage))
    }

    /// The manifest without a word to the upstream: visible, relayed a moment ago, or staged for
    /// its hydration. The tag in this repository named it, so staged bytes may be shown.
    async fn at_hand(&self, place: &Place, heard: &Heard, read: Read) -> Option<Found> {
        if let (Some(_), Some(found)) = (heard.seen(), heard.facts_for(read)) {
            return Some(found);
        }
        let (manifests, spot) = (&self.manifests, place.spot(&heard.digest));
        if let Ok(Some(held)) = manifests.local(place, &spot).await {
            return Some(Found::of(held, PullOutcome::Hit));
        }
        if let Some(remembered) = manifests.memory.manifest(&spot) {
            return Some(Found::of(remembered.held, PullOutcome::Joined));
        }
        let shelf = &manifests.shelf;
        let staged = shelf.ask(shelf.store.staged_manifest(&heard.digest)).await.ok()??;
        let (held, _) = Held::local(heard.digest.clone(), staged)?;
        Some(Found::of(Arc::new(held), PullOutcome::Joined))
    }

    /// Fetches what the tag names now.
    async fn fetch(&self, place: &Place, tag: &Tag) -> Result<Answer, Failure> {
        let found = self.manifests.fetch(place, &by_tag(tag)).await?;
        if let Some(held) = &found.held {
            self.manifests.family.named(place.spot(&held.digest), tag);
            self.manifests.missed(place, by_tag(tag), Wanted::Whole, held);
        }
        Ok(found.answer(true))
    }

    /// A client is told what the tag names, and will ask for that under its digest.
    fn observe(&self, place: &Place, tag: &Tag, head: &Head) {
        if let Some(digest) = &head.digest {
            let observation = Observation::heard(digest.clone(), head);
            self.manifests.memory.observe(place.spot(tag), observation);
            self.manifests.family.named(place.spot(digest), tag);
        }
    }
}

/// Whether a record was made or confirmed under the rule as it is.
fn is_of(seen: &Seen, place: &Place) -> bool {
    seen.record.generation.as_deref() == Some(place.route.generation.as_str())
}

/// The younger of the record and the observation, and the record when it is older than something
/// nobody has got yet. There is nothing younger than a customer's push.
fn newest(
    seen: Option<Arc<Seen>>,
    observed: Option<Arc<Observation>>,
) -> (Option<Heard>, Option<Heard>) {
    let (seen, observed) = match (seen, observed) {
        (None, observed) => return (observed.map(Heard::observed), None),
        (Some(seen), None) => return (Some(Heard::recorded(seen)), None),
        (Some(seen), Some(observed)) => (seen, observed),
    };
    let recorded = Heard::recorded(seen);
    if recorded.is_pushed() || recorded.confirmed_at >= observed.at {
        return (Some(recorded), None);
    }
    if recorded.digest == observed.digest {
        return (Some(Heard { confirmed_at: observed.at, ..recorded }), None);
    }
    let before = (!observed.is_served).then_some(recorded);
    (Some(Heard::observed(observed)), before)
}

impl Heard {
    fn recorded(seen: Arc<Seen>) -> Self {
        let TagRecord { digest, confirmed_at, .. } = &seen.record;
        Self { digest: digest.clone(), confirmed_at: *confirmed_at, word: Word::Record(seen) }
    }

    fn observed(observed: Arc<Observation>) -> Self {
        let (digest, confirmed_at) = (observed.digest.clone(), observed.at);
        Self { digest, confirmed_at, word: Word::Observation(observed) }
    }

    /// The record it stands in.
    fn seen(&self) -> Option<&Arc<Seen>> {
        match &self.word {
            Word::Record(seen) => Some(seen),
            Word::Observation(_) => None,
        }
    }

    fn is_pushed(&self) -> bool {
        self.seen().is_some_and(|seen| seen.record.owner == Owner::Push)
    }

    /// Whether it may be served without asking. A record of another generation was made under
    /// other terms, so the upstream's word from then does not count.
    fn is_fresh(&self, place: &Place) -> bool {
        let other_terms = self.seen().is_some_and(|seen| {
            !is_of(seen, place) && seen.record.confirmed_at == self.confirmed_at
        });
        let window = place.route.rule.fresh_for.0;
        self.is_pushed() || (!other_terms && is_within(self.confirmed_at, window, Timestamp::now()))
    }

    fn age(&self) -> Duration {
        Timestamp::now().duration_since(self.confirmed_at).try_into().unwrap_or_default()
    }

    /// HEAD needs no more than was heard.
    fn facts_for(&self, read: Read) -> Option<Found> {
        if read == Read::Get {
            return None;
        }
        let (media_type, size, outcome) = match &self.word {
            Word::Record(seen) => {
                (Some(seen.record.media_type), Some(seen.record.size), PullOutcome::Hit)
            }
            Word::Observation(observed) => {
                (observed.media_type, observed.size, PullOutcome::Joined)
            }
        };
        let facts = Facts { digest: Some(self.digest.clone()), media_type, size };
        Some(Found { facts, held: None, outcome })
    }
}

/// Whether `then` is less than `window` before `now`. What lies far in the future was written by a
/// clock that is wrong, and is not relied on.
pub fn is_within(then: Timestamp, window: Duration, now: Timestamp) -> bool {
    match Duration::try_from(now.duration_since(then)) {
        Ok(age) => age < window,
        Err(_) => then.duration_since(now).unsigned_abs() < SKEW && !window.is_zero(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hydrant_proto::MediaType;
    use hydrant_store::Store;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// Records as storage gives them; only storage makes versions.
    async fn record(of: &str, confirmed: i64, owner: Owner) -> Arc<Seen> {
        let digest = Digest::of(of.as_bytes());
        let record = TagRecord::new(owner, digest, MediaType::OciManifest, 1, at(confirmed));
        let (store, repository) = (Store::in_memory(), "lab/app".parse().unwrap());
        let tag = "1".parse().unwrap();
        store.put_tag(&repository, &tag, record, None).await.unwrap();
        let (record, version) = store.tag(&repository, &tag).await.unwrap().unwrap();
        Arc::new(Seen::now(record, version))
    }

    fn observation(of: &str, second: i64, is_served: bool) -> Arc<Observation> {
        let digest = Digest::of(of.as_bytes());
        Arc::new(Observation { digest, media_type: None, size: None, at: at(second), is_served })
    }

    #[tokio::test]
    async fn a_tag_never_goes_back() {
        let cache = Owner::Cache;
        for (what, seen, observed, newest_is, before_is) in [
            ("nothing", None, None, None, None),
            ("record only", Some(record("a", 5, cache).await), None, Some("a"), None),
            ("observation only", None, Some(observation("b", 5, false)), Some("b"), None),
            (
                "younger observation, with a client",
                Some(record("a", 5, cache).await),
                Some(observation("b", 6, true)),
                Some("b"),
                None,
            ),
            (
                "younger observation, only heard of",
                Some(record("a", 5, cache).await),
                Some(observation("b", 6, false)),
                Some("b"),
                Some("a"),
            ),
            (
                "younger record",
                Some(record("a", 7, cache).await),
                Some(observation("b", 6, true)),
                Some("a"),
                None,
            ),
            (
                "a push has no younger",
                Some(record("a", 1, Owner::Push).await),
                Some(observation("b", 6, true)),
                Some("a"),
                None,
            ),
        ] {
            let (newest, before) = newest(seen, observed);
            let digest = |text: &str| Digest::of(text.as_bytes());
            assert_eq!(newest.map(|heard| heard.digest), newest_is.map(digest), "{what}");
            assert_eq!(before.map(|heard| heard.digest), before_is.map(digest), "{what}");
        }
    }

    #[tokio::test]
    async fn the_upstreams_last_word_on_a_record_counts() {
        let seen = record("a", 5, Owner::Cache).await;
        let (newest, _) = newest(Some(seen), Some(observation("a", 9, false)));
        let newest = newest.unwrap();
        assert_eq!(newest.confirmed_at, at(9));
        assert!(newest.seen().is_some());
    }

    #[test]
    fn a_window_ends_and_wrong_clocks_open_none() {
        let window = Duration::from_secs(300);
        for (then, expected) in
            [(1000, true), (701, true), (700, false), (1059, true), (1060, false)]
        {
            assert_eq!(is_within(at(then), window, at(1000)), expected, "{then}");
        }
        assert!(!is_within(at(1000), Duration::ZERO, at(1000)));
        assert!(!is_within(at(1001), Duration::ZERO, at(1000)));
    }
}
