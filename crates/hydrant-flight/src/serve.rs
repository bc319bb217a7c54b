//! What other processes are told of the flights of this one. Who has the key of a flight may read
//! it; the key is in the flight's record on the bus.

use crate::{
    error::FlightError,
    flight::{Flight, Opened},
    flights::Flights,
    insurance::Follower,
    peers::{OFFER, Offer, PART, PASS, READABLE, Report, URGENT},
};
use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use hydrant_proto::Digest;
use subtle::ConstantTimeEq;

impl Flights {
    /// What this process serves to the others of its cluster, for a port that only they reach.
    pub fn peer_routes(&self) -> Router {
        Router::new()
            .route("/flights/{digest}", get(read))
            .route("/flights/{digest}/progress", get(progress))
            .route("/flights/{digest}/stored", get(stored))
            .with_state(self.clone())
    }
}

/// `GET /flights/<digest>`: the bytes of `Range` (`bytes=<n>-` or `bytes=<n>-<m>`), as they arrive.
/// The last one of the blob is withheld until the digest is confirmed. With [`PART`] they are of a part
/// that a client wants, which may be fetched ahead of the flight; with [`PASS`] they insure nothing.
async fn read(
    State(flights): State<Flights>,
    Path(digest): Path<String>,
    asked: HeaderMap,
) -> Result<Response, Refusal> {
    let flight = find(&flights, &digest, &asked)?;
    let offer = asked.get(OFFER).and_then(|value| value.to_str().ok()).and_then(Offer::parse);
    if let Some(offer) = offer {
        flight.offered(offer);
    }
    let Opened::Flying { size: Some(size) } = flight.opened().await? else {
        return Err(Refusal::Unknown);
    };
    let (from, until) = wanted(&asked, size).ok_or(Refusal::Range)?;
    let headers = [
        (header::CONTENT_RANGE, format!("bytes {from}-{}/{size}", until - 1)),
        (header::CONTENT_LENGTH, (until - from).to_string()),
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
    ];
    let body = if asked.contains_key(PART) {
        Body::from_stream(flight.part(from..until))
    } else if asked.contains_key(PASS) {
        Body::from_stream(flight.read(from, Some(until)))
    } else {
        Body::from_stream(followed(&flight, from, until))
    };
    Ok((StatusCode::PARTIAL_CONTENT, headers, body).into_response())
}

/// The bytes for a follower, which is seen to have them.
fn followed(
    flight: &Flight,
    from: u64,
    until: u64,
) -> impl Stream<Item = Result<Bytes, FlightError>> + Send + use<> {
    let follower = Follower::new(flight, from);
    flight.read(from, Some(until)).inspect_ok(move |block| follower.given(block.len()))
}

/// `GET /flights/<digest>/progress`: answers at once, and says how far the flight can be read.
async fn progress(
    State(flights): State<Flights>,
    Path(digest): Path<String>,
    asked: HeaderMap,
) -> Result<Response, Refusal> {
    let readable = find(&flights, &digest, &asked)?.progress().readable();
    Ok((StatusCode::NO_CONTENT, [(READABLE, readable.to_string())]).into_response())
}

/// `GET /flights/<digest>/stored`: answers when the blob is durable.
async fn stored(
    State(flights): State<Flights>,
    Path(digest): Path<String>,
    asked: HeaderMap,
) -> Result<StatusCode, Refusal> {
    find(&flights, &digest, &asked)?.stored().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The flight, if there is one that the key opens.
fn find(flights: &Flights, digest: &str, asked: &HeaderMap) -> Result<Flight, Refusal> {
    let digest: Digest = digest.parse().map_err(|_| Refusal::Unknown)?;
    let shown = asked.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let shown = shown.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    let is_opened = |flight: &Flight| shown.as_bytes().ct_eq(flight.key().as_bytes()).into();
    let mut found = [flights.get(&digest), flights.landed(&digest)].into_iter().flatten();
    let flight = found.find(is_opened).ok_or(Refusal::Unknown)?;
    if asked.contains_key(URGENT) {
        flight.urge();
    }
    Ok(flight)
}

/// The first byte that is asked for, and the one after the last.
fn wanted(asked: &HeaderMap, size: u64) -> Option<(u64, u64)> {
    let range = asked.get(header::RANGE)?.to_str().ok()?;
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let from: u64 = first.parse().ok()?;
    let until = match last {
        "" => size,
        last => last.parse::<u64>().ok()?.checked_add(1)?.min(size),
    };
    (from < until).then_some((from, until))
}

enum Refusal {
    /// No such flight, or not for this key: the same to who asks.
    Unknown,
    Range,
    Failed(FlightError),
}

impl From<FlightError> for Refusal {
    fn from(error: FlightError) -> Self {
        match error {
            // Somebody else can go on.
            FlightError::Stopping => Self::Unknown,
            error => Self::Failed(error),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Unknown => StatusCode::NOT_FOUND.into_response(),
            Self::Range => StatusCode::RANGE_NOT_SATISFIABLE.into_response(),
            Self::Failed(error) => {
                let report = Report {
                    class: error.class(),
                    reason: error.to_string(),
                    retry_after_seconds: error.retry_after().map(|pause| pause.as_secs()),
                };
                (StatusCode::BAD_GATEWAY, Json(report)).into_response()
            }
        }
    }
}
