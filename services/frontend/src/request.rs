//! What a request asks for. Method, path and query are parsed here, once, into [`Request`]; nothing
//! later looks at the URL again. Headers are read where they matter.
//!
//! Paths are decoded once and strictly. No valid name, tag or digest needs percent-encoding except
//! for the colon of a digest, so whatever decodes to something outside the grammars (an encoded
//! slash, a second encoding, a NUL, a bidi mark) is refused rather than interpreted.

use http::{Method, Uri};
use hydrant_proto::{Digest, Reference, RepositoryName, Tag};
use std::{borrow::Cow, str::FromStr};

/// Most entries of one page of a list; a larger `n` is cut down to it.
pub const MAX_PAGE: usize = 1_000;
/// Longest value of a query parameter, in bytes: the longest repository name.
const MAX_VALUE: usize = 255;

/// A request for something of the distribution API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub ask: Ask,
    /// The registry the client believes it speaks to: `?ns=`, as containerd sends it to mirrors.
    pub namespace: Option<String>,
    /// Whether a body is wanted.
    pub method: Read,
}

/// The methods that read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    Get,
    Head,
}

/// The readable things (OCI distribution spec 1.1, "Endpoints").
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    Base,
    Manifest { name: RepositoryName, reference: Reference },
    Blob { name: RepositoryName, digest: Digest },
    Tags { name: RepositoryName, page: Page<Tag> },
    Catalog { page: Page<RepositoryName> },
    Referrers { name: RepositoryName, digest: Digest, artifact_type: Option<String> },
}

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// Entries wanted, at most [`MAX_PAGE`].
    pub n: usize,
    /// Only what sorts after this.
    pub last: Option<T>,
}

/// Why a request is not one for content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    #[error("path and query must be percent-encoded at most once, without control characters")]
    Encoding,
    #[error("invalid repository name")]
    Name,
    #[error("invalid digest; `sha256:` and 64, or `sha512:` and 128 lower-case hex digits")]
    Digest,
    /// A tag outside the grammar, which therefore cannot exist.
    #[error("no tag can have this name")]
    Tag,
    #[error("`n` must be one whole number, not negative")]
    PageSize,
    #[error("invalid query parameter")]
    Query,
    #[error("no such endpoint")]
    Endpoint,
    #[error("this registry is a cache; pushes and deletes are not supported")]
    Write,
    #[error("a read has no body")]
    Body,
    #[error("a request has exactly one Host")]
    Host,
}

impl Request {
    pub fn parse(method: &Method, uri: &Uri) -> Result<Self, Rejected> {
        let path = uri.path();
        if path == "/v2" {
            return Self::of(method, Ask::Base, None);
        }
        let path = path.strip_prefix("/v2/").ok_or(Rejected::Endpoint)?;
        read_method(method)?;
        let query = Query::parse(uri.query().unwrap_or_default())?;
        let path = decode(path)?;
        let ask = Ask::parse(&path, &query)?;
        Self::of(method, ask, query.ns)
    }

    fn of(method: &Method, ask: Ask, namespace: Option<String>) -> Result<Self, Rejected> {
        Ok(Self { ask, namespace, method: read_method(method)? })
    }
}

fn read_method(method: &Method) -> Result<Read, Rejected> {
    match *method {
        Method::GET => Ok(Read::Get),
        Method::HEAD => Ok(Read::Head),
        _ => Err(Rejected::Write),
    }
}

impl Ask {
    /// `path` is what follows `/v2/`, decoded. Names may contain the words `blobs`, `tags` and so
    /// on, so it is read from its end.
    fn parse(path: &str, query: &Query) -> Result<Self, Rejected> {
        match path {
            "" => return Ok(Self::Base),
            "_catalog" => return Ok(Self::Catalog { page: query.page()? }),
            _ => {}
        }
        if let Some(name) = path.strip_suffix("/tags/list") {
            return Ok(Self::Tags { name: repository(name)?, page: query.page()? });
        }
        if is_upload(path) {
            return Err(Rejected::Write);
        }
        let (name, kind, last) = ending(path).ok_or_else(|| unreadable(path))?;
        match kind {
            "manifests" => {
                Ok(Self::Manifest { name: repository(name)?, reference: reference(last)? })
            }
            "blobs" => Ok(Self::Blob { name: repository(name)?, digest: digest(last)? }),
            "referrers" => Ok(Self::Referrers {
                name: repository(name)?,
                digest: digest(last)?,
                artifact_type: query.artifact_type.clone(),
            }),
            _ => Err(unreadable(path)),
        }
    }

    /// The endpoint as metrics and spans name it.
    pub const fn endpoint(&self) -> &'static str {
        match self {
            Self::Base => "/v2/",
            Self::Manifest { .. } => "/v2/{name}/manifests/{reference}",
            Self::Blob { .. } => "/v2/{name}/blobs/{digest}",
            Self::Tags { .. } => "/v2/{name}/tags/list",
            Self::Catalog { .. } => "/v2/_catalog",
            Self::Referrers { .. } => "/v2/{name}/referrers/{digest}",
        }
    }

    pub const fn repository(&self) -> Option<&RepositoryName> {
        match self {
            Self::Base | Self::Catalog { .. } => None,
            Self::Manifest { name, .. }
            | Self::Blob { name, .. }
            | Self::Tags { name, .. }
            | Self::Referrers { name, .. } => Some(name),
        }
    }
}

/// `<name>/<kind>/<last>`
fn ending(path: &str) -> Option<(&str, &str, &str)> {
    let (front, last) = path.rsplit_once('/')?;
    let (name, kind) = front.rsplit_once('/')?;
    Some((name, kind, last))
}

/// `<name>/blobs/uploads/[<id>]`
fn is_upload(path: &str) -> bool {
    path.ends_with("/blobs/uploads")
        || ending(path).is_some_and(|(name, kind, _)| kind == "uploads" && name.ends_with("/blobs"))
}

/// Which refusal suits a path of no known shape: it may be a digest or a name with a slash or dots
/// too many.
fn unreadable(path: &str) -> Rejected {
    if path.contains(':') {
        return Rejected::Digest;
    }
    let odd = |segment| matches!(segment, "" | "." | "..");
    if path.split('/').any(odd) { Rejected::Name } else { Rejected::Endpoint }
}

fn repository(text: &str) -> Result<RepositoryName, Rejected> {
    text.parse().map_err(|_| Rejected::Name)
}

fn digest(text: &str) -> Result<Digest, Rejected> {
    text.parse().map_err(|_| Rejected::Digest)
}

/// A tag of harmless characters outside the grammar is one that cannot exist, which clients probe
/// for (the conformance suite does); anything else is no tag.
fn reference(text: &str) -> Result<Reference, Rejected> {
    if text.contains(':') {
        return digest(text).map(Reference::Digest);
    }
    let harmless = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    match text.parse::<Tag>() {
        Ok(tag) => Ok(Reference::Tag(tag)),
        Err(_) if matches!(text, "" | "." | "..") || !text.bytes().all(harmless) => {
            Err(Rejected::Name)
        }
        Err(_) => Err(Rejected::Tag),
    }
}

/// The query parameters of the distribution API; others are ignored.
#[derive(Debug, Default)]
struct Query {
    n: Option<usize>,
    last: Option<String>,
    ns: Option<String>,
    artifact_type: Option<String>,
}

impl Query {
    fn parse(text: &str) -> Result<Self, Rejected> {
        let mut query = Self::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "n" if query.n.is_some() => return Err(Rejected::PageSize),
                "n" => query.n = Some(page_size(value)?),
                "last" => set_once(&mut query.last, value)?,
                "ns" => set_once(&mut query.ns, value)?,
                "artifactType" => set_once(&mut query.artifact_type, value)?,
                _ => {}
            }
        }
        query.ns = query.ns.map(namespace).transpose()?;
        Ok(query)
    }

    fn page<T: FromStr>(&self) -> Result<Page<T>, Rejected> {
        let last = self.last.as_deref().map(str::parse).transpose();
        Ok(Page { n: self.n.unwrap_or(MAX_PAGE), last: last.map_err(|_| Rejected::Query)? })
    }
}

/// Two values of one parameter are refused: which of them counts is where proxies disagree. A `+`
/// stands for itself, as no value has spaces but media types have plus signs.
fn set_once(slot: &mut Option<String>, value: &str) -> Result<(), Rejected> {
    let value = decode(value)?;
    if slot.is_some() || value.len() > MAX_VALUE {
        return Err(Rejected::Query);
    }
    *slot = Some(value.into_owned()).filter(|value| !value.is_empty());
    Ok(())
}

/// Digits however long; what exceeds a page is cut down to it.
fn page_size(value: &str) -> Result<usize, Rejected> {
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Rejected::PageSize);
    }
    Ok(value.parse().unwrap_or(MAX_PAGE).min(MAX_PAGE))
}

/// A registry's `host[:port]`, in lower case.
fn namespace(text: String) -> Result<String, Rejected> {
    let valid = text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:_[]".contains(&b));
    if valid { Ok(text.to_ascii_lowercase()) } else { Err(Rejected::Query) }
}

/// Decodes percent-encoding once. What it decodes to may be neither a slash (it would change the
/// shape of the path), nor a percent sign (a second encoding), nor a control character.
fn decode(text: &str) -> Result<Cow<'_, str>, Rejected> {
    if text.bytes().any(|b| b.is_ascii_control()) {
        return Err(Rejected::Encoding);
    }
    if !text.contains('%') {
        return Ok(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(if byte == b'%' { escaped(&mut bytes)? } else { byte });
    }
    String::from_utf8(decoded).map(Cow::Owned).map_err(|_| Rejected::Encoding)
}

/// The byte that the two hex digits after a percent sign stand for.
fn escaped(bytes: &mut impl Iterator<Item = u8>) -> Result<u8, Rejected> {
    let mut digit = || (bytes.next()? as char).to_digit(16);
    let (high, low) = digit().zip(digit()).ok_or(Rejected::Encoding)?;
    let byte = u8::try_from(high * 16 + low).expect("two hex digits make a byte");
    let allowed = !byte.is_ascii_control() && byte != b'%' && byte != b'/';
    if allowed { Ok(byte) } else { Err(Rejected::Encoding) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn get(path: &str) -> Result<Request, Rejected> {
        // Paths that are no URI never get this far: the HTTP parser answers 400.
        let uri = path.parse().map_err(|_| Rejected::Encoding)?;
        Request::parse(&Method::GET, &uri)
    }

    fn ask(path: &str) -> Ask {
        get(path).unwrap_or_else(|error| panic!("{path}: {error}")).ask
    }

    fn name(text: &str) -> RepositoryName {
        text.parse().unwrap()
    }

    #[test]
    fn every_readable_thing() {
        let digest: Digest = format!("sha256:{HEX}").parse().unwrap();
        let tag = |text: &str| Reference::Tag(text.parse().unwrap());
        for (path, expected) in [
            ("/v2".to_owned(), Ask::Base),
            ("/v2/".to_owned(), Ask::Base),
            (
                "/v2/lab/app/manifests/1.0".to_owned(),
                Ask::Manifest { name: name("lab/app"), reference: tag("1.0") },
            ),
            (
                format!("/v2/a__b/c--d/manifests/sha256:{HEX}"),
                Ask::Manifest {
                    name: name("a__b/c--d"),
                    reference: Reference::Digest(digest.clone()),
                },
            ),
            (
                format!("/v2/a/blobs/sha256%3A{HEX}"),
                Ask::Blob { name: name("a"), digest: digest.clone() },
            ),
            (
                "/v2/manifests/blobs/manifests/tags".to_owned(),
                Ask::Manifest { name: name("manifests/blobs"), reference: tag("tags") },
            ),
            (
                "/v2/a/tags/list?n=3&last=x".to_owned(),
                Ask::Tags {
                    name: name("a"),
                    page: Page { n: 3, last: Some("x".parse().unwrap()) },
                },
            ),
            ("/v2/_catalog".to_owned(), Ask::Catalog { page: Page { n: MAX_PAGE, last: None } }),
            (
                format!("/v2/a/referrers/sha256:{HEX}?artifactType=application/x%2By"),
                Ask::Referrers {
                    name: name("a"),
                    digest,
                    artifact_type: Some("application/x+y".into()),
                },
            ),
        ] {
            assert_eq!(ask(&path), expected, "{path}");
        }
    }

    #[test]
    fn bad_input_is_refused() {
        let long = "a".repeat(256);
        let long_tag = "t".repeat(129);
        for (path, expected) in [
            ("/", Rejected::Endpoint),
            ("/v1/_ping", Rejected::Endpoint),
            ("/v2/a", Rejected::Endpoint),
            ("/v2/../etc/passwd", Rejected::Name),
            ("/v2/a/../b/manifests/x", Rejected::Name),
            ("/v2/a/%2e%2e/b/manifests/x", Rejected::Name),
            ("/v2/a/%252e%252e/b/manifests/x", Rejected::Encoding),
            ("/v2/a%2Fb/manifests/x", Rejected::Encoding),
            ("/v2/a%00/manifests/x", Rejected::Encoding),
            ("/v2/a%0d%0aX:1/manifests/x", Rejected::Encoding),
            ("/v2/a%/manifests/x", Rejected::Encoding),
            ("/v2/a%zz/manifests/x", Rejected::Encoding),
            ("/v2/a%ff/manifests/x", Rejected::Encoding),
            ("/v2/a%e2%80%aeb/manifests/x", Rejected::Name),
            ("/v2/Upper/manifests/x", Rejected::Name),
            ("/v2/a//b/manifests/x", Rejected::Name),
            ("/v2//manifests/x", Rejected::Name),
            ("/v2/manifests/x", Rejected::Endpoint),
            (&format!("/v2/{long}/manifests/x"), Rejected::Name),
            (&format!("/v2/a/manifests/{long_tag}"), Rejected::Tag),
            ("/v2/a/manifests/.x", Rejected::Tag),
            ("/v2/a/manifests/", Rejected::Name),
            ("/v2/a/manifests/..", Rejected::Name),
            ("/v2/a/manifests/x%20y", Rejected::Name),
            ("/v2/a/manifests/x%e2%80%aey", Rejected::Name),
            ("/v2/a/blobs/latest", Rejected::Digest),
            (&format!("/v2/a/blobs/sha256:{}", HEX.to_uppercase()), Rejected::Digest),
            (&format!("/v2/a/manifests/sha256:{}", &HEX[1..]), Rejected::Digest),
            ("/v2/a/blobs/sha256:../../../etc/passwd", Rejected::Digest),
            ("/v2/a/blobs/md5:d41d8cd98f00b204e9800998ecf8427e", Rejected::Digest),
            ("/v2/a/referrers/md5:d41d8cd98f00b204e9800998ecf8427e", Rejected::Digest),
            ("/v2/a/tags/list?n=-1", Rejected::PageSize),
            ("/v2/a/tags/list?n=abc", Rejected::PageSize),
            ("/v2/a/tags/list?n=", Rejected::PageSize),
            ("/v2/a/tags/list?n=1&n=2", Rejected::PageSize),
            ("/v2/_catalog?n=1&n=1", Rejected::PageSize),
            ("/v2/a/tags/list?last=%0d%0a", Rejected::Encoding),
            (&format!("/v2/a/tags/list?last={long}"), Rejected::Query),
            ("/v2/a/tags/list?last=a/b", Rejected::Query),
            ("/v2/_catalog?last=../x", Rejected::Query),
            ("/v2/a/manifests/x?ns=a&ns=b", Rejected::Query),
            ("/v2/a/manifests/x?ns=http://a/", Rejected::Query),
            ("/v2/a/blobs/uploads/", Rejected::Write),
            ("/v2/a/blobs/uploads/some-id", Rejected::Write),
        ] {
            assert_eq!(get(path), Err(expected), "{path}");
        }
    }

    #[test]
    fn page_sizes_are_cut_down() {
        for (text, n) in
            [("0", 0), ("7", 7), ("1001", MAX_PAGE), ("100000000000000000000", MAX_PAGE)]
        {
            let path = format!("/v2/_catalog?n={text}");
            assert_eq!(ask(&path), Ask::Catalog { page: Page { n, last: None } });
        }
    }

    #[test]
    fn writes_are_refused_wherever_they_go() {
        for method in [Method::PUT, Method::POST, Method::PATCH, Method::DELETE, Method::OPTIONS] {
            for path in ["/v2/", "/v2/a/manifests/x", "/v2/a/blobs/uploads/?mount=x", "/v2/%00"] {
                let parsed = Request::parse(&method, &path.parse().unwrap());
                assert_eq!(parsed, Err(Rejected::Write), "{method} {path}");
            }
        }
    }

    #[test]
    fn the_namespace_of_a_mirror_is_lower_case() {
        let request = get("/v2/library/node/manifests/22?ns=Docker.io").unwrap();
        assert_eq!(request.namespace.as_deref(), Some("docker.io"));
        assert_eq!(get("/v2/a/manifests/x?ns=").unwrap().namespace, None);
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_needs_no_further_check(path in "/v2/[ -~]{0,60}") {
            if let Ok(uri) = path.parse::<Uri>()
                && let Ok(request) = Request::parse(&Method::GET, &uri)
                && let Some(name) = request.ask.repository()
            {
                let harmless = !name.as_str().contains("..") && !name.as_str().contains('%');
                prop_assert!(harmless);
            }
        }
    }
}
