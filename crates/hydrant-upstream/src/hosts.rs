//! Which hosts an upstream may lead us to: with its credential (token services), or without
//! (redirects).

use http::{HeaderMap, header::LOCATION};
use hydrant_rules::Upstream;
use url::Url;

/// Token services known to belong to another host.
const KNOWN_REALMS: [(&str, &str); 1] = [("registry-1.docker.io", "auth.docker.io")];

/// The realm of a challenge, if the credential may go there: the endpoint's own host, a token host
/// of the configuration, or Docker Hub's; over TLS, unless the endpoint itself is plain http.
/// Otherwise what is wrong with it. Whether its address may be dialled is egress's to say.
pub fn realm(upstream: &Upstream, written: &str) -> Result<Url, String> {
    let realm: Url = written.parse().map_err(|_| "its token realm is not a URL".to_owned())?;
    let host = realm.host_str().unwrap_or_default();
    if !realm.username().is_empty() || realm.password().is_some() {
        return Err(format!("its token realm at `{host}` has user info"));
    }
    if realm.scheme() != "https" && realm.scheme() != upstream.endpoint.scheme() {
        return Err(format!("its token realm at `{host}` is not https"));
    }
    if is_realm_host(upstream, &realm) {
        return Ok(realm);
    }
    Err(format!(
        "its token realm is at another host, `{host}`; add it to `token_hosts` if it is right"
    ))
}

fn is_realm_host(upstream: &Upstream, realm: &Url) -> bool {
    let (own, theirs) = (upstream.endpoint.host_str(), realm.host_str());
    own == theirs
        || KNOWN_REALMS.iter().any(|(from, to)| own == Some(*from) && theirs == Some(*to))
        || upstream.token_hosts.iter().any(|pattern| matches(pattern, realm))
}

/// Where an answer with these headers redirects to, if it may be followed. Otherwise what is wrong
/// with it.
pub fn redirect(upstream: &Upstream, from: &Url, headers: &HeaderMap) -> Result<Url, String> {
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or("it redirects nowhere")?;
    let to = from.join(location).map_err(|_| "it redirects to what is not a URL")?;
    let host = to.host_str().unwrap_or_default();
    if from.scheme() == "https" && to.scheme() != "https" && !upstream.allow_private {
        return Err(format!("it redirects from https to plain http at `{host}`"));
    }
    let anywhere = upstream.redirect_hosts.is_empty();
    let listed = || upstream.redirect_hosts.iter().any(|pattern| matches(pattern, &to));
    if anywhere || is_endpoint(upstream, &to) || listed() {
        return Ok(to);
    }
    Err(format!("it redirects to `{host}`, which is not among its `redirect_hosts`"))
}

/// Whether `url` is at the configured endpoint: the only place that sees an `Authorization`.
pub fn is_endpoint(upstream: &Upstream, url: &Url) -> bool {
    upstream.endpoint.origin() == url.origin()
}

/// Whether a hydrant may answer there, and is told through whom the request came: at the endpoint,
/// and where it redirects to a registry. Not at signed addresses of content, which have a query.
pub fn may_be_hydrant(upstream: &Upstream, url: &Url) -> bool {
    is_endpoint(upstream, url) || (url.query().is_none() && url.path().contains("/v2/"))
}

/// `host`, `host:port`, `*.suffix` or `*.suffix:port`; without a port any will do.
fn matches(pattern: &str, url: &Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    let port = url.port_or_known_default().unwrap_or_default();
    let with_port = format!("{host}:{port}");
    [host, with_port.as_str()].into_iter().any(|name| match pattern.strip_prefix('*') {
        Some(suffix) => name.ends_with(suffix) && suffix.starts_with('.'),
        None => name == pattern,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn upstream(endpoint: &str, token_hosts: &[&str]) -> Upstream {
        let written = json!({"name": "lab", "endpoint": endpoint, "token_hosts": token_hosts});
        serde_json::from_value(written).unwrap()
    }

    #[test]
    fn realms_that_may_see_the_credential() {
        for (endpoint, hosts, good) in [
            ("https://ghcr.io", vec![], "https://ghcr.io/token"),
            ("https://ghcr.io", vec![], "https://GHCR.io:8443/token"),
            ("https://registry-1.docker.io", vec![], "https://auth.docker.io/token"),
            ("https://registry.gitlab.com", vec!["gitlab.com"], "https://gitlab.com/jwt/auth"),
            ("https://r.lab", vec!["auth.lab:5001"], "https://auth.lab:5001/t"),
            ("https://r.lab", vec!["*.lab"], "https://auth.lab/t"),
            ("http://127.0.0.1:5000", vec![], "http://127.0.0.1:5001/token"),
            ("http://127.0.0.1:5000", vec![], "http://2130706433:5001/token"),
        ] {
            assert!(realm(&upstream(endpoint, &hosts), good).is_ok(), "{good}");
        }
    }

    #[test]
    fn realms_that_may_not() {
        for (endpoint, hosts, bad) in [
            ("https://ghcr.io", vec![], "https://evil.example/token"),
            ("https://ghcr.io", vec![], "http://ghcr.io/token"),
            ("https://ghcr.io", vec![], "https://u:p@ghcr.io/token"),
            ("https://ghcr.io", vec![], "https://ghcr.io@evil.example/token"),
            ("https://ghcr.io", vec![], "https://ghcr.io.evil.example/token"),
            ("https://ghcr.io", vec![], "https://auth.docker.io/token"),
            ("https://ghcr.io", vec![], "https://127.0.0.1/token"),
            ("https://ghcr.io", vec![], "https://[::ffff:127.0.0.1]/token"),
            ("https://ghcr.io", vec![], "ftp://ghcr.io/token"),
            ("https://ghcr.io", vec![], "/token"),
            ("https://ghcr.io", vec![], "ghcr.io"),
            ("https://r.lab", vec!["auth.lab:5001"], "https://auth.lab/t"),
            ("https://r.lab", vec!["*.lab"], "https://evillab/t"),
            ("https://r.lab", vec!["*.lab"], "https://lab/t"),
            ("https://auth.docker.io", vec![], "https://registry-1.docker.io/token"),
        ] {
            let refused = realm(&upstream(endpoint, &hosts), bad).unwrap_err();
            assert!(!refused.contains("u:p"), "{refused}");
        }
    }

    #[test]
    fn only_registries_are_told_through_whom_a_request_came() {
        let upstream = upstream("https://r.lab", &[]);
        for (url, is_told) in [
            ("https://r.lab/v2/a/blobs/x", true),
            ("https://r.lab/other?x", true),
            ("https://mirror.lab/v2/a/blobs/x", true),
            ("https://mirror.lab/prefix/v2/a/manifests/1", true),
            ("https://cdn.example/registry-v2/x", false),
            ("https://cdn.example/docker/registry/v2/blobs/x?X-Amz-Signature=y", false),
            ("https://r.lab:8443/x", false),
        ] {
            assert_eq!(may_be_hydrant(&upstream, &url.parse().unwrap()), is_told, "{url}");
        }
    }

    #[test]
    fn redirects_stay_on_the_list_and_on_tls() {
        let from: Url = "https://r.lab/v2/a/blobs/x".parse().unwrap();
        for (allow_private, hosts, location, leads_to) in [
            (false, vec![], "https://cdn.example/x?sig=y", Some("https://cdn.example/x?sig=y")),
            (false, vec![], "/other", Some("https://r.lab/other")),
            (false, vec![], "http://cdn.example/x", None),
            (true, vec![], "http://cdn.example/x", Some("http://cdn.example/x")),
            (false, vec!["*.example"], "https://cdn.example/x", Some("https://cdn.example/x")),
            (false, vec!["*.example"], "https://r.lab/x", Some("https://r.lab/x")),
            (false, vec!["*.example"], "https://cdn.example.evil/x", None),
            (false, vec!["cdn.example:8443"], "https://cdn.example/x", None),
            (
                false,
                vec!["cdn.example:443"],
                "https://cdn.example/x",
                Some("https://cdn.example/x"),
            ),
        ] {
            let upstream: Upstream = serde_json::from_value(json!({
                "name": "lab", "endpoint": "https://r.lab", "allow_private": allow_private,
                "redirect_hosts": hosts,
            }))
            .unwrap();
            let headers = HeaderMap::from_iter([(LOCATION, location.parse().unwrap())]);
            let found = redirect(&upstream, &from, &headers);
            assert_eq!(found.as_ref().map(Url::as_str).ok(), leads_to, "{location}: {found:?}");
        }
        let nowhere = HeaderMap::new();
        assert!(redirect(&upstream("https://r.lab", &[]), &from, &nowhere).is_err());
    }
}
