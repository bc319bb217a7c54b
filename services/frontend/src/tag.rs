//! Manifests by tag: which digest a tag names now, and how sure that is.
//!
//! Inside the rule's freshness window the newest thing heard is served, without a word to the
//! upstream. After it the upstream is asked (`checks.rs`): behind the answer for as long as the rule
//! says, then before it. While it cannot tell, or not soon, the newest thing heard is served, marked
//! stale, for as long as the rule allows. "The tag is gone" counts as "cannot tell" unless the rule
//! says otherwise: content that somebody runs is not taken away because an upstream lost it.
//!
//! The newest thing heard is the tag's record in storage, or an observation of this process that is
//! younger, because the hydration of what was observed is still under way. Once a manifest went out
//! to a client, no older one does: its bytes are in memory or staged in storage.

use crate::{
    answer::Answer,
    asking::{Told, by_tag},
    checks::{Checked, Checks},
    error::{Failure, What},
    heard::{Heard, is_of, is_refused_when_gone, newest},
    held::Held,
    manifest::{Found, Manifests, certain},
    memory::{Observation, Seen},
    place::Place,
    request::Read,
    rumours::Rumours,
};
use hydrant_proto::Tag;
use hydrant_rules::Due;
use hydrant_store::{Owner, Wanted};
use hydrant_telemetry::metrics::PullOutcome;
use std::{sync::Arc, time::Duration};

/// Longest wait for the upstream's word on a tag that nobody here has heard of.
const HEAD_BUDGET: Duration = Duration::from_secs(2);

/// What tags are served from. Cheap to clone.
#[derive(Clone)]
pub struct Tags {
    pub manifests: Manifests,
    pub rumours: Rumours,
    pub checks: Arc<Checks>,
}

/// What is known of a tag before the upstream is asked.
pub struct Standing {
    /// The newest thing heard.
    pub newest: Option<Heard>,
    /// The record, when something newer was heard that no client has got yet.
    before: Option<Heard>,
    /// A customer deleted it; the upstream has no say.
    pub is_deleted: bool,
    /// Why the record could not be read.
    storage: Option<Failure>,
}

impl Tags {
    pub async fn by_tag(&self, place: &Place, tag: &Tag, read: Read) -> Result<Answer, Failure> {
        let standing = self.standing(place, tag).await;
        if standing.is_deleted {
            return Err(Failure::Missing(What::Manifest));
        }
        let served = match &standing.newest {
            None => Box::pin(self.unheard_of(place, tag, read)).await,
            Some(newest) => match newest.due(place, tag) {
                Due::No => self.serve(place, tag, newest, read).await,
                Due::Behind => Box::pin(self.meanwhile(place, tag, newest, read)).await,
                Due::First => Box::pin(self.checked(place, tag, newest, read)).await,
            },
        };
        match served {
            Ok(answer) => Ok(answer),
            Err(failure) => Box::pin(self.stale(place, tag, standing, failure, read)).await,
        }
    }

    /// Reads the record, from memory when it was read a moment ago, and compares it with what was
    /// observed since.
    pub async fn standing(&self, place: &Place, tag: &Tag) -> Standing {
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
        let found = Box::pin(shelf.ask(shelf.store.tag(place.repository(), tag))).await?;
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
        let told = self.manifests.asking.head(place, &by_tag(tag), HEAD_BUDGET).await?;
        self.observe(place, tag, &told);
        Ok(Found::told(told.head).answer(true))
    }

    /// Serves what was heard at once, and has the upstream asked behind the answer.
    async fn meanwhile(
        &self,
        place: &Place,
        tag: &Tag,
        newest: &Heard,
        read: Read,
    ) -> Result<Answer, Failure> {
        let Some(found) = self.at_hand(place, newest, read).await else {
            return self.checked(place, tag, newest, read).await;
        };
        if self.rumours.silence(&place.spot(tag)).is_none() {
            self.check_behind(place, tag);
        }
        self.manifests.family.named(place.spot(&newest.digest), tag);
        Ok(found.answer(true).aged(newest.age()).being_checked())
    }

    /// Serves what the upstream says that the tag names now.
    async fn checked(
        &self,
        place: &Place,
        tag: &Tag,
        newest: &Heard,
        read: Read,
    ) -> Result<Answer, Failure> {
        match self.soon(place, tag, newest).await? {
            Checked::Names(heard) => {
                if read == Read::Head && heard.seen().is_none() {
                    self.manifests.family.named(place.spot(&heard.digest), tag);
                }
                self.serve(place, tag, &heard, read).await
            }
            // A registry that does not say. A HEAD never becomes a GET.
            Checked::Untold(head) => match read {
                Read::Head => Ok(Found::told(head).answer(true)),
                Read::Get => self.fetch(place, tag).await,
            },
        }
    }

    /// Serves what the tag was heard to name.
    pub async fn serve(
        &self,
        place: &Place,
        tag: &Tag,
        heard: &Heard,
        read: Read,
    ) -> Result<Answer, Failure> {
        let found = match heard.facts_for(read) {
            Some(found) => found,
            None => Box::pin(self.manifests.find(place, &heard.digest, read)).await?,
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
        let is_gone = failure.is_unknown();
        if is_gone && is_refused_when_gone(place, tag) {
            return Err(certain(failure, standing.storage));
        }
        let mut is_too_old = false;
        for heard in standing.newest.iter().chain(&standing.before) {
            if !heard.may_be_stale(place, tag) {
                is_too_old = true;
                continue;
            }
            if let Some(found) = self.at_hand(place, heard, read).await {
                failure.log();
                self.manifests.family.named(place.spot(&heard.digest), tag);
                self.rumours.served_stale(place, tag, heard.seen(), &heard.digest, &failure);
                return Ok(found.answer(true).aged(heard.age()).stale(&failure));
            }
        }
        if is_too_old && !is_gone {
            return Err(Failure::TooOld(Box::new(failure)));
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
    pub fn observe(&self, place: &Place, tag: &Tag, told: &Told) {
        if let Some(digest) = &told.head.digest {
            let observation = Observation::heard(digest.clone(), told);
            self.manifests.memory.observe(place.spot(tag), observation);
            self.manifests.family.named(place.spot(digest), tag);
        }
    }
}
