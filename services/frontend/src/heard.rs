//! What a tag was heard to name, by whom, and what follows from its age. Pure.

use crate::{
    answer::Facts,
    manifest::Found,
    memory::{Observation, Seen},
    place::Place,
    request::Read,
};
use hydrant_proto::{Digest, Tag};
use hydrant_rules::{Due, Freshness, WhenGone};
use hydrant_store::{Owner, TagRecord};
use hydrant_telemetry::metrics::PullOutcome;
use jiff::Timestamp;
use std::{sync::Arc, time::Duration};

/// Clock differences between processes that are put up with.
const SKEW: Duration = Duration::from_secs(60);

/// What a tag was heard to name.
#[derive(Clone)]
pub struct Heard {
    pub digest: Digest,
    /// When the upstream was last asked and said so.
    pub confirmed_at: Timestamp,
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

/// Whether a record was made or confirmed under the rule as it is.
pub fn is_of(seen: &Seen, place: &Place) -> bool {
    seen.record.generation.as_deref() == Some(place.route.generation.as_str())
}

/// The younger of the record and the observation, and the record when it is older than something
/// nobody has got yet. There is nothing younger than a customer's push or an operator's freeze.
pub fn newest(
    seen: Option<Arc<Seen>>,
    observed: Option<Arc<Observation>>,
) -> (Option<Heard>, Option<Heard>) {
    let (seen, observed) = match (seen, observed) {
        (None, observed) => return (observed.map(Heard::observed), None),
        (Some(seen), None) => return (Some(Heard::recorded(seen)), None),
        (Some(seen), Some(observed)) => (seen, observed),
    };
    let recorded = Heard::recorded(seen);
    if recorded.is_settled() || recorded.is_since(observed.at) {
        return (Some(recorded), None);
    }
    if recorded.digest == observed.digest {
        return (Some(Heard { confirmed_at: observed.at, ..recorded }), None);
    }
    let before = (!observed.is_served).then_some(recorded);
    (Some(Heard::observed(observed)), before)
}

impl Heard {
    pub fn recorded(seen: Arc<Seen>) -> Self {
        let TagRecord { digest, confirmed_at, .. } = &seen.record;
        Self { digest: digest.clone(), confirmed_at: *confirmed_at, word: Word::Record(seen) }
    }

    pub fn observed(observed: Arc<Observation>) -> Self {
        let (digest, confirmed_at) = (observed.digest.clone(), observed.at);
        Self { digest, confirmed_at, word: Word::Observation(observed) }
    }

    /// The same, said again.
    pub fn confirmed(self, at: Timestamp) -> Self {
        Self { confirmed_at: at, ..self }
    }

    /// Whether the upstream said so at `then` or later, as far as that can be told: what lies far in
    /// the future was written by a clock that is wrong, and is younger than nothing.
    pub fn is_since(&self, then: Timestamp) -> bool {
        self.confirmed_at >= then && self.confirmed_at < Timestamp::now() + SKEW
    }

    /// The record it stands in.
    pub fn seen(&self) -> Option<&Arc<Seen>> {
        match &self.word {
            Word::Record(seen) => Some(seen),
            Word::Observation(_) => None,
        }
    }

    /// Whether nobody but its owner or an operator moves the tag.
    fn is_settled(&self) -> bool {
        self.seen()
            .is_some_and(|seen| seen.record.owner == Owner::Push || seen.record.frozen.is_some())
    }

    /// Whether the upstream is to be asked. A record of another generation was made under other
    /// terms, so the upstream's word from then does not count, except where it never does again.
    pub fn due(&self, place: &Place, tag: &Tag) -> Due {
        let freshness = place.route.rule.freshness(tag);
        if self.is_settled() || freshness == Freshness::Immutable {
            return Due::No;
        }
        let other_terms = self.seen().is_some_and(|seen| {
            !is_of(seen, place) && seen.record.confirmed_at == self.confirmed_at
        });
        if other_terms { Due::First } else { due(freshness, self.confirmed_at, Timestamp::now()) }
    }

    /// Whether it may be served although the upstream cannot confirm it.
    pub fn may_be_stale(&self, place: &Place, tag: &Tag) -> bool {
        match place.route.rule.freshness(tag) {
            Freshness::Immutable => true,
            Freshness::Checked(checks) => self.is_settled() || self.age() <= checks.stale_for,
        }
    }

    pub fn age(&self) -> Duration {
        Timestamp::now().duration_since(self.confirmed_at).try_into().unwrap_or_default()
    }

    /// HEAD needs no more than was heard.
    pub fn facts_for(&self, read: Read) -> Option<Found> {
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

/// What is due of something the upstream said `then`. What lies far in the future was written by a
/// clock that is wrong, and is not relied on.
pub fn due(freshness: Freshness, then: Timestamp, now: Timestamp) -> Due {
    match Duration::try_from(now.duration_since(then)) {
        Ok(age) => freshness.due(age),
        Err(_) if then.duration_since(now).unsigned_abs() < SKEW => freshness.due(Duration::ZERO),
        Err(_) => Due::First,
    }
}

/// Whether a tag that the upstream does not have any more is refused.
pub fn is_refused_when_gone(place: &Place, tag: &Tag) -> bool {
    match place.route.rule.freshness(tag) {
        Freshness::Immutable => false,
        Freshness::Checked(checks) => checks.when_gone == WhenGone::Refuse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hydrant_proto::MediaType;
    use hydrant_rules::Checks;
    use hydrant_store::{Frozen, Steering, Store, Writer};

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
    async fn a_record_from_the_future_is_younger_than_nothing() {
        let now = Timestamp::now();
        for (ahead, newest_is) in [(30, "a"), (3600, "b")] {
            let seen = record("a", now.as_second() + ahead, Owner::Cache).await;
            let (newest, _) = newest(Some(seen), Some(observation("b", now.as_second(), true)));
            assert_eq!(newest.unwrap().digest, Digest::of(newest_is.as_bytes()), "{ahead}");
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
        let checks = |fresh: u64, behind: u64| {
            Freshness::Checked(Checks {
                fresh_for: Duration::from_secs(fresh),
                revalidate_for: Duration::from_secs(behind),
                check_within: Duration::from_secs(2),
                stale_for: Duration::from_secs(3600),
                when_gone: WhenGone::Serve,
            })
        };
        for (then, expected) in [
            (1000, Due::No),
            (701, Due::No),
            (700, Due::Behind),
            (600, Due::First),
            (1059, Due::No),
            (1060, Due::First),
        ] {
            assert_eq!(due(checks(300, 100), at(then), at(1000)), expected, "{then}");
        }
        assert_eq!(due(checks(0, 0), at(1001), at(1000)), Due::First);
        assert_eq!(due(Freshness::Immutable, at(1), at(1000)), Due::No);
    }

    #[tokio::test]
    async fn a_frozen_tag_has_no_younger() {
        let seen = record("a", 5, Owner::Cache).await;
        let frozen = Frozen { at: at(6), by: Writer::Api, steering: Steering::default() };
        let still = seen.record.freeze(frozen).unwrap();
        let seen = Arc::new(Seen::now(still, seen.version.clone()));
        let (newest, before) = newest(Some(seen), Some(observation("b", 9, true)));
        assert_eq!(newest.unwrap().digest, Digest::of(b"a"));
        assert!(before.is_none());
    }
}
