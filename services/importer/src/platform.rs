//! Which children of an index a hydration takes. Pure.

use hydrant_proto::{Descriptor, Digest, Platform};
use hydrant_rules::Platforms;
use hydrant_store::Wanted;
use std::collections::BTreeSet;

/// What is wanted of an index: the rule's policy, and whatever was asked for beyond it.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    all: bool,
    /// By policy, or local already: taken where the index has them.
    policy: Vec<Platform>,
    /// Asked for by name: missed when the index has them not.
    wishes: Vec<Platform>,
    children: Vec<Digest>,
}

impl Selection {
    /// `wishes` are platforms of the job itself, `local` those that are there from before.
    pub fn new(
        policy: &Platforms,
        wanted: impl IntoIterator<Item = Wanted>,
        wishes: impl IntoIterator<Item = Platform>,
        local: impl IntoIterator<Item = Platform>,
    ) -> Self {
        let (all, mut policy) = match policy {
            Platforms::All => (true, Vec::new()),
            Platforms::These(list) => (false, list.clone()),
            Platforms::Pulled => (false, Vec::new()),
        };
        policy.extend(local);
        let wishes = wishes.into_iter().collect();
        let mut selection = Self { all, policy, wishes, children: Vec::new() };
        for wanted in wanted {
            selection.want(wanted);
        }
        selection
    }

    fn want(&mut self, wanted: Wanted) {
        match wanted {
            Wanted::Whole | Wanted::Refresh => {}
            Wanted::All => self.all = true,
            Wanted::Platform(platform) => self.wishes.push(platform),
            Wanted::Child(digest) => self.children.push(digest),
        }
    }

    /// Whether this child of an index is taken. One without a platform may be an index itself, and
    /// is then taken for what it holds.
    pub fn takes(&self, child: &Descriptor) -> bool {
        let mut platforms = self.policy.iter().chain(&self.wishes);
        self.all
            || self.children.contains(&child.digest)
            || child.platform.as_ref().is_some_and(|has| platforms.any(|wish| wish.accepts(has)))
            || child.media_type.contains("index")
            || child.media_type.contains("manifest.list")
    }

    /// What was asked for and none of `children` offers: each wish by name, and the whole policy
    /// when nothing of it is there.
    pub fn missing(&self, children: &[Descriptor]) -> BTreeSet<&Platform> {
        let offered = |wish: &&Platform| {
            children.iter().filter_map(|child| child.platform.as_ref()).any(|has| wish.accepts(has))
        };
        let wishes = self.wishes.iter().filter(|wish| !offered(wish));
        let nothing =
            !self.all && self.wishes.is_empty() && !self.policy.iter().any(|p| offered(&p));
        wishes.chain(self.policy.iter().filter(|_| nothing)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child(of: &str, platform: Option<&str>) -> Descriptor {
        Descriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            digest: Digest::of(of.as_bytes()),
            size: 1,
            platform: platform.map(|text| text.parse().unwrap()),
        }
    }

    fn taken(policy: Platforms, wanted: Vec<Wanted>, more: &[&str]) -> Vec<usize> {
        let children = [
            child("amd64", Some("linux/amd64")),
            child("arm64", Some("linux/arm64/v8")),
            child("attestation", None),
        ];
        let more = more.iter().map(|text| text.parse().unwrap());
        let selection = Selection::new(&policy, wanted, more, []);
        (0..3).filter(|&index| selection.takes(&children[index])).collect()
    }

    #[test]
    fn the_policy_and_the_wishes_add_up() {
        let arm: Platform = "linux/arm64".parse().unwrap();
        let attestation = Digest::of(b"attestation");
        for (policy, wanted, more, expected) in [
            (Platforms::All, vec![], &[][..], vec![0, 1, 2]),
            (Platforms::Pulled, vec![], &[], vec![]),
            (Platforms::Pulled, vec![Wanted::Whole], &["linux/amd64"], vec![0]),
            (Platforms::Pulled, vec![Wanted::Platform(arm.clone())], &[], vec![1]),
            (Platforms::Pulled, vec![Wanted::Child(attestation)], &[], vec![2]),
            (Platforms::Pulled, vec![Wanted::All], &[], vec![0, 1, 2]),
            (Platforms::These(vec![arm]), vec![], &["linux/amd64"], vec![0, 1]),
        ] {
            assert_eq!(taken(policy, wanted, more), expected);
        }
    }

    fn missing(policy: &[&str], wishes: &[&str]) -> Vec<String> {
        let parsed = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        let wishes: Vec<Platform> = parsed(wishes);
        let selection = Selection::new(&Platforms::These(parsed(policy)), [], wishes, []);
        let children = [child("amd64", Some("linux/amd64"))];
        selection.missing(&children).into_iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_wish_must_be_met_but_of_a_policy_any_part_will_do() {
        assert_eq!(missing(&["linux/amd64", "linux/arm64"], &[]), [""; 0]);
        assert_eq!(missing(&["linux/arm64", "linux/s390x"], &[]), ["linux/arm64", "linux/s390x"]);
        assert_eq!(missing(&["linux/arm64"], &["linux/amd64"]), [""; 0]);
        assert_eq!(missing(&[], &["linux/arm64", "linux/arm64"]), ["linux/arm64"]);
    }
}
