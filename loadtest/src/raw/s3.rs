//! Multipart writes by the S3 protocol itself, signed as AWS prescribes (SigV4), since a store that
//! checks no signature would be another store.

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use hydrant_proto::Digest;
use hydrant_testkit::{Content, SeaweedFs};
use jiff::{Timestamp, tz::TimeZone};
use reqwest::{Client, Method, Response};
use std::time::Instant;
use tokio::sync::Semaphore;

/// As hydrant writes: parts of this size, so many of one upload at once, and of all that one process
/// has under way.
const PART: u64 = 8 * 1024 * 1024;
pub const PARTS_OF_ONE: usize = 3;
pub const PARTS_OF_ALL: usize = 6;

/// MB/s of writing objects of these sizes, `streams` at once.
pub async fn writes(s3: &SeaweedFs, sizes: &[u64], streams: usize, seed: u64) -> Result<f64> {
    let bucket = Bucket::of(s3);
    let started = Instant::now();
    let write = |(n, size): (usize, &u64)| {
        let content = Content::Pooled { seed: seed * 1_000 + n as u64, length: *size };
        let key = format!("raw/{seed}-{n}");
        let bucket = &bucket;
        async move { bucket.write(&key, content).await }
    };
    let writing = stream::iter(sizes.iter().enumerate().map(write));
    writing.buffer_unordered(streams).try_collect::<()>().await?;
    let bytes: u64 = sizes.iter().sum();
    Ok(bytes as f64 / 1e6 / started.elapsed().as_secs_f64())
}

struct Bucket {
    /// `host:port`.
    host: String,
    name: &'static str,
    access_key: &'static str,
    secret_key: &'static str,
    client: Client,
    /// A permit for each part under way.
    parts: Semaphore,
}

impl Bucket {
    fn of(s3: &SeaweedFs) -> Self {
        Self {
            host: s3.endpoint().trim_start_matches("http://").to_owned(),
            name: s3.bucket(),
            access_key: s3.access_key(),
            secret_key: s3.secret_key(),
            client: Client::new(),
            parts: Semaphore::new(PARTS_OF_ALL),
        }
    }

    async fn write(&self, key: &str, content: Content) -> Result<()> {
        let begun = self.send(Method::POST, key, "uploads=", Vec::new()).await?.text().await?;
        let id = between(&begun, "<UploadId>", "</UploadId>").context("an upload has an id")?;
        let starts = (0..content.length()).step_by(PART as usize);
        let part = |(number, start): (usize, u64)| {
            let query = format!("partNumber={}&uploadId={id}", number + 1);
            let range = start..content.length().min(start + PART);
            let content = &content;
            async move {
                let _permit = self.parts.acquire().await?;
                let mut body = Vec::with_capacity(PART as usize);
                content.chunks(range).for_each(|chunk| body.extend_from_slice(&chunk));
                self.put_part(key, &query, body).await
            }
        };
        let parts = stream::iter(starts.enumerate().map(part)).buffered(PARTS_OF_ONE);
        let tags: Vec<String> = parts.try_collect().await?;
        let list: String = (1..).zip(&tags).map(|(number, tag)| listed(number, tag)).collect();
        let body = format!("<CompleteMultipartUpload>{list}</CompleteMultipartUpload>");
        let query = format!("uploadId={id}");
        let completed = self.send(Method::POST, key, &query, body.into_bytes()).await?;
        let said = completed.text().await?;
        ensure!(!said.contains("<Error>"), "the upload was not completed: {said}");
        Ok(())
    }

    async fn put_part(&self, key: &str, query: &str, body: Vec<u8>) -> Result<String> {
        let answer = self.send(Method::PUT, key, query, body).await?;
        let tag = answer.headers().get("etag").context("a part has an ETag")?;
        Ok(tag.to_str()?.to_owned())
    }

    /// `query` is in canonical form: sorted, every key with `=`.
    async fn send(
        &self,
        method: Method,
        key: &str,
        query: &str,
        body: Vec<u8>,
    ) -> Result<Response> {
        let path = format!("/{}/{key}", self.name);
        let now = Timestamp::now().to_zoned(TimeZone::UTC);
        let time = now.strftime("%Y%m%dT%H%M%SZ").to_string();
        let authorization = self.authorization(method.as_str(), &path, query, &time);
        let request = self
            .client
            .request(method, format!("http://{}{path}?{query}", self.host))
            .header("x-amz-date", time)
            .header("x-amz-content-sha256", UNSIGNED)
            .header("authorization", authorization)
            .body(body);
        let answer = request.send().await.context("reach the store")?;
        let status = answer.status();
        if !status.is_success() {
            anyhow::bail!("the store answered {status}: {}", answer.text().await?);
        }
        Ok(answer)
    }

    fn authorization(&self, method: &str, path: &str, query: &str, time: &str) -> String {
        const SIGNED: &str = "host;x-amz-content-sha256;x-amz-date";
        let canonical = format!(
            "{method}\n{path}\n{query}\nhost:{}\nx-amz-content-sha256:{UNSIGNED}\n\
             x-amz-date:{time}\n\n{SIGNED}\n{UNSIGNED}",
            self.host
        );
        let scope = format!("{}/us-east-1/s3/aws4_request", &time[..8]);
        let hash = Digest::of(canonical.as_bytes());
        let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hash.hex());
        let mut key = format!("AWS4{}", self.secret_key).into_bytes();
        for part in scope.split('/') {
            key = hmac(&key, part.as_bytes());
        }
        let signature = hex::encode(hmac(&key, text.as_bytes()));
        let credential = format!("{}/{scope}", self.access_key);
        format!(
            "AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={SIGNED}, \
             Signature={signature}"
        )
    }
}

const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

fn listed(number: usize, tag: &str) -> String {
    format!("<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>")
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    Some(text.split_once(before)?.1.split_once(after)?.0)
}

/// HMAC-SHA-256 (RFC 2104) of a few bytes; the keys here are shorter than a block.
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 64;
    let padded = |pad: u8| -> Vec<u8> {
        (0..BLOCK).map(|n| key.get(n).copied().unwrap_or(0) ^ pad).collect()
    };
    let inner = sha256(&[padded(0x36), text.to_vec()].concat());
    sha256(&[padded(0x5c), inner].concat())
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    hex::decode(Digest::of(bytes).hex()).expect("a digest is hexadecimal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mac_is_that_of_rfc_4231() {
        let mac = hmac(b"Jefe", b"what do ya want for nothing?");
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(hex::encode(mac), expected);
    }

    #[tokio::test]
    async fn a_store_that_checks_signatures_takes_the_writes() {
        let s3 = SeaweedFs::start().await;
        assert!(writes(&s3, &[PART + 1, 10], 2, 7).await.unwrap() > 0.0);
        assert_eq!(s3.objects("raw/").await.get("raw/7-0"), Some(&(PART + 1)));
    }
}
