//! The real client, skopeo.

use crate::{Finished, Process, binaries, server::runtime};
use hydrant_proto::{Algorithm, Digest, Hasher, Manifest};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::TempDir;

/// How long one call of skopeo may take.
const LIMIT: Duration = Duration::from_secs(300);

/// Calls skopeo; each call has its own directory and no login.
#[derive(Clone, Copy, Debug)]
pub struct Skopeo;

/// A pull to come: `skopeo copy docker://<image> dir:…`.
#[derive(Clone, Debug)]
pub struct Pull {
    image: String,
    global: Vec<String>,
    copy: Vec<String>,
}

/// What a pull brought. The files are gone when it is dropped.
#[derive(Debug)]
pub struct Pulled {
    /// Of the manifest or index the name led to; of the platform's manifest, unless all were copied.
    pub digest: Digest,
    /// The bytes of that manifest, as they came.
    pub manifest: Vec<u8>,
    /// Manifests below an index.
    pub children: BTreeSet<Digest>,
    /// Config and layers. Each was hashed again after the pull.
    pub blobs: BTreeSet<Digest>,
    directory: TempDir,
}

impl Skopeo {
    /// A pull of `<host>:<port>/<repository>:<tag>` (or `@<digest>`) over plain HTTP.
    pub fn pull(image: impl Into<String>) -> Pull {
        Pull { image: image.into(), global: Vec::new(), copy: Vec::new() }
    }

    /// The bytes of the manifest, as `skopeo inspect --raw` prints them; `Err` is what it wrote.
    pub async fn inspect_raw(image: &str) -> Result<Vec<u8>, String> {
        let directory = directory();
        let mut process = skopeo(directory.path());
        process.args(["inspect", "--raw", "--tls-verify=false"]).arg(format!("docker://{image}"));
        succeeded(process.run(LIMIT).await).map(|finished| finished.stdout)
    }

    /// The tags, as `skopeo list-tags` prints them.
    pub async fn list_tags(repository: &str) -> Result<Vec<String>, String> {
        let directory = directory();
        let mut process = skopeo(directory.path());
        process.args(["list-tags", "--tls-verify=false"]).arg(format!("docker://{repository}"));
        let output = succeeded(process.run(LIMIT).await)?.stdout;
        let list: serde_json::Value =
            serde_json::from_slice(&output).map_err(|error| error.to_string())?;
        let tags = list["Tags"].as_array().cloned().unwrap_or_default();
        Ok(tags.iter().filter_map(|tag| tag.as_str().map(str::to_owned)).collect())
    }
}

impl Pull {
    /// Brings every platform of an index, and the index itself.
    pub fn all(mut self) -> Self {
        self.copy.push("--all".to_owned());
        self
    }

    /// Brings this platform of an index (`linux/arm64`) instead of the machine's.
    pub fn platform(mut self, platform: &str) -> Self {
        let mut parts = platform.split('/');
        for option in ["os", "arch", "variant"] {
            self.global.extend(parts.next().map(|part| format!("--override-{option}={part}")));
        }
        self
    }

    pub fn user(mut self, user: &str, password: &str) -> Self {
        self.copy.push(format!("--src-creds={user}:{password}"));
        self
    }

    /// Pulls; `Err` is what skopeo wrote.
    pub async fn run(self) -> Result<Pulled, String> {
        let directory = directory();
        let image = directory.path().join("image");
        let mut process = skopeo(directory.path());
        process.args(&self.global).args(["copy", "--src-tls-verify=false", "--preserve-digests"]);
        process.args(&self.copy).arg(format!("docker://{}", self.image));
        process.arg(format!("dir:{}", image.display()));
        succeeded(process.run(LIMIT).await)?;
        let read = runtime().spawn_blocking(move || Pulled::read(directory, &image));
        read.await.expect("reading does not panic").map_err(|error| error.to_string())
    }
}

impl Pulled {
    /// Where skopeo left the image: `manifest.json`, `<hex>.manifest.json` and `<hex>`.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    fn read(directory: TempDir, image: &Path) -> io::Result<Self> {
        let manifest = fs::read(image.join("manifest.json"))?;
        let digest = Digest::of(&manifest);
        let (mut children, mut blobs) = (BTreeSet::new(), BTreeSet::new());
        for entry in fs::read_dir(image)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let (hex, found) = match name.strip_suffix(".manifest.json") {
                Some(hex) => (hex, &mut children),
                None => (name.as_str(), &mut blobs),
            };
            if let Ok(named) = format!("sha256:{hex}").parse::<Digest>() {
                check(&named, &image.join(&name))?;
                found.insert(named);
            }
        }
        Ok(Self { digest, manifest, children, blobs, directory })
    }

    /// The manifest, parsed.
    pub fn parsed(&self) -> Manifest {
        Manifest::parse(&self.manifest).expect("skopeo accepted the manifest")
    }
}

fn check(named: &Digest, file: &Path) -> io::Result<()> {
    let (mut reader, mut hasher) = (File::open(file)?, Hasher::new(Algorithm::Sha256));
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match reader.read(&mut buffer)? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    let found = hasher.finish();
    if found == *named {
        return Ok(());
    }
    Err(io::Error::other(format!("the file of {named} hashes to {found}")))
}

fn directory() -> TempDir {
    let directory = tempfile::Builder::new().prefix("hydrant-skopeo-").tempdir();
    directory.expect("the temporary directory is writable")
}

fn skopeo(directory: &Path) -> Process {
    let mut process = Process::new("skopeo", binaries::find("skopeo"), directory);
    process.env("HOME", directory).env("XDG_RUNTIME_DIR", directory);
    process.arg("--insecure-policy").arg("--tmpdir").arg(directory);
    process
}

fn succeeded(finished: Finished) -> Result<Finished, String> {
    if finished.status.success() { Ok(finished) } else { Err(finished.stderr) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FakeUpstream, Fault, Image, ImageBuilder};

    #[tokio::test]
    async fn a_pull_brings_what_the_upstream_has() {
        let upstream = FakeUpstream::start().await;
        let index = Image::multi_arch(1, &["linux/amd64", "linux/arm64"], &[1_000, 50_000]);
        upstream.insert(&index, "lab/app", "1");
        let name = format!("{}/lab/app:1", upstream.host());

        let all = Skopeo::pull(&name).all().run().await.unwrap();
        assert_eq!((&all.digest, all.children.len(), all.blobs.len()), (&index.digest, 2, 6));
        assert_eq!(all.parsed().media_type, index.media_type);
        let arm = Skopeo::pull(&name).platform("linux/arm64").run().await.unwrap();
        assert_eq!(arm.digest, index.child("linux/arm64").digest);
        assert_eq!(Skopeo::inspect_raw(&name).await.unwrap(), index.manifest);
        let repository = name.strip_suffix(":1").unwrap();
        assert_eq!(Skopeo::list_tags(repository).await.unwrap(), ["1"]);
    }

    #[tokio::test]
    async fn a_pull_of_wrong_bytes_fails() {
        let upstream = FakeUpstream::start().await;
        upstream.insert(&ImageBuilder::new(1).layer(10_000).build(), "lab/app", "1");
        upstream.inject("*/blobs/*", Fault::wrong_bytes());
        let failure = Skopeo::pull(format!("{}/lab/app:1", upstream.host())).run().await;
        assert!(failure.is_err());
    }
}
