//! Other processes: asked for the bytes of a flight that they lead.
//!
//! Their addresses come from the bus and are IP addresses with a port; no name is resolved, no
//! redirect followed, and nothing is sent along but the key of that one flight.

use crate::{error::FlightError, load::Body, turn::Leader};
use futures::{StreamExt, TryStreamExt};
use hydrant_proto::{Digest, FailureClass, FlightRecord};
use reqwest::{Client, RequestBuilder, Response, StatusCode, header};
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, time::Duration};

/// Longest wait for a connection within a cluster.
const CONNECT: Duration = Duration::from_secs(2);
/// Most bytes of a report.
const MAX_REPORT: usize = 16 * 1024;

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

    /// The bytes from `from` on, as they arrive at the leader. Waits for as long as the leader
    /// waits for its upstream.
    pub async fn read(&self, leader: &Leader, digest: &Digest, from: u64) -> Answer<Along> {
        let Some(ask) = self.ask(&leader.record, &format!("flights/{digest}")) else {
            return Answer::Unreachable(format!("{:?} is no address", leader.record.peer));
        };
        let ask = ask.header(header::RANGE, format!("bytes={from}-"));
        match answer(ask).await {
            Answer::Here(response) => along(response, from),
            Answer::Gone => Answer::Gone,
            Answer::Failed(report) => Answer::Failed(report),
            Answer::Unreachable(why) => Answer::Unreachable(why),
        }
    }

    /// Waits until the leader has stored the blob.
    pub async fn stored(&self, leader: &Leader, digest: &Digest) -> Answer<()> {
        let Some(ask) = self.ask(&leader.record, &format!("flights/{digest}/stored")) else {
            return Answer::Gone;
        };
        match answer(ask).await {
            Answer::Here(_) => Answer::Here(()),
            Answer::Gone => Answer::Gone,
            Answer::Failed(report) => Answer::Failed(report),
            Answer::Unreachable(why) => Answer::Unreachable(why),
        }
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
