//! `WWW-Authenticate`: which of the offered schemes we answer, and where its tokens come from.

use http::{HeaderMap, header::WWW_AUTHENTICATE};
use http_auth::{ChallengeParser, ChallengeRef};

/// How an upstream wants us to authenticate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// A user name and a password, to the upstream itself.
    Basic,
    /// A token from the service at `realm`. All of it is the upstream's word, unchecked.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
        /// The credential is known, but does not reach this far.
        insufficient_scope: bool,
    },
}

/// Longest challenge read, in bytes.
const MAX_BYTES: usize = 4096;

impl Challenge {
    /// The challenge of a 401 that we can answer, Bearer before Basic.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let offered: Vec<Self> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .filter(|text| text.len() <= MAX_BYTES)
            .flat_map(|text| ChallengeParser::new(text).map_while(Result::ok))
            .filter_map(|challenge| Self::known(&challenge))
            .collect();
        let bearer = offered.iter().position(|found| matches!(found, Self::Bearer { .. }));
        offered.into_iter().nth(bearer.unwrap_or(0))
    }

    fn known(challenge: &ChallengeRef<'_>) -> Option<Self> {
        if challenge.scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !challenge.scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let param = |wanted: &str| {
            let mut params = challenge.params.iter();
            let found = params.find(|(name, _)| name.eq_ignore_ascii_case(wanted))?;
            Some(found.1.to_unescaped())
        };
        Some(Self::Bearer {
            realm: param("realm")?,
            service: param("service"),
            scope: param("scope"),
            insufficient_scope: param("error").is_some_and(|e| e == "insufficient_scope"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn of(lines: &[&str]) -> Option<Challenge> {
        let values = lines.iter().map(|line| HeaderValue::from_str(line).unwrap());
        Challenge::of(&values.map(|value| (WWW_AUTHENTICATE, value)).collect())
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
            insufficient_scope: false,
        }
    }

    #[test]
    fn what_registries_send_is_understood() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/node:pull""#;
        let expected = bearer(
            "https://auth.docker.io/token",
            Some("registry.docker.io"),
            Some("repository:library/node:pull"),
        );
        assert_eq!(of(&[hub]), Some(expected));
        assert_eq!(of(&[r#"Basic realm="lab""#]), Some(Challenge::Basic));
        let both = [r#"Basic realm="x""#, r#"bEARER realm="https://r/t""#];
        assert_eq!(of(&both), Some(bearer("https://r/t", None, None)));
        let one_line = r#"Negotiate, Basic realm="x", Bearer realm="https://r/t""#;
        assert_eq!(of(&[one_line]), Some(bearer("https://r/t", None, None)));
        let scoped = r#"Bearer realm="https://r/t",error="insufficient_scope""#;
        assert!(matches!(of(&[scoped]), Some(Challenge::Bearer { insufficient_scope: true, .. })));
    }

    #[test]
    fn junk_is_no_challenge() {
        for junk in ["", "Bearer", r#"Bearer service="x""#, "Digest realm=\"x\"", "\"\"", ",,,="] {
            assert_eq!(of(&[junk]), None, "{junk:?}");
        }
        let long = format!(r#"Bearer realm="https://r/{}""#, "a".repeat(5000));
        assert_eq!(of(&[&long]), None);
        assert_eq!(of(&[]), None);
    }
}
