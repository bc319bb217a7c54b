//! What is on record of a tag.

use hydrant_proto::{
    Digest, Event, EventData, EventKind, MediaType, Reference, RepositoryName, Tag,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Who a tag belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// Hydrated from an upstream, and moved when that moves.
    Cache,
    /// Pushed by a customer: never overwritten, expired or revalidated by hydration.
    Push,
}

/// Who changed a tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Writer {
    /// Hydration, following the upstream.
    #[default]
    Importer,
    /// A person or program, by the API or the command line.
    Api,
    /// A registry that was pushed to.
    Registry,
}

/// What a tag names, and how that is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TagRecord {
    pub owner: Owner,
    /// Name of the cache rule; none for a push.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Generation of that rule when the tag was last confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<String>,
    pub digest: Digest,
    pub media_type: MediaType,
    /// Bytes of the manifest itself.
    pub size: u64,
    /// Raised by one when owner, digest or deletion change, so a mere confirmation keeps it; set by
    /// [`crate::Store::put_tag`].
    pub seq: u64,
    /// Who made it name this digest.
    #[serde(default)]
    pub by: Writer,
    /// When it was first seen to name this digest, or made to.
    pub observed_at: Timestamp,
    /// When the upstream was last asked and said this digest; after a rollback, or when a freeze
    /// ended, when that was.
    pub confirmed_at: Timestamp,
    /// How it came from the digest before to this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<Move>,
    /// Why it stays where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Frozen>,
    /// How the last freeze of this digest ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfrozen: Option<Unfrozen>,
    /// Tells one write from every other; set by [`crate::Store::put_tag`].
    pub nonce: String,
    /// A tombstone: the tag is gone, and hydration of an older observation must not bring it back.
    #[serde(default)]
    pub deleted: bool,
}

/// The last move of a tag, with all its event is made of, so that it is the same event whoever
/// tells it and whatever became of the rule since.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Move {
    pub from: Digest,
    pub at: Timestamp,
    pub terms: Terms,
}

/// Under which rule something was seen.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Terms {
    pub rule: String,
    pub generation: String,
    pub upstream: String,
}

/// A tag that neither hydration moves nor frontends ask about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Frozen {
    pub at: Timestamp,
    pub by: Writer,
    #[serde(flatten)]
    pub steering: Steering,
}

/// The end of a freeze.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Unfrozen {
    pub at: Timestamp,
    #[serde(flatten)]
    pub steering: Steering,
}

/// On whose word a person's change is made, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Steering {
    /// The caller, as far as the API knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What a record says of the tag itself; a change of it raises the `seq`.
type Names<'r> = (Owner, &'r Digest, bool);

impl TagRecord {
    /// A first record, of something seen or pushed `at` some time. No rule stands in it yet.
    pub fn new(
        owner: Owner,
        digest: Digest,
        media_type: MediaType,
        size: u64,
        at: Timestamp,
    ) -> Self {
        let by = match owner {
            Owner::Cache => Writer::Importer,
            Owner::Push => Writer::Registry,
        };
        Self {
            owner,
            rule: None,
            generation: None,
            digest,
            media_type,
            size,
            seq: 0,
            by,
            observed_at: at,
            confirmed_at: at,
            moved: None,
            frozen: None,
            unfrozen: None,
            nonce: String::new(),
            deleted: false,
        }
    }

    /// The digest before this one.
    pub fn previous(&self) -> Option<&Digest> {
        self.moved.as_ref().map(|moved| &moved.from)
    }

    /// The event of the last move; the same each time it is made.
    pub fn moved_event(&self, repository: &RepositoryName, tag: &Tag) -> Option<Event> {
        let Move { from, at, terms } = self.moved.clone()?;
        let data = EventData {
            upstream: Some(terms.upstream),
            rule: Some(terms.rule),
            generation: Some(terms.generation),
            repository: Some(repository.clone()),
            reference: Some(Reference::Tag(tag.clone())),
            digest: Some(self.digest.clone()),
            media_type: Some(self.media_type.to_string()),
            previous_digest: Some(from),
            seq: self.seq,
            ..EventData::default()
        };
        Some(Event::new(EventKind::TagMoved, at, data))
    }

    fn names(&self) -> Names<'_> {
        (self.owner, &self.digest, self.deleted)
    }

    /// The `seq` of `self` when it is written over `before`, whose `seq` was `seq`.
    pub(crate) fn seq_after(&self, before: Option<&Self>, seq: u64) -> u64 {
        seq + u64::from(before.map(Self::names) != Some(self.names()))
    }
}
