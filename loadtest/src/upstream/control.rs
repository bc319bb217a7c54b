//! The requests by which the harness fills, changes and reads the upstream.

use super::{
    behaviour::Behaviour,
    holdings::{Holdings, ImageSpec, Inserted},
    program::{Body, Registry, full},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use serde::Serialize;
use std::{io, sync::Arc};

/// Below this path are the control requests; no registry has such paths.
pub(super) const PREFIX: &str = "/_loadtest/";
/// Longest body of a control request.
const LIMIT: usize = 64 * 1024 * 1024;

pub(super) async fn answer(
    registry: Arc<Registry>,
    request: Request<Incoming>,
) -> io::Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    let what = parts.uri.path().strip_prefix(PREFIX).unwrap_or_default();
    Ok(match (parts.method, what) {
        (Method::GET, "counters") => json(&registry.tally.read()),
        (Method::DELETE, "counters") => {
            registry.tally.reset();
            json(&())
        }
        (Method::PUT, "behaviour") => match parse::<Behaviour>(&read(body).await?) {
            Err(why) => plain(StatusCode::BAD_REQUEST, &why),
            Ok(behaviour) => {
                *registry.behaviour.write().expect("no holder panics") = behaviour;
                json(&())
            }
        },
        (Method::PUT, "images") => match parse::<Vec<ImageSpec>>(&read(body).await?) {
            Err(why) => plain(StatusCode::BAD_REQUEST, &why),
            Ok(specs) => json(&insert(registry, specs).await?),
        },
        _ => plain(StatusCode::NOT_FOUND, "no such control request"),
    })
}

/// Hashing is done aside, so that answers under way go on.
async fn insert(registry: Arc<Registry>, specs: Vec<ImageSpec>) -> io::Result<Vec<Inserted>> {
    let inserting = move || {
        let built: Vec<_> = specs.iter().map(Holdings::build).collect();
        let mut holdings = registry.holdings.write().expect("no holder panics");
        specs.iter().zip(&built).map(|(spec, image)| holdings.insert(spec, image)).collect()
    };
    tokio::task::spawn_blocking(inserting).await.map_err(io::Error::other)
}

async fn read(body: Incoming) -> io::Result<Bytes> {
    let whole = Limited::new(body, LIMIT).collect().await.map_err(io::Error::other)?;
    Ok(whole.to_bytes())
}

fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

fn json(value: &impl Serialize) -> Response<Body> {
    let text = serde_json::to_vec(value).expect("the answers can be written");
    Response::new(full(text))
}

fn plain(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(full(text.to_owned()));
    *response.status_mut() = status;
    response
}
