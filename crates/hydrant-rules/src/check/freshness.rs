//! Checks of how long the tags of a rule are fresh.

use super::{Found, LIMITS};
use crate::{duration::Span, freshness::TagTerms, resources::Rule};
use std::{collections::HashSet, time::Duration};

const YEAR: u64 = 366 * 24 * 60 * 60;
/// Longest time that a client may be made to wait for a check, in seconds.
const LONGEST_WAIT: u64 = 30;

impl Found {
    pub(super) fn freshness(&mut self, rule: &Rule) {
        let at = format!("rule.{}", rule.name);
        self.windows(
            &at,
            Windows {
                fresh_for: Some(rule.fresh_for),
                revalidate_for: Some(rule.revalidate_for),
                check_within: Some(rule.check_within),
                stale_for: Some(rule.stale_for),
            },
        );
        self.tags(&format!("{at}.tags"), &rule.tags);
    }

    fn tags(&mut self, at: &str, all: &[TagTerms]) {
        if all.len() > LIMITS.tags_per_rule {
            let message = format!("{} patterns are more than {}", all.len(), LIMITS.tags_per_rule);
            self.wrong(at, message, "use `*` in fewer patterns");
        }
        let (mut seen, mut taken) = (HashSet::new(), false);
        for terms in all {
            let at = format!("{at}.{}", terms.pattern);
            if !seen.insert(&terms.pattern) {
                self.wrong(format!("{at}.pattern"), "is there twice", "drop one of the two");
            } else if taken {
                let remedy = "put it before the `*`, since the first pattern that fits decides";
                self.wrong(format!("{at}.pattern"), "is never reached", remedy);
            }
            taken |= terms.pattern.takes_all();
            self.terms(&at, terms);
        }
    }

    fn terms(&mut self, at: &str, terms: &TagTerms) {
        let windows = Windows {
            fresh_for: terms.fresh_for,
            revalidate_for: terms.revalidate_for,
            check_within: terms.check_within,
            stale_for: terms.stale_for,
        };
        let says = windows.named().into_iter().chain(terms.when_gone.map(|_| "when_gone")).next();
        match (terms.immutable, says) {
            (true, Some(field)) => {
                let message = "is never used: an immutable tag is not checked";
                self.wrong(format!("{at}.{field}"), message, "drop it, or `immutable`");
            }
            (false, None) => {
                let remedy = "write `immutable = true`, `fresh_for` or another field of freshness";
                self.wrong(at, "changes nothing for its tags", remedy);
            }
            _ => {}
        }
        self.windows(at, windows);
    }

    fn windows(&mut self, at: &str, windows: Windows) {
        let Windows { fresh_for, revalidate_for, check_within, stale_for } = windows;
        for (field, span, most) in [
            ("fresh_for", fresh_for, YEAR),
            ("revalidate_for", revalidate_for, YEAR),
            ("stale_for", stale_for, 10 * YEAR),
        ] {
            if let Some(span) = span {
                self.span(&format!("{at}.{field}"), span, 0, most);
            }
        }
        if let Some(span) = check_within
            && !(Duration::from_millis(100)..=Duration::from_secs(LONGEST_WAIT)).contains(&span.0)
        {
            let message = format!("must be 100ms to {}", Span::from_secs(LONGEST_WAIT));
            self.wrong(format!("{at}.check_within"), message, "leave it out for 2s");
        }
    }
}

/// The lengths of time of a rule or of a pattern of it, as far as they are written.
#[derive(Clone, Copy)]
struct Windows {
    fresh_for: Option<Span>,
    revalidate_for: Option<Span>,
    check_within: Option<Span>,
    stale_for: Option<Span>,
}

impl Windows {
    fn named(&self) -> Option<&'static str> {
        [
            ("fresh_for", self.fresh_for),
            ("revalidate_for", self.revalidate_for),
            ("check_within", self.check_within),
            ("stale_for", self.stale_for),
        ]
        .into_iter()
        .find_map(|(field, span)| span.map(|_| field))
    }
}

#[cfg(test)]
mod tests {
    use crate::{Resources, Table};
    use std::path::Path;

    fn problem(more: &str) -> String {
        let text = format!(
            "[[upstream]]\nname='a'\nendpoint='https://a.example'\n[[rule]]\nname='a'\n\
             downstream='a/*'\nupstream='a'\n{more}"
        );
        let read = Resources::from_toml(&text, Path::new("/"));
        match read.and_then(Table::compile) {
            Ok(_) => String::new(),
            Err(problems) => problems.to_string(),
        }
    }

    #[test]
    fn wrong_terms_are_told_with_field_and_remedy() {
        let tags = |lines: &str| format!("[[rule.tags]]\n{lines}\n");
        let many: String =
            (0..33).map(|n| tags(&format!("pattern='{n}'\nimmutable=true"))).collect();
        for (more, expected) in [
            ("check_within='31s'".to_owned(), "rule.a.check_within: must be 100ms to 30s"),
            ("check_within='1ms'".to_owned(), "rule.a.check_within: must be 100ms to 30s"),
            ("revalidate_for='3y'".to_owned(), "rule.a.revalidate_for: must be 0s to 1y"),
            (tags("pattern='x'"), "rule.a.tags.x: changes nothing for its tags; write"),
            (
                tags("pattern='semver'\nimmutable=true\nfresh_for='1m'"),
                "rule.a.tags.semver.fresh_for: is never used",
            ),
            (
                tags("pattern='semver'\nimmutable=true\nwhen_gone='serve'"),
                "rule.a.tags.semver.when_gone: is never used",
            ),
            (tags("pattern='x y'\nimmutable=true"), "is no pattern of tags; write"),
            (tags("pattern='x'\nimmutable=true\nfresh=1"), "unknown field `fresh`"),
            (tags("pattern='x'\nfresh_for='-1s'"), "is not a duration"),
            (tags("pattern='x'\nwhen_gone='maybe'"), "expected `serve` or `refuse`"),
            (
                tags("pattern='*'\nimmutable=true") + &tags("pattern='x'\nfresh_for='1m'"),
                "rule.a.tags.x.pattern: is never reached; put it before the `*`",
            ),
            (
                tags("pattern='x'\nimmutable=true") + &tags("pattern='x'\nfresh_for='1m'"),
                "rule.a.tags.x.pattern: is there twice",
            ),
            (many, "rule.a.tags: 33 patterns are more than 32"),
        ] {
            let told = problem(&more);
            assert!(told.contains(expected), "{more}: {told}");
        }
        assert_eq!(problem(&tags("pattern='x'\nfresh_for='0s'")), "");
    }
}
