//! Manifests and indexes: what they need, read without ever being rewritten.
//!
//! The bytes travel untouched; this is only the reading of them (OCI image spec 1.1, "Image
//! manifest" and "Image index"; Docker image manifest v2 schema 2).

use crate::{digest::Digest, image::Platform};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Longest manifest accepted, in bytes: the 4 MiB the distribution spec asks registries to take.
pub const MAX_MANIFEST_BYTES: usize = 4 * 1024 * 1024;
/// Most layers of one image.
pub const MAX_LAYERS: usize = 1_000;
/// Most manifests of one index.
pub const MAX_CHILDREN: usize = 1_000;
/// Deepest nesting of indexes, counting the outermost as 1.
pub const MAX_DEPTH: usize = 4;

/// The manifest media types hydrant carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MediaType {
    #[serde(rename = "application/vnd.oci.image.manifest.v1+json")]
    OciManifest,
    #[serde(rename = "application/vnd.oci.image.index.v1+json")]
    OciIndex,
    #[serde(rename = "application/vnd.docker.distribution.manifest.v2+json")]
    DockerManifest,
    #[serde(rename = "application/vnd.docker.distribution.manifest.list.v2+json")]
    DockerList,
}

impl MediaType {
    pub const ALL: [Self; 4] =
        [Self::OciIndex, Self::DockerList, Self::OciManifest, Self::DockerManifest];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OciManifest => "application/vnd.oci.image.manifest.v1+json",
            Self::OciIndex => "application/vnd.oci.image.index.v1+json",
            Self::DockerManifest => "application/vnd.docker.distribution.manifest.v2+json",
            Self::DockerList => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    /// The manifest media type of a `Content-Type` or `mediaType`, parameters ignored.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.split(';').next().unwrap_or_default().trim();
        Self::ALL.into_iter().find(|m| m.as_str().eq_ignore_ascii_case(text))
    }

    pub const fn is_index(self) -> bool {
        matches!(self, Self::OciIndex | Self::DockerList)
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The bytes are not a manifest hydrant carries.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidManifest {
    #[error("manifest has {0} bytes, more than {MAX_MANIFEST_BYTES}")]
    TooLong(usize),
    #[error("manifest is not valid JSON of a manifest or index: {0}")]
    Malformed(String),
    #[error("image manifest schema 1 is not supported; push the image again with a current client")]
    Schema1,
    #[error("manifest has both `manifests` and `layers`")]
    Ambiguous,
    #[error("manifest has neither `manifests` nor `config` and `layers`")]
    Shapeless,
    #[error("manifest media type `{0}` does not fit its content")]
    MediaType(String),
    #[error("manifest has {count} {what}, more than {limit}")]
    TooMany { what: &'static str, count: usize, limit: usize },
}

/// A reference to content (OCI image spec, "Descriptors"). `urls` are deliberately not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    /// Of a child of an index.
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// Whether the registry that names this layer need not hold it ("non-distributable layers",
    /// Docker's foreign layers). They are never fetched.
    pub fn is_foreign(&self) -> bool {
        self.media_type.contains("nondistributable") || self.media_type.contains("rootfs.foreign")
    }
}

/// A manifest, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub media_type: MediaType,
    pub content: Content,
    /// The manifest this one refers to (OCI image spec 1.1, `subject`).
    pub subject: Option<Descriptor>,
    /// What kind of artifact this is: `artifactType`, or the media type of the config.
    pub artifact_type: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Index { children: Vec<Descriptor> },
    Image { config: Descriptor, layers: Vec<Descriptor> },
}

impl Manifest {
    /// Reads `bytes`. The media type is the document's own; without one, it is that of its shape.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidManifest> {
        if bytes.len() > MAX_MANIFEST_BYTES {
            return Err(InvalidManifest::TooLong(bytes.len()));
        }
        let raw: raw::Manifest = serde_json::from_slice(bytes)
            .map_err(|error| InvalidManifest::Malformed(error.to_string()))?;
        raw.check()
    }

    /// The blobs this manifest itself names, foreign layers left out: config first, then layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        let (config, layers) = match &self.content {
            Content::Index { .. } => (None, &[][..]),
            Content::Image { config, layers } => (Some(config), &layers[..]),
        };
        config.into_iter().chain(layers).filter(|blob| !blob.is_foreign())
    }

    /// The manifests an index names; none for an image.
    pub fn children(&self) -> &[Descriptor] {
        match &self.content {
            Content::Index { children } => children,
            Content::Image { .. } => &[],
        }
    }
}

mod raw {
    //! The documents as they are written.

    use super::{
        Content, InvalidManifest, MAX_CHILDREN, MAX_LAYERS, Manifest as Checked, MediaType,
    };
    use crate::{digest::Digest, image::Platform as CheckedPlatform};
    use serde::Deserialize;

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub struct Manifest {
        #[serde(default)]
        schema_version: u64,
        media_type: Option<String>,
        artifact_type: Option<String>,
        config: Option<Descriptor>,
        layers: Option<Vec<Descriptor>>,
        manifests: Option<Vec<Descriptor>>,
        subject: Option<Descriptor>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Descriptor {
        #[serde(default)]
        media_type: String,
        digest: Digest,
        size: u64,
        platform: Option<Platform>,
    }

    #[derive(Deserialize)]
    struct Platform {
        #[serde(default)]
        os: String,
        #[serde(default)]
        architecture: String,
        variant: Option<String>,
    }

    impl Manifest {
        pub fn check(self) -> Result<Checked, InvalidManifest> {
            if self.schema_version == 1 {
                return Err(InvalidManifest::Schema1);
            }
            let artifact_type = self
                .artifact_type
                .or_else(|| self.config.as_ref().map(|config| config.media_type.clone()));
            let content = match (self.manifests, self.config, self.layers) {
                (Some(_), _, Some(_)) => return Err(InvalidManifest::Ambiguous),
                (Some(children), _, None) => {
                    let children = bounded("manifests", children, MAX_CHILDREN)?;
                    Content::Index { children }
                }
                (None, Some(config), Some(layers)) => {
                    let layers = bounded("layers", layers, MAX_LAYERS)?;
                    Content::Image { config: config.check(), layers }
                }
                (None, ..) => return Err(InvalidManifest::Shapeless),
            };
            let media_type = media_type(self.media_type.as_deref(), &content)?;
            let subject = self.subject.map(Descriptor::check);
            Ok(Checked { media_type, content, subject, artifact_type })
        }
    }

    fn bounded(
        what: &'static str,
        list: Vec<Descriptor>,
        limit: usize,
    ) -> Result<Vec<super::Descriptor>, InvalidManifest> {
        match list.len() {
            count if count > limit => Err(InvalidManifest::TooMany { what, count, limit }),
            _ => Ok(list.into_iter().map(Descriptor::check).collect()),
        }
    }

    fn media_type(stated: Option<&str>, content: &Content) -> Result<MediaType, InvalidManifest> {
        let is_index = matches!(content, Content::Index { .. });
        let Some(stated) = stated.filter(|text| !text.is_empty()) else {
            return Ok(if is_index { MediaType::OciIndex } else { MediaType::OciManifest });
        };
        MediaType::parse(stated)
            .filter(|media_type| media_type.is_index() == is_index)
            .ok_or_else(|| InvalidManifest::MediaType(stated.chars().take(120).collect()))
    }

    impl Descriptor {
        fn check(self) -> super::Descriptor {
            super::Descriptor {
                media_type: self.media_type,
                digest: self.digest,
                size: self.size,
                platform: self.platform.and_then(Platform::check),
            }
        }
    }

    impl Platform {
        /// `unknown/unknown`, as build tools write for attestations, is no platform.
        fn check(self) -> Option<CheckedPlatform> {
            let mut text = format!("{}/{}", self.os, self.architecture);
            if let Some(variant) = self.variant.filter(|variant| !variant.is_empty()) {
                text = format!("{text}/{variant}");
            }
            text.parse().ok().filter(|platform: &CheckedPlatform| platform.os != "unknown")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(of: &str) -> String {
        format!(
            r#"{{"mediaType":"x","digest":"{}","size":{}}}"#,
            Digest::of(of.as_bytes()),
            of.len()
        )
    }

    #[test]
    fn an_image_lists_its_config_and_layers() {
        let text = format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[{},{}]}}"#,
            descriptor("c"),
            descriptor("l1"),
            descriptor("l2")
        );
        let manifest = Manifest::parse(text.as_bytes()).unwrap();
        assert_eq!(manifest.media_type, MediaType::OciManifest);
        let digests: Vec<_> = manifest.blobs().map(|d| d.digest.clone()).collect();
        assert_eq!(digests, ["c", "l1", "l2"].map(|x| Digest::of(x.as_bytes())));
    }

    #[test]
    fn what_cannot_be_carried_is_refused_by_name() {
        let d = descriptor("c");
        let docker_list = MediaType::DockerList;
        for (text, expected) in [
            (r#"{"schemaVersion":1}"#.to_owned(), InvalidManifest::Schema1),
            (r#"{"schemaVersion":2}"#.to_owned(), InvalidManifest::Shapeless),
            (r#"{"manifests":[],"layers":[]}"#.to_owned(), InvalidManifest::Ambiguous),
            (
                format!(r#"{{"mediaType":"{docker_list}","config":{d},"layers":[]}}"#),
                InvalidManifest::MediaType(docker_list.to_string()),
            ),
            (
                format!(r#"{{"config":{d},"layers":[{}]}}"#, vec![d.clone(); 1001].join(",")),
                InvalidManifest::TooMany { what: "layers", count: 1001, limit: 1000 },
            ),
        ] {
            assert_eq!(Manifest::parse(text.as_bytes()), Err(expected));
        }
        for malformed in [
            "",
            "<html>",
            r#"{"config":{"digest":"md5:1","size":1},"layers":[]}"#,
            r#"{"config":{"digest":"x","size":-1},"layers":[]}"#,
            &"[".repeat(100_000),
        ] {
            assert!(matches!(
                Manifest::parse(malformed.as_bytes()),
                Err(InvalidManifest::Malformed(_))
            ));
        }
    }

    #[test]
    fn unknown_platforms_are_none() {
        let text = format!(
            r#"{{"manifests":[{{"digest":"{0}","size":1,"platform":{{"os":"unknown","architecture":"unknown"}}}},
                {{"digest":"{0}","size":1,"platform":{{"os":"linux","architecture":"arm","variant":"v7"}}}}]}}"#,
            Digest::of(b"x")
        );
        let manifest = Manifest::parse(text.as_bytes()).unwrap();
        assert_eq!(manifest.children()[0].platform, None);
        assert_eq!(manifest.children()[1].platform, Some("linux/arm/v7".parse().unwrap()));
    }
}
