//! The auditor: reads all that lies in storage while nobody writes, as a stranger would, and says
//! what should not be there. It trusts no record: content is hashed, and every link is walked.

use bytes::Bytes;
use hydrant_proto::{Digest, Manifest};
use hydrant_testkit::SeaweedFs;
use std::{collections::BTreeMap, fs, path::Path};

const BLOBS: &str = "docker/registry/v2/blobs/sha256/";
const REPOSITORIES: &str = "docker/registry/v2/repositories/";
const RECORDS: &str = "hydrant/v1/repositories/";

/// Nothing in the bucket below `prefix` is wrong or torn. Returns how many manifests it shows.
pub async fn bucket(s3: &SeaweedFs, prefix: &str) -> usize {
    let below = format!("{prefix}/");
    let mut found = BTreeMap::new();
    for key in s3.objects(&below).await.into_keys() {
        let bytes = s3.read(&key).await.expect("nobody writes meanwhile");
        found.insert(key.strip_prefix(&below).expect("listed below it").to_owned(), bytes);
    }
    Objects(found).audit()
}

/// The same of a directory store.
pub fn directory(root: &Path) -> usize {
    let (mut found, mut waiting) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            let key = path.strip_prefix(root).expect("below it").to_str().unwrap().to_owned();
            found.insert(key, fs::read(path).unwrap().into());
        }
    }
    Objects(found).audit()
}

/// Everything that lies in a store, by its key.
struct Objects(BTreeMap<String, Bytes>);

impl Objects {
    fn audit(&self) -> usize {
        let mut shown = 0;
        for (key, bytes) in &self.0 {
            if let Some(hex) = between(key, BLOBS, "/data") {
                assert!(digest(&hex[3..]).matches(bytes), "{key} does not hash to its name");
            } else if let Some((repository, link)) = manifest_link(key) {
                match between(link, "revisions/sha256/", "/link") {
                    Some(hex) => self.closure(repository, &digest(hex)),
                    None => self.tag(repository, link),
                }
                shown += usize::from(link.starts_with("revisions/"));
            } else if key.starts_with(RECORDS) && key.contains("/_tags/") {
                self.record(key, bytes);
            }
        }
        shown
    }

    /// A visible manifest has all its blobs, of their sizes and readable in the repository. Of the
    /// children of an index one is enough: not every platform is wanted.
    fn closure(&self, repository: &str, digest: &Digest) {
        let bytes = self.0.get(&content(digest)).expect("a manifest that is shown is there");
        let manifest = Manifest::parse(bytes).expect("only manifests are linked as such");
        for blob in manifest.blobs() {
            let at = format!("blob {} of {repository}@{digest}", blob.digest);
            let size = self.0.get(&content(&blob.digest)).map(|bytes| bytes.len() as u64);
            assert_eq!(size, Some(blob.size), "{at}");
            let link =
                format!("{REPOSITORIES}{repository}/_layers/sha256/{}/link", blob.digest.hex());
            assert!(self.0.contains_key(&link), "{at} is not linked");
        }
        let children = manifest.children();
        let any = children.iter().any(|child| self.shows(repository, &child.digest));
        assert!(any || children.is_empty(), "{repository} shows the index {digest} alone");
    }

    /// What a tag names, for a stock registry, is there.
    fn tag(&self, repository: &str, link: &str) {
        if link.ends_with("/current/link") {
            let named = &self.0[&format!("{REPOSITORIES}{repository}/_manifests/{link}")];
            let named = String::from_utf8_lossy(named).parse().expect("a link is a digest");
            assert!(self.shows(repository, &named), "{repository} {link}: {named} is not there");
        }
    }

    /// What a tag names, for hydrant, is there.
    fn record(&self, key: &str, bytes: &Bytes) {
        let repository = between(key, RECORDS, ".json").and_then(|rest| rest.split_once("/_tags/"));
        let (repository, tag) = repository.expect("a record lies below its repository");
        let record: serde_json::Value = serde_json::from_slice(bytes).expect("records are JSON");
        let named = record["digest"].as_str().and_then(|digest| digest.parse().ok());
        let named = named.expect("a record names a digest");
        assert!(self.shows(repository, &named), "{repository}:{tag} names {named}, not there");
    }

    fn shows(&self, repository: &str, digest: &Digest) -> bool {
        let link = format!("{repository}/_manifests/revisions/sha256/{}/link", digest.hex());
        self.0.contains_key(&format!("{REPOSITORIES}{link}"))
    }
}

fn manifest_link(key: &str) -> Option<(&str, &str)> {
    key.strip_prefix(REPOSITORIES)?.split_once("/_manifests/")
}

fn between<'t>(text: &'t str, before: &str, after: &str) -> Option<&'t str> {
    text.strip_prefix(before)?.strip_suffix(after)
}

fn digest(hex: &str) -> Digest {
    format!("sha256:{hex}").parse().expect("keys are made of digests")
}

fn content(digest: &Digest) -> String {
    format!("{BLOBS}{}/{}/data", &digest.hex()[..2], digest.hex())
}

#[test]
fn an_auditor_notices_what_is_wrong_or_torn() {
    use hydrant_testkit::ImageBuilder;
    let image = ImageBuilder::new(1).layers(&[100, 200]).build();
    let hex = |digest: &Digest| digest.hex().to_owned();
    let mut sound = BTreeMap::new();
    let repository = format!("{REPOSITORIES}lab/app");
    for blob in image.all_blobs() {
        sound.insert(content(&blob.digest), blob.content.bytes());
        let link = format!("{repository}/_layers/sha256/{}/link", hex(&blob.digest));
        sound.insert(link, Bytes::new());
    }
    let name = image.digest.to_string();
    sound.insert(content(&image.digest), image.manifest.clone());
    let revision = format!("{repository}/_manifests/revisions/sha256/{}/link", hex(&image.digest));
    sound.insert(revision, name.clone().into());
    sound.insert(format!("{repository}/_manifests/tags/1/current/link"), name.clone().into());
    let record = serde_json::json!({ "digest": name }).to_string();
    sound.insert(format!("{RECORDS}lab/app/_tags/1.json"), record.into());
    assert_eq!(Objects(sound.clone()).audit(), 1);

    for key in sound.keys().filter(|key| !key.contains("_tags/") && !key.contains("/tags/")) {
        let mut torn = sound.clone();
        torn.remove(key);
        let found = std::panic::catch_unwind(|| Objects(torn).audit());
        assert!(found.is_err(), "{key} may be missing");
    }
    for key in sound.keys().filter(|key| key.ends_with("/data")) {
        let mut wrong = sound.clone();
        wrong.insert(key.clone(), "other".into());
        assert!(std::panic::catch_unwind(|| Objects(wrong).audit()).is_err(), "{key} may be wrong");
    }
}
