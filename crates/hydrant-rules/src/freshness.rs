//! How long a tag is served without asking the upstream, what happens when that time is over, and
//! which tags are never asked about at all.

use crate::{duration::Span, resources::Rule, tag_pattern::TagPattern};
use hydrant_proto::Tag;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Terms for the tags of a rule that fit a pattern; what is left out is as the rule has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagTerms {
    pub pattern: TagPattern,
    /// Once local, such a tag is never asked about again, and stays though the upstream moves it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub immutable: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fresh_for: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revalidate_for: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check_within: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_for: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when_gone: Option<WhenGone>,
}

/// What becomes of a local tag that the upstream says it does not have any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenGone {
    /// Served stale, as while the upstream is down, until `stale_for` ends.
    #[default]
    Serve,
    /// Answered 404 like the upstream does. Its digest is served all the same.
    Refuse,
}

/// The terms one tag is served under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Never asked about once it is local.
    Immutable,
    Checked(Checks),
}

/// When the upstream is asked about a tag, and for how long it may fail to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checks {
    /// Served without asking.
    pub fresh_for: Duration,
    /// For so long after that, served at once, and asked behind the answer.
    pub revalidate_for: Duration,
    /// Longest wait of a client for the upstream's word, when there is something local to serve.
    pub check_within: Duration,
    /// Age up to which it is served though the upstream cannot tell.
    pub stale_for: Duration,
    pub when_gone: WhenGone,
}

/// Whether the upstream is to be asked about a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    No,
    /// Behind the answer.
    Behind,
    /// Before the answer.
    First,
}

impl Freshness {
    /// What is due of a tag that was confirmed so long ago.
    pub fn due(&self, age: Duration) -> Due {
        match self {
            Self::Immutable => Due::No,
            Self::Checked(checks) if age < checks.fresh_for => Due::No,
            Self::Checked(checks)
                if age < checks.fresh_for.saturating_add(checks.revalidate_for) =>
            {
                Due::Behind
            }
            Self::Checked(_) => Due::First,
        }
    }
}

impl Rule {
    /// The terms of `tag`: of the first pattern that fits, filled up with the rule's own.
    pub fn freshness(&self, tag: &Tag) -> Freshness {
        let terms = self.terms_of(tag);
        if terms.is_some_and(|terms| terms.immutable) {
            return Freshness::Immutable;
        }
        let span =
            |own: Span, of: fn(&TagTerms) -> Option<Span>| terms.and_then(of).unwrap_or(own).0;
        Freshness::Checked(Checks {
            fresh_for: span(self.fresh_for, |terms| terms.fresh_for),
            revalidate_for: span(self.revalidate_for, |terms| terms.revalidate_for),
            check_within: span(self.check_within, |terms| terms.check_within),
            stale_for: span(self.stale_for, |terms| terms.stale_for),
            when_gone: terms.and_then(|terms| terms.when_gone).unwrap_or(self.when_gone),
        })
    }

    /// The pattern that decides on `tag`.
    pub fn terms_of(&self, tag: &Tag) -> Option<&TagTerms> {
        self.tags.iter().find(|terms| terms.pattern.fits(tag))
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Resources, Table};
    use std::path::Path;

    const SECOND: Duration = Duration::from_secs(1);

    fn rule(more: &str) -> Rule {
        let text = format!(
            "[[upstream]]\nname='a'\nendpoint='https://a.example'\n[[rule]]\nname='a'\n\
             downstream='a/*'\nupstream='a'\n{more}"
        );
        let resources = Resources::from_toml(&text, Path::new("/")).unwrap();
        Table::compile(resources).unwrap().rule("a").unwrap().clone()
    }

    fn checks(rule: &Rule, tag: &str) -> Checks {
        match rule.freshness(&tag.parse().unwrap()) {
            Freshness::Checked(checks) => checks,
            Freshness::Immutable => panic!("{tag} is immutable"),
        }
    }

    #[test]
    fn the_first_pattern_that_fits_decides_and_the_rule_fills_the_gaps() {
        let rule = rule(
            "fresh_for='5m'\nstale_for='2d'\n\
             [[rule.tags]]\npattern='*-rc*'\nfresh_for='10s'\nwhen_gone='refuse'\n\
             [[rule.tags]]\npattern='semver'\nimmutable=true\n\
             [[rule.tags]]\npattern='digest-like'\nimmutable=true\n\
             [[rule.tags]]\npattern='nightly'\nrevalidate_for='1h'\ncheck_within='500ms'\n",
        );
        for tag in ["v1.2.3", "1.2.3-alpine", "sha-0a1b2c3"] {
            assert_eq!(rule.freshness(&tag.parse().unwrap()), Freshness::Immutable, "{tag}");
        }
        let candidate = checks(&rule, "1.2.3-rc1");
        assert_eq!(candidate.fresh_for, 10 * SECOND);
        assert_eq!(candidate.stale_for, 2 * 24 * 60 * 60 * SECOND);
        assert_eq!(candidate.when_gone, WhenGone::Refuse);
        let nightly = checks(&rule, "nightly");
        assert_eq!((nightly.fresh_for, nightly.revalidate_for), (300 * SECOND, 3600 * SECOND));
        assert_eq!(nightly.check_within, SECOND / 2);
        let other = checks(&rule, "latest");
        assert_eq!((other.revalidate_for, other.check_within), (Duration::ZERO, 2 * SECOND));
        assert_eq!(other.when_gone, WhenGone::Serve);
    }

    #[test]
    fn what_is_due_follows_from_the_age() {
        let terms = Freshness::Checked(checks(&rule("fresh_for='5m'\nrevalidate_for='1m'\n"), "x"));
        for (age, due) in [
            (0, Due::No),
            (299, Due::No),
            (300, Due::Behind),
            (359, Due::Behind),
            (360, Due::First),
        ] {
            assert_eq!(terms.due(Duration::from_secs(age)), due, "{age}");
        }
        let always = Freshness::Checked(checks(&rule("fresh_for='0s'\n"), "x"));
        assert_eq!(always.due(Duration::ZERO), Due::First);
        assert_eq!(Freshness::Immutable.due(Duration::MAX), Due::No);
    }
}
