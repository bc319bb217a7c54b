//! `hydrant-loadtest upstream`: the registry itself. It serves what it was filled with, at the pace
//! and with the faults it was told, and counts.

use super::{
    behaviour::{Behaviour, Fault},
    control,
    counters::Tally,
    holdings::{Document, Holdings},
    pace::{Open, Pace, Shared, body},
};
use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hydrant_testkit::Content;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderName},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    future, io,
    net::SocketAddr,
    ops::Range,
    sync::{Arc, RwLock},
    time::{Duration, Instant},
};
use tokio::net::TcpListener;

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

pub(super) struct Registry {
    pub holdings: RwLock<Holdings>,
    pub behaviour: RwLock<Behaviour>,
    pub tally: Arc<Tally>,
    rate: Arc<Shared>,
    started: Instant,
}

/// Serves until the process is ended.
pub async fn run(listen: SocketAddr) -> Result<()> {
    let listener =
        TcpListener::bind(listen).await.with_context(|| format!("listen on {listen}"))?;
    let registry = Arc::new(Registry {
        holdings: RwLock::default(),
        behaviour: RwLock::default(),
        tally: Arc::default(),
        rate: Arc::new(Shared::new()),
        started: Instant::now(),
    });
    loop {
        let (stream, _) = listener.accept().await.context("accept a connection")?;
        // Failing only means later packets.
        let _ = stream.set_nodelay(true);
        let registry = registry.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(registry.clone(), request));
            let mut connection = http1::Builder::new();
            connection.timer(TokioTimer::new());
            // A connection that breaks is the client's affair.
            let _ = connection.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(registry: Arc<Registry>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    if request.uri().path().starts_with(control::PREFIX) {
        return control::answer(registry, request).await;
    }
    let behaviour = *registry.behaviour.read().expect("no holder panics");
    tokio::time::sleep(Duration::from_millis(behaviour.latency_ms)).await;
    match behaviour.fault.now(registry.started.elapsed()) {
        Fault::None | Fault::Flapping { .. } => Ok(registry.serve(&request, behaviour)),
        Fault::Status { code, retry_after_s } => {
            registry.tally.spoilt();
            Ok(failure(code, retry_after_s))
        }
        Fault::BlackHole => {
            registry.tally.spoilt();
            future::pending().await
        }
        Fault::Reset => {
            registry.tally.spoilt();
            Err(io::ErrorKind::ConnectionAborted.into())
        }
    }
}

impl Registry {
    fn serve(&self, request: &Request<Incoming>, behaviour: Behaviour) -> Response<Body> {
        let path = request.uri().path();
        let Some(path) = path.strip_prefix("/v2/") else {
            return failure(404, None);
        };
        if path.is_empty() {
            return Response::new(full("{}"));
        }
        if let Some((repository, reference)) = path.rsplit_once("/manifests/") {
            return self.manifest(request.method(), repository, reference);
        }
        match path.rsplit_once("/blobs/") {
            Some((_, digest)) => self.blob(request, digest, behaviour),
            None => failure(404, None),
        }
    }

    fn manifest(&self, method: &Method, repository: &str, reference: &str) -> Response<Body> {
        let held = self.holdings.read().expect("no holder panics").manifest(repository, reference);
        let Some(Document { digest, media_type, bytes }) = held else {
            return failure(404, None);
        };
        let response = Response::builder()
            .header(header::CONTENT_TYPE, media_type)
            .header(header::CONTENT_LENGTH, bytes.len())
            .header(DIGEST, digest.clone());
        let body = if method == Method::HEAD {
            self.tally.head();
            full("")
        } else {
            self.tally.manifest_get(repository, &digest);
            self.tally.sent(bytes.len() as u64);
            full(bytes)
        };
        response.body(body).expect("the headers are valid")
    }

    fn blob(&self, request: &Request<Incoming>, digest: &str, how: Behaviour) -> Response<Body> {
        let held = self.holdings.read().expect("no holder panics").blob(digest);
        let Some(content) = held else {
            return failure(404, None);
        };
        let length = content.length();
        let stated = request.headers().get(header::RANGE).and_then(|value| value.to_str().ok());
        let part = stated.and_then(|stated| range(stated, length));
        let sent = part.clone().unwrap_or(0..length);
        let mut response = Response::builder()
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, sent.end - sent.start)
            .header(header::ACCEPT_RANGES, "bytes")
            .header(DIGEST, digest);
        if part.is_some() {
            let told = format!("bytes {}-{}/{length}", sent.start, sent.end - 1);
            response =
                response.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, told);
        }
        let body = if request.method() == Method::HEAD {
            self.tally.head();
            full("")
        } else {
            self.tally.blob_get(digest, part.is_none());
            self.sending(&content, sent, how)
        };
        response.body(body).expect("the headers are valid")
    }

    fn sending(&self, content: &Content, range: Range<u64>, how: Behaviour) -> Body {
        let shared = how.total_rate.map(|rate| (rate, self.rate.clone()));
        let pace = Pace { own: how.connection_rate, shared };
        let sending = body(content.chunks(range), pace, Open::new(&self.tally));
        StreamBody::new(sending).boxed_unsync()
    }
}

/// The one range that is asked for; `None` sends the whole, as servers may.
fn range(stated: &str, length: u64) -> Option<Range<u64>> {
    let (first, last) = stated.strip_prefix("bytes=")?.split_once('-')?;
    let first: u64 = first.parse().ok()?;
    let last = last.parse().map_or(length, |last: u64| last.saturating_add(1).min(length));
    (first < last).then_some(first..last)
}

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

fn failure(code: u16, retry_after_s: Option<u64>) -> Response<Body> {
    let text = r#"{"errors":[{"code":"UNKNOWN","message":"by the load test"}]}"#;
    let mut response =
        Response::builder().status(code).header(header::CONTENT_TYPE, "application/json");
    if let Some(seconds) = retry_after_s {
        response = response.header(header::RETRY_AFTER, seconds);
    }
    response.body(full(text)).expect("the headers are valid")
}
