//! Which children of an index a hydration takes. Pure.

use hydrant_proto::{Descriptor, Digest, Platform};
use hydrant_rules::Platforms;
use hydrant_store::Wanted;

/// What is wanted of an index: the rule's policy, and whatever was asked for beyond it.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    all: bool,
    platforms: Vec<Platform>,
    children: Vec<Digest>,
}

impl Selection {
    /// `more` are platforms of the job itself and those that are local already.
    pub fn new(
        policy: &Platforms,
        wanted: impl IntoIterator<Item = Wanted>,
        more: impl IntoIterator<Item = Platform>,
    ) -> Self {
        let (all, mut platforms) = match policy {
            Platforms::All => (true, Vec::new()),
            Platforms::These(list) => (false, list.clone()),
            Platforms::Pulled => (false, Vec::new()),
        };
        platforms.extend(more);
        let mut selection = Self { all, platforms, children: Vec::new() };
        for wanted in wanted {
            selection.want(wanted);
        }
        selection
    }

    fn want(&mut self, wanted: Wanted) {
        match wanted {
            Wanted::Whole => {}
            Wanted::All => self.all = true,
            Wanted::Platform(platform) => self.platforms.push(platform),
            Wanted::Child(digest) => self.children.push(digest),
        }
    }

    /// Whether this child of an index is taken. One without a platform may be an index itself, and
    /// is then taken for what it holds.
    pub fn takes(&self, child: &Descriptor) -> bool {
        let by_platform = |platform: &Platform| self.platforms.iter().any(|p| p.accepts(platform));
        self.all
            || self.children.contains(&child.digest)
            || child.platform.as_ref().is_some_and(by_platform)
            || child.media_type.contains("index")
            || child.media_type.contains("manifest.list")
    }

    /// The platforms asked for that none of `children` offers.
    pub fn missing<'a>(&'a self, children: &'a [Descriptor]) -> impl Iterator<Item = &'a Platform> {
        self.platforms.iter().filter(|wish| {
            !children.iter().filter_map(|child| child.platform.as_ref()).any(|p| wish.accepts(p))
        })
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
        let selection = Selection::new(&policy, wanted, more);
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

    #[test]
    fn a_wish_no_child_meets_is_named() {
        let policy = Platforms::These(vec!["linux/s390x".parse().unwrap()]);
        let selection = Selection::new(&policy, [], []);
        let children = [child("amd64", Some("linux/amd64"))];
        let missing: Vec<_> = selection.missing(&children).map(ToString::to_string).collect();
        assert_eq!(missing, ["linux/s390x"]);
    }
}
