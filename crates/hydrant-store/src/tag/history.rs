//! What became of a tag over time: who made it name which digest when, and who froze it.
//!
//! A line is written after the record it tells of. A process killed in between loses at most the
//! line, never the tag; and since a record tells of its own change, whoever reads or writes next
//! puts the line in.

use super::record::{Owner, Steering, TagRecord, Unfrozen, Writer};
use crate::{
    Store,
    cas::{MAX_ROUNDS, Stamp},
    error::StoreError,
    key::Key,
    object::Stored,
};
use hydrant_proto::{Digest, MediaType, RepositoryName, Tag};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Lines kept for each tag; the oldest go.
pub const MAX_LINES: usize = 100;

/// One change of a tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagLine {
    pub at: Timestamp,
    pub act: TagAct,
    pub by: Writer,
    /// What it names since.
    pub digest: Digest,
    pub media_type: MediaType,
    /// Bytes of the manifest.
    pub size: u64,
    /// `seq` of the record.
    pub seq: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Of a person's change.
    #[serde(flatten)]
    pub steering: Steering,
}

/// What was done to a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TagAct {
    /// The upstream was seen to name the digest.
    Seen,
    RolledBack,
    Pushed,
    Deleted,
    Frozen,
    Unfrozen,
    /// Somebody had the upstream asked. Of several without a change only the last is kept.
    Refreshed,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct History {
    lines: Vec<TagLine>,
}

impl Store {
    /// The last changes of a tag, the newest first.
    pub async fn tag_history(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<Vec<TagLine>, StoreError> {
        let path = self.at(Key::TagHistory(repository, tag));
        let (history, record) =
            tokio::try_join!(self.get_record::<History>(&path), self.tag(repository, tag))?;
        let mut history =
            history.and_then(Stored::readable).map_or_else(History::default, |(known, _)| known);
        history.add(record.iter().flat_map(|(record, _)| told_by(record)));
        history.lines.reverse();
        Ok(history.lines)
    }

    /// Writes down that `after` took the place of `before`. The first of a tag is told by the record
    /// as long as that stands. What fails is logged and given up.
    pub(super) async fn note_change(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        before: Option<&TagRecord>,
        after: &TagRecord,
    ) {
        let Some(before) = before else { return };
        let lines = changes(Some(before), after);
        if lines.is_empty() {
            return;
        }
        // The line of the one before may have been lost with its writer, or was its first.
        let lines: Vec<_> = told_by(before).into_iter().chain(lines).collect();
        if let Err(error) = self.write_lines(repository, tag, lines).await {
            tracing::warn!(%error, image.repository = %repository, image.tag = %tag,
                "history of the tag not written");
        }
    }

    /// Writes down that somebody has the upstream asked about a tag that stands so.
    pub async fn note_refresh(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        standing: &TagRecord,
        steering: Steering,
    ) -> Result<(), StoreError> {
        let (at, by) = (Timestamp::now(), Writer::Api);
        let line = TagLine { at, by, steering, ..TagLine::of(standing, TagAct::Refreshed) };
        let lines = told_by(standing).into_iter().chain([line]).collect();
        self.write_lines(repository, tag, lines).await
    }

    async fn write_lines(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        lines: Vec<TagLine>,
    ) -> Result<(), StoreError> {
        let path = self.at(Key::TagHistory(repository, tag));
        for _ in 0..MAX_ROUNDS {
            let (mut history, stamp) = match self.get_record::<History>(&path).await? {
                None => (History::default(), Stamp::Absent),
                Some(Stored::Readable(history, stamp)) => (history, stamp),
                Some(Stored::Unreadable(damaged)) => (History::default(), self.stamp(&damaged)),
            };
            if !history.add(lines.iter().cloned()) {
                return Ok(());
            }
            match self.compare_and_set_json(&path, &history, &stamp).await {
                Err(StoreError::Conflict { .. }) => {}
                other => return other.map(drop),
            }
        }
        Err(StoreError::Conflict { key: path.to_string() })
    }
}

impl History {
    /// Puts in the lines that are not there yet; whether there were any.
    fn add(&mut self, lines: impl Iterator<Item = TagLine>) -> bool {
        let mut added = false;
        for line in lines {
            if line.act == TagAct::Refreshed {
                let same = |known: &TagLine| known.act == line.act && known.seq == line.seq;
                if self.lines.iter().any(|known| same(known) && known.at >= line.at) {
                    continue;
                }
                self.lines.retain(|known| !same(known));
            }
            if !self.lines.iter().any(|known| known.is_of_the_same(&line)) {
                self.lines.push(line);
                added = true;
            }
        }
        self.lines.sort_by_key(|line| (line.seq, line.at));
        self.lines.drain(..self.lines.len().saturating_sub(MAX_LINES));
        added
    }
}

impl TagLine {
    fn of(record: &TagRecord, act: TagAct) -> Self {
        Self {
            at: record.observed_at,
            act,
            by: record.by,
            digest: record.digest.clone(),
            media_type: record.media_type,
            size: record.size,
            seq: record.seq,
            rule: record.rule.clone(),
            steering: Steering::default(),
        }
    }

    fn is_of_the_same(&self, other: &Self) -> bool {
        let points = |act| !matches!(act, TagAct::Frozen | TagAct::Unfrozen | TagAct::Refreshed);
        match (points(self.act), points(other.act)) {
            (true, true) => self.seq == other.seq,
            _ => (self.seq, self.act, self.at) == (other.seq, other.act, other.at),
        }
    }
}

/// What changed between two records.
fn changes(before: Option<&TagRecord>, after: &TagRecord) -> Vec<TagLine> {
    let was_frozen = before.is_some_and(|before| before.frozen.is_some());
    if was_frozen && after.frozen.is_none() && after.unfrozen.is_some() {
        return unfrozen(after).into_iter().collect();
    }
    let is_same = before.is_some_and(|before| before.seq == after.seq);
    match is_same && (was_frozen || after.frozen.is_none()) {
        true => Vec::new(),
        false => told_by(after),
    }
}

/// The lines that a record tells of itself: how it came to its digest, and how it was frozen there.
fn told_by(record: &TagRecord) -> Vec<TagLine> {
    let act = match (record.deleted, record.owner, record.by) {
        (true, ..) => TagAct::Deleted,
        (_, Owner::Push, _) => TagAct::Pushed,
        (_, Owner::Cache, Writer::Api) => TagAct::RolledBack,
        (_, Owner::Cache, Writer::Importer | Writer::Registry) => TagAct::Seen,
    };
    let mut pointed = TagLine::of(record, act);
    let Some(frozen) = &record.frozen else {
        return std::iter::once(pointed).chain(unfrozen(record)).collect();
    };
    if act == TagAct::RolledBack && frozen.at == record.observed_at {
        // One act, not two.
        pointed.steering.clone_from(&frozen.steering);
        return vec![pointed];
    }
    let (at, by, steering) = (frozen.at, frozen.by, frozen.steering.clone());
    let frozen = TagLine { at, by, steering, ..TagLine::of(record, TagAct::Frozen) };
    vec![pointed, frozen]
}

fn unfrozen(record: &TagRecord) -> Option<TagLine> {
    let Unfrozen { at, steering } = record.unfrozen.clone()?;
    Some(TagLine { at, by: Writer::Api, steering, ..TagLine::of(record, TagAct::Unfrozen) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Frozen;

    fn line(seq: u64) -> TagLine {
        let digest = Digest::of(&seq.to_be_bytes());
        let at = Timestamp::from_second(i64::try_from(seq).unwrap()).unwrap();
        let record = TagRecord::new(Owner::Cache, digest, MediaType::OciManifest, 1, at);
        TagLine::of(&TagRecord { seq, ..record }, TagAct::Seen)
    }

    #[test]
    fn a_change_by_a_person_tells_whose_and_why_and_so_does_each_later_look() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let steering = |reason: &str| Steering {
            actor: Some("admin-token".to_owned()),
            reason: Some(reason.to_owned()),
        };
        let digest = Digest::of(b"a");
        let seen = TagRecord::new(Owner::Cache, digest, MediaType::OciManifest, 1, at(1));
        let frozen = Frozen { at: at(2), by: Writer::Api, steering: steering("a release") };
        let frozen = seen.freeze(frozen).unwrap();
        let free = frozen.unfreeze(at(3), steering("it is out")).unwrap();
        let told = |lines: Vec<TagLine>| {
            lines.into_iter().map(|line| (line.act, line.steering)).collect::<Vec<_>>()
        };
        let ended = (TagAct::Unfrozen, steering("it is out"));
        assert_eq!(told(changes(Some(&frozen), &free)), std::slice::from_ref(&ended));
        // The line may have been lost with its writer.
        assert_eq!(told(told_by(&free)), [(TagAct::Seen, Steering::default()), ended]);
        let again = Frozen { at: at(4), by: Writer::Api, steering: steering("once more") };
        let again = told(told_by(&free.freeze(again).unwrap()));
        assert_eq!(again[1..], [(TagAct::Frozen, steering("once more"))]);
    }

    #[test]
    fn of_several_refreshes_the_last_is_kept() {
        let refreshed = |second| TagLine {
            act: TagAct::Refreshed,
            at: Timestamp::from_second(second).unwrap(),
            ..line(1)
        };
        let mut history = History::default();
        for second in [1, 3, 2] {
            history.add([line(1), refreshed(second)].into_iter());
        }
        let kept: Vec<_> = history.lines.iter().map(|line| line.at.as_second()).collect();
        assert_eq!(kept, [1, 3]);
    }

    #[test]
    fn a_history_is_bounded_ordered_and_says_nothing_twice() {
        let mut history = History::default();
        for seq in (0..150).rev() {
            assert!(history.add([line(seq), line(seq)].into_iter()));
        }
        // Those of the beginning came last and went at once.
        assert_eq!(history.lines.len(), MAX_LINES);
        assert_eq!((history.lines[0].seq, history.lines[99].seq), (50, 149));
        assert!(!history.add([line(149)].into_iter()));
    }
}
