//! Other processes: asked for the bytes of a flight that they lead.
//!
//! Their addresses come from the bus and are IP addresses with a port; no name is resolved, no
//! redirect followed, and nothing is sent along but the key of that one flight.

use crate::{error::FlightError, load::Body, turn::Leader};
use futures::{StreamExt, TryStreamExt};
use hydrant_proto::{Digest, FailureClass, FlightRecord};
use reqwest::{Client, RequestBuilder, Response, StatusCode, header};
use serde::{Deserialize, Serialize};
use std::{fmt, net::SocketAddr, time::Duration};

/// Longest wait for a connection within a cluster.
const CONNECT: Duration = Duration::from_secs(2);
/// Most bytes of a report.
const MAX_REPORT: usize = 16 * 1024;

/// Tells what a follower has itself: see [`Offer`].
pub(crate) const OFFER: &str = "x-hydrant-offer";

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
pub(crate) struct Peers(Client);

impl Peers {
    /// Fails only where no client can be built at all.
    pub fn new() -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http1_only();
        Ok(Self(client.build()?))
    }

    /// The bytes from `from` on, as they arrive at the leader, who is told what we have ourselves.
    /// Waits for as long as the leader waits for its upstream.
    pub async fn read(
        &self,
        leader: &Leader,
        digest: &Digest,
        from: u64,
        offer: Option<Offer>,
    ) -> Answer<Along> {
        let Some(mut ask) = self.ask(&leader.record, &format!("flights/{digest}")) else {
            return Answer::Unreachable(format!("{:?} is no address", leader.record.peer));
        };
        if let Some(offer) = offer {
            ask = ask.header(OFFER, offer.to_string());
        }
        let ask = ask.header(header::RANGE, format!("bytes={from}-"));
        answer(ask).await.and_then(|response| along(response, from))
    }

    /// The bytes from `from` up to what was offered.
    pub async fn accept(&self, offer: &Offer, digest: &Digest, from: u64) -> Answer<Along> {
        let ask = self.0.get(format!("http://{}/flights/{digest}", offer.address));
        let range = format!("bytes={from}-{}", offer.upto.saturating_sub(1));
        let ask = ask.bearer_auth(&offer.key).header(header::RANGE, range);
        answer(ask).await.and_then(|response| along(response, from))
    }

    /// Waits until the leader has stored the blob.
    pub async fn stored(&self, leader: &Leader, digest: &Digest) -> Answer<()> {
        let Some(ask) = self.ask(&leader.record, &format!("flights/{digest}/stored")) else {
            return Answer::Gone;
        };
        answer(ask).await.and_then(|_| Answer::Here(()))
    }

    fn ask(&self, record: &FlightRecord, path: &str) -> Option<RequestBuilder> {
        let address: SocketAddr = record.peer.parse().ok()?;
        Some(self.0.get(format!("http://{address}/{path}")).bearer_auth(&record.key))
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
    let broken = |error: reqwest::Error| FlightError::Elsewhere {
        class: FailureClass::UpstreamDown,
        retry_after: None,
        reason: format!("read from the leader of the flight: {error}"),
    };
    let stream = response.bytes_stream().map_err(broken).boxed();
    Answer::Here(Along { size, body: Body { offset: from, stream } })
}
