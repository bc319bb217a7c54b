//! Which hydrants a request has come through, as `Via` tells it (RFC 9110, 7.6.3): how a hydrant
//! whose upstream leads back to it knows its own request.
//!
//! Of what `Via` may hold only hydrants are read and passed on. What other proxies write there is
//! for the next hop, and names of inner hosts are nobody's business further out.

use serde::{Deserialize, Serialize};
use std::{
    fmt,
    sync::{Arc, OnceLock},
};
use ulid::Ulid;

/// Most hydrants that are passed on. No chain of caches is that long, so a longer one is a circle.
pub const MAX_HOPS: usize = 16;

/// What a hydrant is called in `Via`, before its id.
const PSEUDONYM: &str = "hydrant-";

/// What tells one hydrant, all processes that share a store, from any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HydrantId(Ulid);

impl HydrantId {
    /// Another than any before.
    pub fn generate() -> Self {
        Self(Ulid::new())
    }
}

impl fmt::Display for HydrantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<HydrantId> for String {
    fn from(id: HydrantId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for HydrantId {
    type Error = ulid::DecodeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Ulid::from_string(&text).map(Self)
    }
}

/// Who this process is. Cheap to clone; clones learn together.
///
/// The id of the hydrant is in its store, which may be away at the start. Until it is known the
/// process goes by one of its own, so that it knows at least what it sent itself: a circle through
/// other processes of the same hydrant is then longer, by one round through each of them at most.
#[derive(Clone, Debug)]
pub struct Identity(Arc<Known>);

#[derive(Debug)]
struct Known {
    process: HydrantId,
    hydrant: OnceLock<HydrantId>,
}

impl Default for Identity {
    fn default() -> Self {
        let (process, hydrant) = (HydrantId::generate(), OnceLock::new());
        Self(Arc::new(Known { process, hydrant }))
    }
}

impl Identity {
    /// The store told it. What it told first counts.
    pub fn learn(&self, hydrant: HydrantId) {
        self.0.hydrant.get_or_init(|| hydrant);
    }

    /// What requests from here carry.
    pub fn current(&self) -> HydrantId {
        self.0.hydrant.get().copied().unwrap_or(self.0.process)
    }

    /// Whether a request that names `id` was sent from here, perhaps before the store was asked.
    fn is(&self, id: HydrantId) -> bool {
        id == self.0.process || self.0.hydrant.get() == Some(&id)
    }
}

/// The hydrants that a request has come through, the first one first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Via(Vec<HydrantId>);

impl Via {
    /// Reads the values of a request's `Via` headers. Whatever is not understood is passed over.
    pub fn read<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let members = values.into_iter().flat_map(|value| {
            let value = without_comments(value);
            value.split(|byte| *byte == b',').filter_map(hydrant).collect::<Vec<_>>()
        });
        Self(members.take(MAX_HOPS + 1).collect())
    }

    /// Whether no hydrant sent it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a request that came so has come back to `identity`, or goes round somewhere else.
    pub fn is_circle(&self, identity: &Identity) -> bool {
        self.0.len() > MAX_HOPS || self.0.iter().any(|id| identity.is(*id))
    }

    /// The header's value when `next` sends the request on.
    pub fn then(&self, next: HydrantId) -> String {
        let members = self.0.iter().chain([&next]).map(|id| format!("1.1 {PSEUDONYM}{id}"));
        members.collect::<Vec<_>>().join(", ")
    }
}

/// `received-protocol RWS received-by`, of which a hydrant is the second.
fn hydrant(member: &[u8]) -> Option<HydrantId> {
    let mut words = member.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let (_protocol, by) = (words.next()?, words.next()?);
    let id = by.strip_prefix(PSEUDONYM.as_bytes())?;
    Ulid::from_string(std::str::from_utf8(id).ok()?).ok().map(HydrantId)
}

/// Comments nest, and may hold commas. One that never ends takes the rest with it.
fn without_comments(value: &[u8]) -> Vec<u8> {
    let (mut outside, mut depth) = (Vec::new(), 0_usize);
    let mut bytes = value.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' if depth > 0 => drop(bytes.next()),
            b'(' => depth += 1,
            b')' if depth > 0 => depth -= 1,
            _ if depth == 0 => outside.push(byte),
            _ => {}
        }
    }
    outside
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "01J0000000000000000000000A";
    const TWO: &str = "01J0000000000000000000000B";

    fn read(values: &[&str]) -> String {
        let via = Via::read(values.iter().map(|value| value.as_bytes()));
        via.0.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn hydrants_are_read_from_whatever_else_is_there() {
        let both = format!("{ONE} {TWO}");
        for (values, expected) in [
            (vec![], ""),
            (vec!["1.1 nginx"], ""),
            (vec!["1.1 hydrant-01J0000000000000000000000A"], ONE),
            (vec!["HTTP/2 hydrant-01j0000000000000000000000a"], ONE),
            (vec!["1.1 hydrant-01J0000000000000000000000A (a, b \\) (c)), 1.0 x"], ONE),
            (vec!["1.1 a (1.1 hydrant-01J0000000000000000000000A)"], ""),
            (vec!["1.1 a (, 1.1 hydrant-01J0000000000000000000000A"], ""),
            (vec!["1.1 a (\\", "1.1\thydrant-01J0000000000000000000000A"], ONE),
            (
                vec![
                    "1.1 hydrant-01J0000000000000000000000A,1.1 x , ,\
                     1.1  hydrant-01J0000000000000000000000B",
                ],
                &*both,
            ),
            (
                vec![
                    "1.1 hydrant-01J0000000000000000000000A",
                    "1.1 hydrant-01J0000000000000000000000B",
                ],
                &*both,
            ),
            (vec!["hydrant-01J0000000000000000000000A"], ""),
            (vec!["1.1 hydrant-01J0000000000000000000000"], ""),
            (vec!["1.1 hydrant-"], ""),
            (vec!["1.1 hydrant-01J000000000000000000000\u{e9}"], ""),
            (vec![")) 1.1 hydrant-01J0000000000000000000000A"], ""),
            (vec!["\\("], ""),
        ] {
            assert_eq!(read(&values), expected, "{values:?}");
        }
    }

    #[test]
    fn what_is_sent_on_is_read_again() {
        let via = Via::read([format!("1.1 hydrant-{ONE}, 1.1 nginx (x)").as_bytes()]);
        let two = HydrantId::try_from(TWO.to_owned()).unwrap();
        assert_eq!(via.then(two), format!("1.1 hydrant-{ONE}, 1.1 hydrant-{TWO}"));
        assert_eq!(read(&[&via.then(two)]), format!("{ONE} {TWO}"));
    }

    #[test]
    fn a_megabyte_of_members_is_a_circle_and_costs_little() {
        let one = format!("1.1 hydrant-{ONE}, ");
        let many = one.repeat(1024 * 1024 / one.len());
        let via = Via::read([many.as_bytes()]);
        assert_eq!(via.0.len(), MAX_HOPS + 1);
        assert!(via.is_circle(&Identity::default()));
        let few = Via::read([one.repeat(MAX_HOPS).as_bytes()]);
        assert!(!few.is_circle(&Identity::default()));
    }

    #[test]
    fn a_process_knows_what_it_sent_before_it_knew_its_hydrant() {
        let identity = Identity::default();
        let before = Via::read([Via::default().then(identity.current()).as_bytes()]);
        let hydrant = HydrantId::generate();
        assert!(before.is_circle(&identity));
        identity.clone().learn(hydrant);
        let after = Via::read([Via::default().then(identity.current()).as_bytes()]);
        assert_eq!(after, Via(vec![hydrant]));
        assert!(before.is_circle(&identity) && after.is_circle(&identity));
        assert!(!after.is_circle(&Identity::default()));
    }
}
