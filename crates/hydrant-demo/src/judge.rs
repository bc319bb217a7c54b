//! What has to be so for the demo to succeed. Pure: it looks at what was observed.

use crate::{pull::Pulled, upstream::Asked, webhook::Announced};
use hydrant_proto::Digest;
use std::{collections::BTreeSet, ops::RangeInclusive};

/// Upstream bytes per byte of the image with which "each byte once" holds; bodies of errors and of
/// pings count as well.
const AMPLIFICATION: RangeInclusive<f64> = 1.0..=1.01;

/// What the upstream has.
#[derive(Clone, Debug)]
pub struct Original {
    pub index: Digest,
    pub platforms: usize,
    /// Every manifest and blob.
    pub content: BTreeSet<Digest>,
    /// Of all content.
    pub bytes: u64,
    /// What a right pull brings.
    pub pulled: Pulled,
}

/// What happened.
#[derive(Clone, Debug)]
pub struct Observed {
    pub cold: Pulled,
    pub announced: Announced,
    /// Until the upstream was cut off.
    pub asked: Asked,
    pub warm: Pulled,
    /// Requests that hydrant tried to send while the upstream was cut off.
    pub asked_while_cut_off: u64,
}

/// One expectation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub holds: bool,
    /// What was expected, and what was seen instead when it does not hold.
    pub text: String,
}

/// Bytes that the upstream sent, per byte of the image.
pub fn amplification(original: &Original, asked: &Asked) -> f64 {
    asked.bytes as f64 / original.bytes as f64
}

/// Every expectation, in the order of events.
pub fn judge(original: &Original, observed: &Observed) -> Vec<Finding> {
    vec![
        pulled("the cold pull", original, &observed.cold),
        signed(&observed.announced),
        announced(original, &observed.announced),
        read_once(original, &observed.asked),
        frugal(original, &observed.asked),
        pulled("the warm pull", original, &observed.warm),
        left_alone(observed.asked_while_cut_off),
    ]
}

fn finding(expected: impl Into<String>, problem: Option<String>) -> Finding {
    let expected = expected.into();
    match problem {
        None => Finding { holds: true, text: expected },
        Some(problem) => Finding { holds: false, text: format!("{expected}: {problem}") },
    }
}

fn pulled(which: &str, original: &Original, pulled: &Pulled) -> Finding {
    let expected = format!("{which} brought what the upstream has, digest by digest");
    let right = &original.pulled;
    let problem = if pulled.manifest != right.manifest {
        Some(format!("the manifest is {}, not {}", pulled.manifest, right.manifest))
    } else if pulled.blobs != right.blobs {
        let differing = pulled.blobs.symmetric_difference(&right.blobs);
        Some(format!("these blobs are missing or foreign: {}", list(differing)))
    } else if pulled.bytes != right.bytes {
        Some(format!("{} bytes, not {}", pulled.bytes, right.bytes))
    } else {
        None
    };
    finding(expected, problem)
}

fn signed(announced: &Announced) -> Finding {
    finding("the webhook's signature verifies", announced.signature.clone().err())
}

fn announced(original: &Original, announced: &Announced) -> Finding {
    let expected =
        format!("the webhook names the image, with all {} platforms", original.platforms);
    let problem = if announced.digest != original.index.to_string() {
        Some(format!("it names {:?}, not {}", announced.digest, original.index))
    } else if announced.platforms != original.platforms {
        Some(format!("it names {} platforms", announced.platforms))
    } else {
        None
    };
    finding(expected, problem)
}

fn read_once(original: &Original, asked: &Asked) -> Finding {
    let count = original.content.len();
    let expected = format!("the upstream was asked once for each of {count} manifests and blobs");
    let times = |digest: &Digest| asked.reads.get(digest).copied().unwrap_or(0);
    let wrong = original.content.iter().filter(|digest| times(digest) != 1);
    let wrong: Vec<_> = wrong.map(|digest| format!("{digest} {} times", times(digest))).collect();
    finding(expected, (!wrong.is_empty()).then(|| wrong.join(", ")))
}

fn frugal(original: &Original, asked: &Asked) -> Finding {
    let problem = (!AMPLIFICATION.contains(&amplification(original, asked)))
        .then(|| format!("{} bytes were, of an image of {}", asked.bytes, original.bytes));
    finding("every byte was fetched once", problem)
}

fn left_alone(requests: u64) -> Finding {
    let problem = (requests > 0).then(|| format!("{requests} requests were tried"));
    finding("the warm pull asked the upstream nothing", problem)
}

fn list<'d>(digests: impl Iterator<Item = &'d Digest>) -> String {
    digests.map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn digests(names: &[&str]) -> BTreeSet<Digest> {
        names.iter().map(|name| Digest::of(name.as_bytes())).collect()
    }

    fn original() -> Original {
        let pulled =
            Pulled { manifest: Digest::of(b"child"), blobs: digests(&["a", "b"]), bytes: 300 };
        let content = digests(&["index", "child", "a", "b"]);
        Original { index: Digest::of(b"index"), platforms: 3, content, bytes: 1_000, pulled }
    }

    fn good() -> Observed {
        let original = original();
        let reads: BTreeMap<_, _> = original.content.iter().map(|d| (d.clone(), 1)).collect();
        Observed {
            cold: original.pulled.clone(),
            announced: Announced {
                digest: original.index.to_string(),
                platforms: 3,
                signature: Ok(()),
            },
            asked: Asked { gets: reads.len(), heads: 2, bytes: 1_000, reads },
            warm: original.pulled,
            asked_while_cut_off: 0,
        }
    }

    #[test]
    fn what_is_as_it_should_be_passes() {
        let findings = judge(&original(), &good());
        assert_eq!(findings.len(), 7);
        assert!(findings.iter().all(|finding| finding.holds), "{findings:#?}");
    }

    #[test]
    fn each_thing_that_goes_wrong_breaks_its_own_expectation() {
        type Spoil = fn(&mut Observed);
        let cases: [(&str, Spoil); 13] = [
            ("the cold pull", |o| o.cold.manifest = Digest::of(b"other")),
            ("the cold pull", |o| o.cold.blobs.extend(digests(&["c"]))),
            ("the warm pull", |o| o.warm.blobs = digests(&["a"])),
            ("the warm pull", |o| o.warm.bytes += 1),
            ("signature", |o| o.announced.signature = Err("no signature fits".into())),
            ("names the image", |o| o.announced.digest = Digest::of(b"other").to_string()),
            ("names the image", |o| o.announced.platforms = 1),
            ("asked once", |o| o.asked.reads.retain(|d, _| *d != Digest::of(b"a"))),
            ("asked once", |o| o.asked.reads.extend([(Digest::of(b"a"), 2)])),
            ("asked once", |o| o.asked.reads.clear()),
            ("fetched once", |o| o.asked.bytes = 1_011),
            ("fetched once", |o| o.asked.bytes = 999),
            ("asked the upstream nothing", |o| o.asked_while_cut_off = 1),
        ];
        for (expectation, spoil) in cases {
            let mut observed = good();
            spoil(&mut observed);
            let broken: Vec<_> =
                judge(&original(), &observed).into_iter().filter(|f| !f.holds).collect();
            assert_eq!(broken.len(), 1, "{broken:#?}");
            assert!(broken[0].text.contains(expectation), "{} / {expectation}", broken[0].text);
            assert!(broken[0].text.contains(": "), "{} does not say what was seen", broken[0].text);
        }
    }
}
