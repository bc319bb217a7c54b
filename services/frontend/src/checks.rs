//! Asking the upstream whether a tag still names what is local.
//!
//! One check at a time for all clients of the process, and, while the bus is there, of the cluster:
//! who gets the turn asks, and the others read what he wrote down. A check belongs to no client. Who
//! waits for it does so for as long as the rule says, and it goes on, though nobody waits for it again;
//! what it finds is then fetched and hydrated although nobody asked for it.

use crate::{
    asking::{Told, by_tag},
    coalesce::Coalesced,
    error::{Failure, What},
    heard::Heard,
    memory::{Observation, Seen},
    place::{Place, Spot},
    request::Read,
    rumours::Turn,
    tag::Tags,
};
use hydrant_proto::Tag;
use hydrant_rules::{Due, Freshness};
use hydrant_upstream::Head;
use std::sync::Arc;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// Turns of others that are waited for, before a process asks for itself: a tag that moved is not
/// written down before it is hydrated, so waiting longer is of no use.
const TURNS: usize = 2;

/// What the upstream says of a tag.
#[derive(Clone)]
pub enum Checked {
    Names(Heard),
    /// That it is there, and not what it names: only its manifest can tell.
    Untold(Head),
}

type Outcome = Result<Checked, Failure>;

/// The checks under way in this process.
pub struct Checks {
    asking: Coalesced<Spot<Tag>, Outcome>,
    /// Checks for which no client waits any more.
    behind: Coalesced<Spot<Tag>, ()>,
}

impl Checks {
    pub fn new(tasks: &TaskTracker) -> Self {
        Self { asking: Coalesced::new(tasks.clone()), behind: Coalesced::new(tasks.clone()) }
    }
}

impl Tags {
    /// What the tag names now, if the upstream says so as soon as the rule wants it. When there is
    /// nothing that may be served instead, it has all its time.
    pub async fn soon(&self, place: &Place, tag: &Tag, newest: &Heard) -> Outcome {
        let check = self.check(place, tag);
        let Freshness::Checked(terms) = place.route.rule.freshness(tag) else { return check.await };
        if !newest.may_be_stale(place, tag) {
            return check.await;
        }
        // One that others have waited for as long as that is not waited for again, until it is through.
        let taken = self.checks.asking.age(&place.spot(tag)).unwrap_or_default();
        if let Ok(outcome) = timeout(terms.check_within.saturating_sub(taken), check).await {
            return outcome;
        }
        self.check_behind(place, tag);
        Err(Failure::SlowCheck(terms.check_within))
    }

    /// Has the tag checked, and what it has moved to brought here, without anybody waiting.
    pub fn check_behind(&self, place: &Place, tag: &Tag) {
        let (tags, place_of, tag_of) = (self.clone(), place.clone(), tag.clone());
        let work = || async move {
            let (place, tag) = (place_of, tag_of);
            if let Ok(Checked::Names(heard)) = tags.joined(&place, &tag).await
                && heard.seen().is_none()
                && let Err(failure) = tags.serve(&place, &tag, &heard, Read::Get).await
            {
                failure.log();
            }
        };
        self.checks.behind.begin(place.spot(tag), work);
    }

    /// The outcome of a check. Its failure counts for a moment, so that a slow upstream does not
    /// make every client wait for the whole budget.
    async fn check(&self, place: &Place, tag: &Tag) -> Outcome {
        match self.rumours.silence(&place.spot(tag)) {
            Some(failure) => Err(failure),
            None => self.joined(place, tag).await,
        }
    }

    async fn joined(&self, place: &Place, tag: &Tag) -> Outcome {
        let (tags, place_of, tag_of) = (self.clone(), place.clone(), tag.clone());
        let work = || async move {
            let outcome = tags.in_turn(&place_of, &tag_of).await;
            let spot = place_of.spot(&tag_of);
            match &outcome {
                Ok(_) => tags.rumours.end_silence(&spot),
                Err(failure) => tags.rumours.keep_silence(spot, failure),
            }
            outcome
        };
        let outcome = self.checks.asking.get(place.spot(tag), work).await.0;
        outcome.unwrap_or(Err(Failure::Abandoned))
    }

    /// Asks unless another process has just done so.
    async fn in_turn(&self, place: &Place, tag: &Tag) -> Outcome {
        for _ in 0..TURNS {
            let turn = self.rumours.turn(place, tag).await;
            // Somebody may have asked since the record was read.
            self.read_again(place, tag).await;
            let standing = self.standing(place, tag).await;
            if standing.is_deleted {
                return Err(Failure::Missing(What::Manifest));
            }
            match (standing.newest, turn) {
                (Some(newest), _) if newest.due(place, tag) == Due::No => {
                    return Ok(Checked::Names(newest));
                }
                (_, Turn::Others) => self.rumours.turn_ends(place, tag).await,
                (newest, turn) => return self.ask(place, tag, newest, turn).await,
            }
        }
        let newest = self.standing(place, tag).await.newest;
        self.ask(place, tag, newest, Turn::Free).await
    }

    async fn ask(&self, place: &Place, tag: &Tag, newest: Option<Heard>, turn: Turn) -> Outcome {
        let budget = place.route.upstream.timeout.0;
        let told = self.manifests.asking.head(place, &by_tag(tag), budget).await?;
        let Some(digest) = told.head.digest.clone() else { return Ok(Checked::Untold(told.head)) };
        // While the upstream was asked, something younger may have been heard.
        let standing = self.standing(place, tag).await;
        let is_younger =
            |heard: &Heard| heard.is_since(told.at) || heard.due(place, tag) == Due::No;
        if let Some(younger) = standing.newest.filter(is_younger) {
            return Ok(Checked::Names(younger));
        }
        match newest.filter(|newest| newest.digest == digest) {
            Some(same) => Ok(Checked::Names(self.same(place, tag, same, &told, turn))),
            None => {
                tracing::info!(image.repository = %place.repository(), image.tag = %tag,
                    to = %digest, "tag moved upstream");
                Ok(Checked::Names(Heard::observed(Arc::new(Observation::heard(digest, &told)))))
            }
        }
    }

    /// Reads the record from storage. While that is away, what was read before is all there is.
    async fn read_again(&self, place: &Place, tag: &Tag) {
        let (memory, shelf) = (&self.manifests.memory, &self.manifests.shelf);
        match shelf.ask(shelf.store.tag(place.repository(), tag)).await {
            Ok(Some((record, version))) => {
                let seen = Arc::new(Seen::now(record, version));
                memory.keep_record(place.repository(), tag, seen);
            }
            Ok(None) => memory.forget_record(place.repository(), tag),
            Err(failure) => failure.log(),
        }
    }

    /// The turn ends when the confirmation is written, so that others find it.
    fn same(&self, place: &Place, tag: &Tag, newest: Heard, told: &Told, turn: Turn) -> Heard {
        self.observe(place, tag, told);
        self.rumours.confirm(place, tag, newest.seen(), told.at, turn);
        newest.confirmed(told.at)
    }
}
