//! URLs as they are written: refused for what [`Url`] would silently tidy away, so that nothing
//! but what was written is ever asked.

use serde::{Deserialize, Deserializer, de::Error};
use url::Url;

/// For `#[serde(deserialize_with)]`.
pub fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Url, D::Error> {
    let text = String::deserialize(deserializer)?;
    // The text is not repeated: a URL may hold a secret, and this may end in a log.
    parse(&text).map_err(|reason| D::Error::custom(format!("the URL {reason}")))
}

fn parse(text: &str) -> Result<Url, String> {
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("contains a space, a line end or a control character".to_owned());
    }
    if text.contains('\\') {
        return Err("contains a backslash; write `/`".to_owned());
    }
    let url = Url::parse(text).map_err(|error| format!("is not valid: {error}"))?;
    // `https:host` and `https:///host` would both be read as `https://host`.
    let after = text.split_once("://").map(|(_, after)| after);
    let authority = after.is_some_and(|after| !after.starts_with('/'));
    if matches!(url.scheme(), "http" | "https") && !authority {
        return Err("names no host; write https://host[:port][/path]".to_owned());
    }
    if url.port() == Some(0) {
        return Err("has port 0, where nothing can listen".to_owned());
    }
    if path(text).split('/').any(is_dots) {
        return Err("has a `.` or `..` in its path; write the path it leads to".to_owned());
    }
    Ok(url)
}

/// What is between the host and the query.
fn path(text: &str) -> &str {
    let end = text.find(['?', '#']).unwrap_or(text.len());
    let rest = text[..end].split_once("://").map_or("", |(_, rest)| rest);
    rest.split_once('/').map_or("", |(_, path)| path)
}

/// `.` and `..`, also escaped, as URLs read them.
fn is_dots(segment: &str) -> bool {
    matches!(segment.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_tidied_away_is_refused() {
        for (text, reason) in [
            ("https://a.example\r\n", "line end"),
            ("https://a.exa\nmple/", "line end"),
            (" https://a.example", "space"),
            ("https://a.example/b c", "space"),
            ("https://a.example/\t", "control"),
            ("https://a.example/\u{0}", "control"),
            ("https://a.example/\u{7f}", "control"),
            ("https://a.example/\u{a0}", "space"),
            ("https:\\\\a.example", "backslash"),
            ("https:///a.example", "no host"),
            ("https:a.example", "no host"),
            ("https:/a.example", "no host"),
            ("https://", "not valid"),
            ("https://a.example:0", "port 0"),
            ("https://a.example:0/v2", "port 0"),
            ("https://a.example:00", "port 0"),
            ("https://a.example/../b", "`..`"),
            ("https://a.example/b/..", "`..`"),
            ("https://a.example/%2E./b", "`..`"),
            ("https://a.example/./b", "`..`"),
        ] {
            let refused = parse(text).expect_err(text);
            assert!(refused.contains(reason), "{text:?}: {refused}");
        }
    }

    #[test]
    fn what_is_fine_stays() {
        for text in [
            "https://a.example",
            "http://[::1]:5000/prefix/",
            "https://a.example/..b/c../...",
            "https://a.example/hook?to=../b",
            "https://xn--bcher-kva.example:8443",
        ] {
            assert_eq!(parse(text), Ok(text.parse().unwrap()), "{text}");
        }
    }
}
