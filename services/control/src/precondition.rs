//! Optimistic locking: `ETag`, `If-Match` and `If-None-Match` (RFC 9110, section 13).

use crate::failure::Failure;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use hydrant_rules::{Resource, fingerprint};

/// The entity tag of a resource: its fingerprint.
pub(crate) fn etag(resource: &Resource) -> HeaderValue {
    let tag = format!("\"{}\"", fingerprint(resource));
    HeaderValue::from_str(&tag).expect("a fingerprint is hex")
}

/// What a writer demands of the state it writes over.
#[derive(Clone, Debug, Default)]
pub(crate) struct Demands {
    matches: Option<String>,
    none_matches: Option<String>,
}

impl Demands {
    pub fn of(headers: &HeaderMap) -> Result<Self, Failure> {
        let text = |name: HeaderName| -> Result<Option<String>, Failure> {
            let Some(value) = headers.get(&name) else { return Ok(None) };
            let text = value.to_str().map_err(|_| {
                Failure::invalid(name.as_str(), "is not ASCII", "send the ETag as it was given")
            })?;
            Ok(Some(text.to_owned()))
        };
        Ok(Self { matches: text(header::IF_MATCH)?, none_matches: text(header::IF_NONE_MATCH)? })
    }

    /// Whether what is there (`None`: nothing) is what the writer expects.
    pub fn check(&self, current: Option<&Resource>) -> Result<(), Failure> {
        let tag = current.map(|resource| format!("\"{}\"", fingerprint(resource)));
        let names = |list: &str| match (list.trim(), &tag) {
            (_, None) => false,
            ("*", Some(_)) => true,
            (list, Some(tag)) => list.split(',').any(|given| given.trim() == tag),
        };
        if self.matches.as_deref().is_some_and(|list| !names(list)) {
            let message = "it was changed or deleted since it was read (If-Match)";
            return Err(Failure::Precondition(message.to_owned()));
        }
        if self.none_matches.as_deref().is_some_and(names) {
            let message = "it exists already (If-None-Match)";
            return Err(Failure::Precondition(message.to_owned()));
        }
        Ok(())
    }

    /// Whether a reader has it already.
    pub fn not_modified(&self, resource: &Resource) -> bool {
        self.none_matches.is_some() && self.check(Some(resource)).is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hydrant_rules::Resources;
    use std::path::Path;

    fn upstream() -> Resource {
        let text = "[[upstream]]\nname='lab'\nendpoint='https://lab.example'";
        Resource::Upstream(Resources::from_toml(text, Path::new("/")).unwrap().upstream.remove(0))
    }

    fn demands(name: &'static str, value: &str) -> Demands {
        Demands::of(&HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]))
            .unwrap()
    }

    #[test]
    fn demands_are_met_or_refused() {
        let (lab, tag) = (upstream(), etag(&upstream()).to_str().unwrap().to_owned());
        for (name, value, there, met) in [
            ("if-match", tag.as_str(), true, true),
            ("if-match", "\"other\"", true, false),
            ("if-match", "*", true, true),
            ("if-match", "*", false, false),
            ("if-match", tag.as_str(), false, false),
            ("if-none-match", "*", true, false),
            ("if-none-match", "*", false, true),
            ("if-none-match", "\"other\"", true, true),
            ("if-none-match", &format!("\"other\", {tag}"), true, false),
        ] {
            let current = there.then_some(&lab);
            assert_eq!(demands(name, value).check(current).is_ok(), met, "{name}: {value} {there}");
        }
        assert!(Demands::default().check(None).is_ok());
        assert!(demands("if-none-match", &tag).not_modified(&lab));
        assert!(!demands("if-match", &tag).not_modified(&lab));
    }
}
