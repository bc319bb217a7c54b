//! The images the upstream has. Layers are slices of one pool, so they cost neither memory nor
//! time to serve; their digests are computed once, as they are inserted.

use bytes::Bytes;
use hydrant_testkit::{Content, Image, ImageBuilder};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// The platform that clients of the harness pull.
pub const PLATFORM: &str = "linux/amd64";
/// Another one in every index, so that an index is not a manifest by another name.
const OTHER: &str = "linux/arm64";

/// An index with an image for [`PLATFORM`] and a small one for another platform; or, if `single`,
/// that image alone.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    pub repository: String,
    pub tag: String,
    /// Images of different seeds share no blob.
    pub seed: u64,
    /// Sizes of the layers in bytes.
    pub layers: Vec<u64>,
    #[serde(default)]
    pub single: bool,
}

/// An image as a client pulls it: the index, the manifest of [`PLATFORM`] and its blobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inserted {
    pub repository: String,
    pub tag: String,
    /// Of the index.
    pub digest: String,
    /// Of the manifest for [`PLATFORM`].
    pub child: String,
    /// Config and layers, with their sizes.
    pub blobs: Vec<(String, u64)>,
    /// Manifests and blobs together.
    pub bytes: u64,
}

impl Inserted {
    /// `repository:tag`.
    pub fn name(&self) -> String {
        format!("{}:{}", self.repository, self.tag)
    }

    /// The largest blob, with its size.
    pub fn largest(&self) -> (&str, u64) {
        let largest = self.blobs.iter().max_by_key(|(_, size)| *size);
        largest.map(|(digest, size)| (digest.as_str(), *size)).expect("an image has a config")
    }
}

impl ImageSpec {
    fn build(&self) -> Image {
        let layers = (1..).zip(&self.layers);
        let layers = layers
            .map(|(n, length)| Content::Pooled { seed: self.seed * 1_000 + n, length: *length });
        let main = layers.fold(ImageBuilder::new(self.seed).platform(PLATFORM), |image, layer| {
            image.layer_of(layer)
        });
        if self.single {
            return main.build();
        }
        let other = ImageBuilder::new(self.seed).platform(OTHER).layer(1_000);
        Image::index(vec![main.build(), other.build()])
    }
}

#[derive(Clone)]
pub(super) struct Document {
    pub digest: String,
    pub media_type: &'static str,
    pub bytes: Bytes,
}

#[derive(Default)]
pub(super) struct Holdings {
    /// By `repository@reference`.
    manifests: HashMap<String, Document>,
    /// By digest: who asks for one knows it.
    blobs: HashMap<String, Content>,
}

impl Holdings {
    /// Builds the image, which hashes it: a second per GiB or so.
    pub fn build(spec: &ImageSpec) -> Image {
        spec.build()
    }

    pub fn insert(&mut self, spec: &ImageSpec, image: &Image) -> Inserted {
        for blob in image.all_blobs() {
            self.blobs.insert(blob.digest.to_string(), blob.content.clone());
        }
        for manifest in image.manifests() {
            self.put(&spec.repository, &manifest.digest.to_string(), manifest);
        }
        self.put(&spec.repository, &spec.tag, image);
        let child = if spec.single { image } else { image.child(PLATFORM) };
        let above = if spec.single { 0 } else { image.manifest.len() };
        let blobs = child.blobs.iter().map(|blob| (blob.digest.to_string(), blob.size));
        Inserted {
            repository: spec.repository.clone(),
            tag: spec.tag.clone(),
            digest: image.digest.to_string(),
            child: child.digest.to_string(),
            bytes: child.total_bytes() + above as u64,
            blobs: blobs.collect(),
        }
    }

    fn put(&mut self, repository: &str, reference: &str, image: &Image) {
        let document = Document {
            digest: image.digest.to_string(),
            media_type: image.media_type.as_str(),
            bytes: image.manifest.clone(),
        };
        self.manifests.insert(format!("{repository}@{reference}"), document);
    }

    pub fn manifest(&self, repository: &str, reference: &str) -> Option<Document> {
        self.manifests.get(&format!("{repository}@{reference}")).cloned()
    }

    pub fn blob(&self, digest: &str) -> Option<Content> {
        self.blobs.get(digest).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inserted_image_is_counted_as_a_client_pulls_it() {
        let spec = ImageSpec {
            repository: "app".to_owned(),
            tag: "1".to_owned(),
            seed: 1,
            layers: vec![5_000, 70_000],
            single: false,
        };
        let mut holdings = Holdings::default();
        let inserted = holdings.insert(&spec, &Holdings::build(&spec));
        assert_eq!(inserted.blobs.len(), 3);
        assert_eq!(inserted.largest().1, 70_000);
        let index = holdings.manifest("app", "1").unwrap();
        let child = holdings.manifest("app", &inserted.child).unwrap();
        let blobs: u64 = inserted.blobs.iter().map(|(_, size)| size).sum();
        assert_eq!(inserted.bytes, blobs + (index.bytes.len() + child.bytes.len()) as u64);
        assert!(inserted.blobs.iter().all(|(digest, _)| holdings.blob(digest).is_some()));
    }
}
