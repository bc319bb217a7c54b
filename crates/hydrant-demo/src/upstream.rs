//! The upstream of the demo: an image for three platforms, on connections of a modest speed.

use anyhow::{Result, ensure};
use hydrant_proto::Digest;
use hydrant_testkit::{FakeUpstream, Fault, Image, Request};
use std::collections::{BTreeMap, BTreeSet};
use tokio::net::TcpStream;

const MIB: u64 = 1024 * 1024;
const LAYERS: [u64; 3] = [16 * MIB, 6 * MIB, 2 * MIB];
/// Bytes per second on each connection: one platform takes four seconds, and the rest, four blobs
/// at once, some more, so that the hydration can be watched.
pub const PACE: u64 = 4 * MIB;

pub const PLATFORMS: [&str; 6] =
    ["linux/amd64", "linux/arm64", "linux/arm/v7", "linux/386", "linux/ppc64le", "linux/s390x"];
/// What the client pulls.
pub const PLATFORM: &str = "linux/amd64";
/// Repository and tag at the upstream; hydrant's rule puts `demo/` before it.
pub const REPOSITORY: &str = "app";
pub const TAG: &str = "1";

/// The running upstream.
pub struct Upstream {
    server: FakeUpstream,
    pub image: Image,
}

/// What was asked of the upstream up to some moment, or between two.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Times each manifest and blob was read. The tag's manifest counts under its digest.
    pub reads: BTreeMap<Digest, usize>,
    pub gets: usize,
    pub heads: usize,
    /// Body bytes sent, also of answers still under way.
    pub bytes: u64,
}

impl Upstream {
    pub async fn start() -> Self {
        let image = Image::multi_arch(1, &PLATFORMS, &LAYERS);
        let server = FakeUpstream::start().await;
        server.insert(&image, REPOSITORY, TAG);
        server.inject("*/blobs/*", Fault::slow(PACE));
        Self { server, image }
    }

    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Everything asked so far.
    pub fn asked(&self) -> Asked {
        Asked::of(&self.server.requests(), &self.image.digest)
    }

    /// Closes its port and every connection, and makes sure of it.
    pub async fn cut_off(&self) -> Result<()> {
        self.server.stop().await;
        let answers = TcpStream::connect(self.server.host()).await.is_ok();
        ensure!(!answers, "{} still accepts connections", self.server.host());
        Ok(())
    }

    /// Digests of all manifests and blobs.
    pub fn content(&self) -> BTreeSet<Digest> {
        let manifests = self.image.manifests().into_iter().map(|image| image.digest.clone());
        manifests.chain(self.image.all_blobs().iter().map(|blob| blob.digest.clone())).collect()
    }
}

impl Asked {
    fn of(requests: &[Request], tagged: &Digest) -> Self {
        let mut asked = Self::default();
        for request in requests {
            asked.bytes += request.bytes;
            match request.method.as_str() {
                "GET" => asked.gets += 1,
                _ => asked.heads += 1,
            }
            if let Some(digest) = read(request, tagged) {
                *asked.reads.entry(digest).or_default() += 1;
            }
        }
        asked
    }

    /// What came after `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |digest: &Digest| earlier.reads.get(digest).copied().unwrap_or(0);
        let later =
            self.reads.iter().map(|(digest, times)| (digest.clone(), times - before(digest)));
        Self {
            reads: later.filter(|(_, times)| *times > 0).collect(),
            gets: self.gets - earlier.gets,
            heads: self.heads - earlier.heads,
            bytes: self.bytes - earlier.bytes,
        }
    }
}

/// Which content a request read, if it read any.
fn read(request: &Request, tagged: &Digest) -> Option<Digest> {
    let (_, reference) = request.path.rsplit_once('/')?;
    let reads = request.method == "GET" && request.fits("GET", "/v2/*/*/*");
    match reference {
        _ if !reads => None,
        TAG => Some(tagged.clone()),
        digest => digest.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn request(method: &str, path: &str, bytes: u64) -> Request {
        Request {
            method: method.to_owned(),
            path: path.to_owned(),
            query: String::new(),
            headers: Default::default(),
            status: Some(200),
            bytes,
            started: Instant::now(),
            ended: None,
        }
    }

    #[test]
    fn reads_are_counted_by_digest_and_heads_read_nothing() {
        let (index, blob) = (Digest::of(b"index"), Digest::of(b"blob"));
        let requests = [
            request("GET", "/v2/", 2),
            request("HEAD", "/v2/app/manifests/1", 0),
            request("GET", "/v2/app/manifests/1", 10),
            request("GET", &format!("/v2/app/manifests/{index}"), 10),
            request("GET", &format!("/v2/app/blobs/{blob}"), 100),
        ];
        let asked = Asked::of(&requests, &index);
        assert_eq!(asked.reads, BTreeMap::from([(index.clone(), 2), (blob, 1)]));
        assert_eq!((asked.gets, asked.heads, asked.bytes), (4, 1, 122));
        let later = asked.since(&Asked::of(&requests[..3], &index));
        assert_eq!((later.gets, later.heads, later.bytes, later.reads[&index]), (2, 0, 110, 1));
    }
}
