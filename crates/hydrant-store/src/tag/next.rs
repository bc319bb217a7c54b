//! Which record may follow another. Pure: every change of a tag is decided here, whoever makes it,
//! and takes effect by a compare-and-set on the record it was decided on.
//!
//! Whoever asks the upstream reads the record *first*. Then a record that is unchanged when the
//! answer is written was not followed by any newer word, so a tag never goes back to an older one,
//! whatever clocks say.

use super::record::{Frozen, Move, Owner, Steering, TagRecord, Terms, Unfrozen, Writer};
use hydrant_proto::{Digest, MediaType};
use jiff::Timestamp;

/// What a tag was found to name, and when that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sighting {
    pub digest: Digest,
    pub media_type: MediaType,
    /// Bytes of the manifest.
    pub size: u64,
    /// After the record was read and before the upstream was asked.
    pub asked_at: Timestamp,
    pub terms: Terms,
}

/// Whether a tag follows the upstream under its rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Follows {
    Upstream,
    /// Once local, it stays.
    Nothing,
}

/// Why a tag does not become what somebody wants it to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Stays {
    #[error("the tag was pushed by a customer")]
    Pushed,
    #[error("the tag is frozen")]
    Frozen,
    #[error("the rule says that the tag is immutable")]
    Immutable,
    #[error("the tag is not local")]
    Absent,
}

impl TagRecord {
    /// Why hydration leaves the tag where it is; `None` when it is to ask the upstream.
    pub fn stays(&self, follows: Follows) -> Option<Stays> {
        match (self.owner, &self.frozen) {
            (Owner::Push, _) => Some(Stays::Pushed),
            (Owner::Cache, Some(_)) => Some(Stays::Frozen),
            (Owner::Cache, None) if self.deleted => None,
            (Owner::Cache, None) => (follows == Follows::Nothing).then_some(Stays::Immutable),
        }
    }

    /// The record after `before` when the upstream was seen to name something whose closure is
    /// durable by now.
    pub fn sighted(
        before: Option<&Self>,
        seen: &Sighting,
        follows: Follows,
    ) -> Result<Self, Stays> {
        if let Some(stays) = before.and_then(|before| before.stays(follows)) {
            return Err(stays);
        }
        let Sighting { digest, media_type, size, asked_at, terms } = seen.clone();
        let before = before.filter(|before| !before.deleted);
        let next = match before.filter(|before| before.digest == digest) {
            Some(same) => Self { confirmed_at: asked_at, ..same.clone() },
            None => Self {
                moved: before.map(|before| Move {
                    from: before.digest.clone(),
                    at: asked_at,
                    terms: terms.clone(),
                }),
                ..Self::new(Owner::Cache, digest, media_type, size, asked_at)
            },
        };
        Ok(next.under(terms))
    }

    /// The record once the upstream, asked at some time after the record was read, said the same.
    pub fn confirmed(&self, asked_at: Timestamp, terms: Terms) -> Result<Self, Stays> {
        match self.stays(Follows::Upstream) {
            Some(stays) => Err(stays),
            None if self.deleted => Err(Stays::Absent),
            None => Ok(Self { confirmed_at: asked_at, ..self.clone() }.under(terms)),
        }
    }

    /// Keeps the tag where it is. One that is frozen already stays as it was frozen.
    pub fn freeze(&self, frozen: Frozen) -> Result<Self, Stays> {
        self.may_be_steered()?;
        let frozen = self.frozen.clone().unwrap_or(frozen);
        Ok(Self { frozen: Some(frozen), unfrozen: None, ..self.clone() })
    }

    /// Lets the tag follow the upstream again. It counts as confirmed now, so that it stays
    /// available when the upstream, which is to be asked at once, is away.
    pub fn unfreeze(&self, now: Timestamp, steering: Steering) -> Result<Self, Stays> {
        self.may_be_steered()?;
        match self.frozen {
            Some(_) => {
                let unfrozen = Some(Unfrozen { at: now, steering });
                Ok(Self { frozen: None, unfrozen, confirmed_at: now, ..self.clone() })
            }
            None => Ok(self.clone()),
        }
    }

    /// Points the tag at something it named before, and keeps it there: the next word of the
    /// upstream would undo it.
    pub fn roll_back(&self, to: &Sighting, steering: Steering) -> Result<Self, Stays> {
        self.may_be_steered()?;
        let Sighting { digest, media_type, size, asked_at: at, terms } = to.clone();
        let frozen = Some(Frozen { at, by: Writer::Api, steering });
        if digest == self.digest {
            return Ok(Self { frozen: self.frozen.clone().or(frozen), ..self.clone() });
        }
        let moved = Some(Move { from: self.digest.clone(), at, terms: terms.clone() });
        let next = Self::new(Owner::Cache, digest, media_type, size, at);
        Ok(Self { by: Writer::Api, moved, frozen, ..next }.under(terms))
    }

    fn may_be_steered(&self) -> Result<(), Stays> {
        match self.owner {
            Owner::Push => Err(Stays::Pushed),
            Owner::Cache if self.deleted => Err(Stays::Absent),
            Owner::Cache => Ok(()),
        }
    }

    fn under(self, terms: Terms) -> Self {
        Self { rule: Some(terms.rule), generation: Some(terms.generation), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn terms(generation: &str) -> Terms {
        let (rule, upstream) = ("lab".to_owned(), "lab".to_owned());
        Terms { rule, generation: generation.to_owned(), upstream }
    }

    fn seen(of: &str, second: i64) -> Sighting {
        Sighting {
            digest: Digest::of(of.as_bytes()),
            media_type: MediaType::OciManifest,
            size: 1,
            asked_at: at(second),
            terms: terms("g"),
        }
    }

    fn first(of: &str) -> TagRecord {
        TagRecord::sighted(None, &seen(of, 1), Follows::Upstream).unwrap()
    }

    fn why(reason: &str) -> Steering {
        Steering { actor: None, reason: Some(reason.to_owned()) }
    }

    fn frozen(reason: &str) -> Frozen {
        Frozen { at: at(5), by: Writer::Api, steering: why(reason) }
    }

    #[test]
    fn a_sighting_moves_what_follows_and_nothing_else() {
        let cached = first("a");
        let pushed = TagRecord { owner: Owner::Push, ..cached.clone() };
        let tombstone = TagRecord { deleted: true, ..cached.clone() };
        let still = cached.freeze(frozen("audit")).unwrap();
        let (follow, stay) = (Follows::Upstream, Follows::Nothing);
        for (what, before, follows, expected) in [
            ("nothing", None, stay, Ok("b")),
            ("cached", Some(&cached), follow, Ok("b")),
            ("immutable", Some(&cached), stay, Err(Stays::Immutable)),
            ("frozen", Some(&still), follow, Err(Stays::Frozen)),
            ("pushed", Some(&pushed), follow, Err(Stays::Pushed)),
            ("an immutable tombstone", Some(&tombstone), stay, Ok("b")),
        ] {
            let next = TagRecord::sighted(before, &seen("b", 9), follows);
            let digest = next.as_ref().map(|next| next.digest.clone()).map_err(|stays| *stays);
            assert_eq!(digest, expected.map(|of: &str| Digest::of(of.as_bytes())), "{what}");
            let from = next.ok().and_then(|next| next.previous().cloned());
            let moves = before.is_some_and(|before| !before.deleted) && expected.is_ok();
            assert_eq!(from, moves.then(|| cached.digest.clone()), "{what}");
        }
    }

    #[test]
    fn a_confirmation_changes_the_time_and_keeps_the_move() {
        let moved =
            TagRecord::sighted(Some(&first("a")), &seen("b", 9), Follows::Upstream).unwrap();
        let again = moved.confirmed(at(20), terms("other")).unwrap();
        assert_eq!((again.confirmed_at, again.observed_at), (at(20), at(9)));
        assert_eq!(again.generation.as_deref(), Some("other"));
        let (name, tag) = ("lab/app".parse().unwrap(), "1".parse().unwrap());
        assert_eq!(again.moved_event(&name, &tag), moved.moved_event(&name, &tag));
        assert_eq!(first("a").moved_event(&name, &tag), None);
        let still = moved.freeze(frozen("audit")).unwrap();
        assert_eq!(still.confirmed(at(20), terms("g")), Err(Stays::Frozen));
    }

    #[test]
    fn a_rollback_freezes_and_an_unfrozen_tag_counts_as_confirmed() {
        let moved =
            TagRecord::sighted(Some(&first("a")), &seen("b", 9), Follows::Upstream).unwrap();
        let back = moved.roll_back(&seen("a", 30), why("b is broken")).unwrap();
        assert_eq!((back.digest.clone(), back.by), (first("a").digest, Writer::Api));
        assert_eq!(back.previous(), Some(&moved.digest));
        assert!(back.stays(Follows::Upstream).is_some());
        let free = back.unfreeze(at(40), why("b is mended")).unwrap();
        assert_eq!((free.confirmed_at, free.stays(Follows::Upstream)), (at(40), None));
        // Said twice, it is done once.
        assert_eq!(back.roll_back(&seen("a", 31), Steering::default()), Ok(back.clone()));
        assert_eq!(back.freeze(frozen("again")), Ok(back));
        assert_eq!(free.unfreeze(at(50), Steering::default()), Ok(free));
    }

    #[test]
    fn nobody_steers_what_a_customer_pushed_or_what_is_gone() {
        for (record, stays) in [
            (TagRecord { owner: Owner::Push, ..first("a") }, Stays::Pushed),
            (TagRecord { deleted: true, ..first("a") }, Stays::Absent),
        ] {
            assert_eq!(record.freeze(frozen("")), Err(stays));
            assert_eq!(record.unfreeze(at(9), Steering::default()), Err(stays));
            assert_eq!(record.roll_back(&seen("b", 9), Steering::default()), Err(stays));
        }
    }
}
