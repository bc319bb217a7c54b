//! Patterns of tags: a text in which `*` stands for anything, or the name of a shape.

use hydrant_proto::Tag;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Longest tag (OCI distribution spec), and so the longest pattern worth writing.
const MAX_LEN: usize = 128;

/// Which tags are meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum TagPattern {
    /// `1.2.3`, `v1.2.3-rc.1`: three numbers and maybe a suffix, as Semantic Versioning has it.
    Semver,
    /// The hash of a commit or of content: 40, 64 or 128 hex digits, or 7 and more with both letters
    /// and digits; maybe behind `sha-`, `git-` or `g`. Not the `sha256-<hex>` under which registries
    /// keep what refers to a manifest: that grows.
    DigestLike,
    Text(Box<str>),
}

impl TagPattern {
    pub fn fits(&self, tag: &Tag) -> bool {
        match self {
            Self::Semver => is_semver(tag.as_str()),
            Self::DigestLike => is_digest_like(tag.as_str()),
            Self::Text(text) => fits(text, tag.as_str()),
        }
    }

    /// Whether there is no tag that it does not fit.
    pub fn takes_all(&self) -> bool {
        matches!(self, Self::Text(text) if text.bytes().all(|byte| byte == b'*'))
    }
}

fn is_semver(tag: &str) -> bool {
    let version = tag.strip_prefix('v').unwrap_or(tag);
    let (numbers, suffix) = match version.split_once('-') {
        Some((numbers, suffix)) => (numbers, Some(suffix)),
        None => (version, None),
    };
    let is_number = |part: &str| {
        let is_short = part == "0" || !part.starts_with('0');
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) && is_short
    };
    let is_word = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let parts: Vec<_> = numbers.split('.').collect();
    parts.len() == 3
        && parts.into_iter().all(is_number)
        && suffix.is_none_or(|suffix| suffix.split('.').all(is_word))
}

fn is_digest_like(tag: &str) -> bool {
    let hex = ["sha-", "git-", "g"].iter().find_map(|prefix| tag.strip_prefix(prefix));
    let hex = hex.unwrap_or(tag);
    let is_hex = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let digits = hex.bytes().filter(u8::is_ascii_digit).count();
    // A date such as 20261123 and a word such as `feedface` are no hashes.
    let is_mixed = (1..hex.len()).contains(&digits);
    is_hex && (matches!(hex.len(), 40 | 64 | 128) || (hex.len() >= 7 && is_mixed))
}

/// Whether `text` is `pattern`, in which each `*` stands for any characters or none.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(head) else { return false };
    let mut parts: Vec<_> = rest.split('*').collect();
    let tail = parts.pop().unwrap_or_default();
    // The earliest place of each part leaves most to those after it.
    for part in parts {
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
    }
    text.ends_with(tail)
}

impl FromStr for TagPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "semver" => return Ok(Self::Semver),
            "digest-like" => return Ok(Self::DigestLike),
            _ => {}
        }
        let valid = (1..=MAX_LEN).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-*".contains(&b));
        if valid {
            return Ok(Self::Text(text.into()));
        }
        let shown: String = text.chars().take(80).collect();
        Err(format!(
            "{shown:?} is no pattern of tags; write a tag of at most {MAX_LEN} characters in which \
             * stands for anything, \"semver\" or \"digest-like\""
        ))
    }
}

impl TryFrom<String> for TagPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<TagPattern> for String {
    fn from(pattern: TagPattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for TagPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Semver => "semver",
            Self::DigestLike => "digest-like",
            Self::Text(text) => text,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_take_what_they_say() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        for (pattern, fitting, others) in [
            ("latest", &["latest"][..], &["latest2", "lates"][..]),
            ("*", &["x", "1.2.3"], &[]),
            ("v*.*.*", &["v1.2.3", "v1.2.3.4", "v.."], &["1.2.3", "v1.2", "v1-2-3"]),
            ("*-rc*", &["1-rc1", "-rc"], &["1rc"]),
            ("a*a", &["aa", "aba"], &["a", "ab"]),
            ("*aba", &["ababa", "aba"], &["abab"]),
            (
                "semver",
                &["1.2.3", "v0.10.0", "1.2.3-alpine3.18", "1.2.3-rc.1", "1.0.0--1"],
                &["1.2", "1.2.3.4", "01.2.3", "v1.2.x", "1.2.3-", "1.2.3-a..b", "V1.2.3", "v"],
            ),
            (
                "digest-like",
                &[commit, "0a1b2c3", "sha-0a1b2c3", "git-0a1b2c3", "g0a1b2c3"],
                &["20261123", "feedface", "0a1b2c", "0A1B2C3", "sha256-0a1b2c3", "latest", "sha-"],
            ),
        ] {
            let pattern: TagPattern = pattern.parse().unwrap();
            for (tags, expected) in [(fitting, true), (others, false)] {
                for tag in tags {
                    // Texts that no tag may have stand for the parts of one.
                    let Ok(parsed) = tag.parse::<Tag>() else {
                        continue;
                    };
                    assert_eq!(pattern.fits(&parsed), expected, "{pattern} {tag}");
                }
            }
        }
    }

    #[test]
    fn what_no_tag_can_be_is_no_pattern() {
        for text in ["", "a b", "a/b", "v?", "é", &"a".repeat(129)] {
            assert!(text.parse::<TagPattern>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_star_takes_any_part_of_a_tag(head in "[a-z0-9.]{0,5}", cut in "[a-z0-9.]{0,5}",
                                          tail in "[a-z0-9.]{0,5}") {
            let whole = format!("{head}{cut}{tail}");
            let pattern = format!("{head}*{tail}");
            prop_assert!(fits(&pattern, &whole));
            let stray = format!("{whole}_");
            prop_assert!(!fits(&pattern, &stray) || tail.is_empty());
        }

        #[test]
        fn a_written_pattern_is_read_back(text in "[a-zA-Z0-9._*-]{1,128}") {
            let pattern: TagPattern = text.parse().unwrap();
            prop_assert_eq!(String::from(pattern), text);
        }
    }
}
