//! Path patterns: `*` stands for any characters, slashes included.

/// Whether `path` as a whole fits `pattern`.
pub fn matches(pattern: &str, path: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == path;
    };
    let Some(tail) = path.strip_prefix(head) else {
        return false;
    };
    let cuts = tail.char_indices().map(|(cut, _)| cut).chain([tail.len()]);
    rest.is_empty() || cuts.into_iter().any(|cut| matches(rest, &tail[cut..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_take_anything_and_nothing() {
        for (pattern, path, expected) in [
            ("/v2/", "/v2/", true),
            ("/v2/", "/v2/a", false),
            ("*", "", true),
            ("/v2/*/blobs/*", "/v2/lab/app/blobs/sha256:1", true),
            ("/v2/*/blobs/*", "/v2/lab/app/manifests/1", false),
            ("*/manifests/1", "/v2/lab/app/manifests/1", true),
            ("*/manifests/1", "/v2/lab/app/manifests/12", false),
            ("*ä", "öä", true),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }
}
