//! Other processes: asked for the bytes of a flight that they lead.
//!
//! Their addresses come from the bus and are IP addresses with a port; no name is resolved, no
//! redirect followed, and nothing is sent along but the key of that one flight.

use crate::{
    error::FlightError,
    load::Body,
    reach::{Reach, Way},
    turn::Leader,
};
use futures::{StreamExt, TryStreamExt, stream};
use hydrant_proto::{Digest, FailureClass, FlightRecord};
use hydrant_upstream::Priority;
use reqwest::{Client, RequestBuilder, Response, StatusCode, header};
use serde::{Deserialize, Serialize};
use std::{fmt, net::SocketAddr, ops::Range, time::Duration};
use tokio::time::{Instant, timeout};

/// Longest wait for a connection within a cluster.
const CONNECT: Duration = Duration::from_secs(2);
/// Most bytes of a report.
const MAX_REPORT: usize = 16 * 1024;

/// Tells what a follower has itself: see [`Offer`].
pub(crate) const OFFER: &str = "x-hydrant-offer";

/// Tells that a client waits for the flight.
pub(crate) const URGENT: &str = "x-hydrant-urgent";

/// Tells that a part is asked for and not the rest: it need not wait for the flight.
pub(crate) const PART: &str = "x-hydrant-part";

/// Tells that the bytes go to one client at its own pace, and are kept by nobody.
pub(crate) const PASS: &str = "x-hydrant-pass";

/// Tells up to which byte a flight can be read.
pub(crate) const READABLE: &str = "x-hydrant-readable";

/// Longest wait for what is known where it is asked for.
const PROMPT: Duration = Duration::from_secs(1);

/// What a follower has of a blob, for a leader that has less: `<address> <key> <bytes>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub address: SocketAddr,
    pub key: String,
    /// Bytes it has, from the first one on.
    pub upto: u64,
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.address, self.key, self.upto)
    }
}

impl Offer {
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let address = words.next()?.parse().ok()?;
        let (key, upto) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        words.next().is_none().then_some(Self { address, key, upto })
    }
}

/// Why a flight failed, as a leader tells its followers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub class: FailureClass,
    pub reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
}

/// What a leader answered.
pub(crate) enum Answer<T> {
    Here(T),
    /// It has no such flight any more.
    Gone,
    Failed(Report),
    /// No answer that means anything.
    Unreachable(String),
}

impl<T> Answer<T> {
    fn and_then<U>(self, next: impl FnOnce(T) -> Answer<U>) -> Answer<U> {
        match self {
            Self::Here(here) => next(here),
            Self::Gone => Answer::Gone,
            Self::Failed(report) => Answer::Failed(report),
            Self::Unreachable(why) => Answer::Unreachable(why),
        }
    }
}

/// The bytes of a flight from some offset on, and the size of the whole blob.
pub(crate) struct Along {
    pub size: u64,
    pub body: Body,
}

#[derive(Debug)]
pub(crate) struct Peers {
    client: Client,
    reach: Reach,
}

impl Peers {
    /// Fails only where no client can be built at all.
    pub fn new() -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http1_only();
        Ok(Self { client: client.build()?, reach: Reach::default() })
    }

    /// The bytes from `from` on, as they arrive at the leader, who is told what we have ourselves.
    /// Waits for as long as the leader waits for its upstream.
    pub async fn read(
        &self,
        leader: &Leader,
        digest: &Digest,
        from: u64,
        offer: Option<Offer>,
        priority: Priority,
    ) -> Answer<Along> {
        let Some((peer, mut ask)) = self.ask(&leader.record, &format!("flights/{digest}")) else {
            return Answer::Unreachable(format!("{:?} is no address", leader.record.peer));
        };
        if let Some(offer) = offer {
            ask = ask.header(OFFER, offer.to_string());
        }
        if priority == Priority::Interactive {
            ask = ask.header(URGENT, "1");
        }
        let ask = ask.header(header::RANGE, format!("bytes={from}-"));
        self.answer(peer, ask).await.and_then(|response| along(response, from))
    }

    /// All bytes, for one client who keeps none of them: the leader does not wait for it.
    pub async fn pass(&self, leader: &Leader, digest: &Digest) -> Answer<Along> {
        let Some((peer, ask)) = self.ask(&leader.record, &format!("flights/{digest}")) else {
            return Answer::Gone;
        };
        let ask = ask.header(PASS, "1").header(URGENT, "1").header(header::RANGE, "bytes=0-");
        self.answer(peer, ask).await.and_then(|response| along(response, 0))
    }

    /// The bytes from `from` up to what was offered. They are there already: who sends nothing for
    /// `patience` is not waited for.
    pub async fn accept(
        &self,
        offer: &Offer,
        digest: &Digest,
        from: u64,
        patience: Duration,
    ) -> Answer<Along> {
        let ask = self.client.get(format!("http://{}/flights/{digest}", offer.address));
        let range = format!("bytes={from}-{}", offer.upto.saturating_sub(1));
        let ask = ask.bearer_auth(&offer.key).header(header::RANGE, range);
        let answer = self.within(patience, offer.address, ask).await;
        let along = answer.and_then(|response| along(response, from));
        along.and_then(|Along { size, body }| {
            Answer::Here(Along { size, body: body.within(patience) })
        })
    }

    /// The bytes of `part`, for a client: not before the leader has them, from wherever.
    pub async fn part(&self, leader: &Leader, digest: &Digest, part: &Range<u64>) -> Answer<Along> {
        let Some((peer, ask)) = self.ask(&leader.record, &format!("flights/{digest}")) else {
            return Answer::Gone;
        };
        let range = format!("bytes={}-{}", part.start, part.end.saturating_sub(1));
        let ask = ask.header(PART, "1").header(header::RANGE, range);
        self.answer(peer, ask).await.and_then(|response| along(response, part.start))
    }

    /// Tells the leader that a client waits.
    pub async fn urge(&self, leader: &Leader, digest: &Digest) -> Answer<()> {
        let path = format!("flights/{digest}/progress");
        let Some((peer, ask)) = self.ask(&leader.record, &path) else { return Answer::Gone };
        self.within(PROMPT, peer, ask.header(URGENT, "1")).await.and_then(|_| Answer::Here(()))
    }

    /// How many bytes there are to be read, from a leader that answers at once.
    pub async fn readable(&self, leader: &Leader, digest: &Digest) -> Answer<u64> {
        let path = format!("flights/{digest}/progress");
        let Some((peer, ask)) = self.ask(&leader.record, &path) else { return Answer::Gone };
        self.within(PROMPT, peer, ask).await.and_then(|response| {
            let told = response.headers().get(READABLE).and_then(|value| value.to_str().ok());
            match told.and_then(|told| told.parse().ok()) {
                Some(readable) => Answer::Here(readable),
                None => Answer::Unreachable("it does not say what it has".to_owned()),
            }
        })
    }

    /// Waits until the leader has stored the blob.
    pub async fn stored(&self, leader: &Leader, digest: &Digest) -> Answer<()> {
        let path = format!("flights/{digest}/stored");
        let Some((peer, ask)) = self.ask(&leader.record, &path) else { return Answer::Gone };
        self.answer(peer, ask).await.and_then(|_| Answer::Here(()))
    }

    /// Whether it is worth the time to read from the leader: it could be reached the last time, or
    /// can again.
    pub async fn is_worth_asking(&self, leader: &Leader, digest: &Digest) -> bool {
        let Ok(peer) = leader.record.peer.parse() else { return true };
        match self.reach.way(peer, Instant::now()) {
            Way::Open => true,
            Way::Closed => false,
            Way::Doubtful => match self.readable(leader, digest).await {
                Answer::Here(_) | Answer::Gone | Answer::Failed(_) => true,
                Answer::Unreachable(_) => {
                    self.reach.lost(peer, Instant::now());
                    false
                }
            },
        }
    }

    /// The leader could not be reached for so long that others need not try; whether that is news.
    pub fn give_up(&self, leader: &Leader) -> bool {
        let Ok(peer) = leader.record.peer.parse() else { return true };
        self.reach.lost(peer, Instant::now()) == Way::Open
    }

    fn ask(&self, record: &FlightRecord, path: &str) -> Option<(SocketAddr, RequestBuilder)> {
        let address: SocketAddr = record.peer.parse().ok()?;
        let ask = self.client.get(format!("http://{address}/{path}")).bearer_auth(&record.key);
        Some((address, ask))
    }

    /// At most `patience`, for what is at hand.
    async fn within(
        &self,
        patience: Duration,
        peer: SocketAddr,
        ask: RequestBuilder,
    ) -> Answer<Response> {
        let late = |_| Answer::Unreachable("it does not answer".to_owned());
        timeout(patience, self.answer(peer, ask)).await.unwrap_or_else(late)
    }

    async fn answer(&self, peer: SocketAddr, ask: RequestBuilder) -> Answer<Response> {
        let answer = answer(ask).await;
        if !matches!(answer, Answer::Unreachable(_)) {
            self.reach.found(peer);
        }
        answer
    }
}

impl Body {
    /// The same, but it breaks when nothing comes for so long.
    pub fn within(self, idle: Duration) -> Self {
        let stream = stream::unfold(Some(self.stream), move |chunks| async move {
            let mut chunks = chunks?;
            match timeout(idle, chunks.next()).await {
                Ok(chunk) => Some((chunk?, Some(chunks))),
                Err(_) => Some((Err(broken("nothing comes")), None)),
            }
        });
        Self { offset: self.offset, stream: stream.boxed() }
    }
}

async fn answer(ask: RequestBuilder) -> Answer<Response> {
    match ask.send().await {
        Ok(response) if response.status().is_success() => Answer::Here(response),
        Ok(response) if response.status() == StatusCode::BAD_GATEWAY => report(response).await,
        Ok(response) if response.status() == StatusCode::NOT_FOUND => Answer::Gone,
        Ok(response) => Answer::Unreachable(format!("it answered {}", response.status())),
        Err(error) => Answer::Unreachable(error.to_string()),
    }
}

async fn report(response: Response) -> Answer<Response> {
    let mut text = Vec::new();
    let mut chunks = response.bytes_stream();
    while let Some(Ok(chunk)) = chunks.next().await {
        text.extend_from_slice(&chunk);
        if text.len() > MAX_REPORT {
            return Answer::Unreachable("its report is too long".to_owned());
        }
    }
    match serde_json::from_slice(&text) {
        Ok(report) => Answer::Failed(report),
        Err(error) => Answer::Unreachable(format!("its report is not understood: {error}")),
    }
}

fn along(response: Response, from: u64) -> Answer<Along> {
    let range = response.headers().get(header::CONTENT_RANGE);
    let range = range.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let size = range.strip_prefix(&format!("bytes {from}-")).and_then(|rest| {
        let (_, size) = rest.split_once('/')?;
        size.parse().ok()
    });
    let Some(size) = size else {
        return Answer::Unreachable(format!("it answered the range {range:?}"));
    };
    let stream = response.bytes_stream().map_err(broken).boxed();
    Answer::Here(Along { size, body: Body { offset: from, stream } })
}

pub(crate) fn broken(why: impl fmt::Display) -> FlightError {
    FlightError::Elsewhere {
        class: FailureClass::UpstreamDown,
        retry_after: None,
        reason: format!("read from another process: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    /// One who offers ten bytes, sends `sent`, and then nothing.
    async fn frozen(sent: &'static str) -> Offer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0, "it asks");
            stream.write_all(sent.as_bytes()).await.unwrap();
            std::future::pending::<()>().await;
        });
        Offer { address, key: "key".to_owned(), upto: 10 }
    }

    #[tokio::test]
    async fn who_offers_and_freezes_is_not_waited_for() {
        let (peers, digest) = (Peers::new().unwrap(), Digest::of(b"hydrant"));
        let silent = peers.accept(&frozen("").await, &digest, 0, PROMPT).await;
        assert!(matches!(silent, Answer::Unreachable(_)));
        let some =
            "HTTP/1.1 206 \r\ncontent-range: bytes 0-9/20\r\ncontent-length: 10\r\n\r\nhydra";
        let Answer::Here(along) = peers.accept(&frozen(some).await, &digest, 0, PROMPT).await
        else {
            panic!("it answers");
        };
        let chunks: Vec<_> = along.body.stream.collect().await;
        assert_eq!(chunks[0].as_ref().unwrap(), "hydra");
        assert!(chunks[1].is_err() && chunks.len() == 2, "{chunks:?}");
    }
}
