//! What a path of the fake upstream names.

/// A parsed path; the parts borrow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    Base,
    Manifest { repository: &'a str, reference: &'a str },
    Blob { repository: &'a str, digest: &'a str },
    Tags { repository: &'a str },
    Token,
    Cdn { digest: &'a str },
}

impl<'a> Route<'a> {
    pub fn parse(path: &'a str) -> Option<Self> {
        if path == "/token" {
            return Some(Self::Token);
        }
        if let Some(digest) = path.strip_prefix("/cdn/") {
            return Some(Self::Cdn { digest });
        }
        let path = path.strip_prefix("/v2")?.trim_start_matches('/');
        if path.is_empty() {
            return Some(Self::Base);
        }
        if let Some(repository) = path.strip_suffix("/tags/list") {
            return Some(Self::Tags { repository });
        }
        if let Some((repository, reference)) = path.rsplit_once("/manifests/") {
            return Some(Self::Manifest { repository, reference });
        }
        let (repository, digest) = path.rsplit_once("/blobs/")?;
        Some(Self::Blob { repository, digest })
    }

    /// The repository whose access rules apply.
    pub fn repository(self) -> Option<&'a str> {
        match self {
            Self::Manifest { repository, .. }
            | Self::Blob { repository, .. }
            | Self::Tags { repository } => Some(repository),
            Self::Base | Self::Token | Self::Cdn { .. } => None,
        }
    }
}
