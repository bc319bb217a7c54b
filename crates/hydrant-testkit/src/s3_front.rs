//! A front before SeaweedFS that passes requests on, and spoils those it is told to: what a real S3
//! does once a year and SeaweedFS cannot be made to do.

use crate::{
    Request, SeaweedFs, client,
    request::{Entry, RequestLog},
    server::{Answer, Server, full, streamed},
};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream};
use http_body_util::BodyExt;
use hyper::{Response, StatusCode, body::Incoming, http::request::Parts};
use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

/// A running front; gone when dropped.
pub struct S3Front {
    server: Server,
    shared: Arc<Shared>,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoilt {
    /// Answered with this status and S3 error code, and not passed on.
    Refused(u16, &'static str),
    /// Passed on, and the connection closed instead of an answer.
    Unanswered,
    /// Passed on; one byte in the middle of the answer's body is changed.
    Flipped,
    /// Passed on; the connection is closed after so many bytes of the answer's body.
    CutAfter(usize),
}

/// Which requests are spoilt.
#[derive(Clone, Debug)]
pub struct Spoiling {
    method: &'static str,
    path: String,
    query: &'static str,
    times: u64,
    how: Spoilt,
}

/// A spoiling in force; tells how often it fired.
#[derive(Clone, Debug)]
pub struct Spoiled {
    spoiling: Spoiling,
    fired: Arc<AtomicU64>,
    all: Arc<Mutex<Vec<Self>>>,
}

struct Shared {
    target: String,
    client: reqwest::Client,
    spoilt: Arc<Mutex<Vec<Spoiled>>>,
    requests: RequestLog,
}

impl Spoiling {
    /// Requests of this method whose path fits `path` (`*` stands for anything).
    pub fn of(method: &'static str, path: &str, how: Spoilt) -> Self {
        Self { method, path: path.to_owned(), query: "", times: u64::MAX, how }
    }

    /// Only those whose query contains `part`, such as `uploadId=`.
    pub fn query(self, part: &'static str) -> Self {
        Self { query: part, ..self }
    }

    /// Only the first so many of them.
    pub fn times(self, times: u64) -> Self {
        Self { times, ..self }
    }

    fn fits(&self, request: &Parts) -> bool {
        let uri = &request.uri;
        request.method == self.method
            && crate::pattern::matches(&self.path, uri.path())
            && uri.query().unwrap_or_default().contains(self.query)
    }
}

impl Spoiled {
    /// How many requests it met.
    pub fn fired(&self) -> u64 {
        self.fired.load(Ordering::SeqCst).min(self.spoiling.times)
    }

    pub fn end(&self) {
        let mut all = self.all.lock().expect("no holder panics");
        all.retain(|other| !Arc::ptr_eq(&other.fired, &self.fired));
    }
}

impl S3Front {
    pub async fn start(s3: &SeaweedFs) -> Self {
        let shared = Arc::new(Shared {
            target: s3.endpoint(),
            client: client::plain(),
            spoilt: Arc::default(),
            requests: RequestLog::default(),
        });
        let handling = shared.clone();
        let server = Server::start(Arc::new(move |request: hyper::Request<Incoming>| {
            let shared = handling.clone();
            async move { shared.handle(request).await }.boxed()
        }));
        Self { server: server.await, shared }
    }

    /// `http://127.0.0.1:<port>`, to be given to [`SeaweedFs::env_through`].
    pub fn endpoint(&self) -> String {
        self.server.url()
    }

    /// Spoils from now on. Of several that fit, the first that is not used up decides.
    pub fn spoil(&self, spoiling: Spoiling) -> Spoiled {
        let all = self.shared.spoilt.clone();
        let spoiled = Spoiled { spoiling, fired: Arc::default(), all };
        self.shared.spoilt.lock().expect("no holder panics").push(spoiled.clone());
        spoiled
    }

    /// Requests of this method (or `*`) whose path fits `pattern`.
    pub fn requests_of(&self, method: &str, pattern: &str) -> Vec<Request> {
        self.shared.requests.fitting(method, pattern)
    }
}

impl Shared {
    async fn handle(&self, request: hyper::Request<Incoming>) -> Answer {
        let (parts, body) = request.into_parts();
        let entry = self.requests.begin(&parts);
        let _ending = entry.until_dropped();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        match self.how(&parts) {
            Some(Spoilt::Refused(status, code)) => Ok(refusal(status, code, &entry)),
            Some(Spoilt::Unanswered) => {
                self.pass(&parts, body).await?;
                Err(io::ErrorKind::ConnectionReset.into())
            }
            how => self.answered(self.pass(&parts, body).await?, how, &entry).await,
        }
    }

    fn how(&self, request: &Parts) -> Option<Spoilt> {
        let spoilt = self.spoilt.lock().expect("no holder panics").clone();
        let fires = |one: &&Spoiled| {
            one.spoiling.fits(request)
                && one.fired.fetch_add(1, Ordering::SeqCst) < one.spoiling.times
        };
        spoilt.iter().find(fires).map(|one| one.spoiling.how)
    }

    /// With the headers as they came: the signature covers the host the client speaks to.
    async fn pass(&self, request: &Parts, body: Bytes) -> io::Result<reqwest::Response> {
        let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
        let passed = self.client.request(request.method.clone(), format!("{}{path}", self.target));
        passed.headers(request.headers.clone()).body(body).send().await.map_err(io::Error::other)
    }

    async fn answered(
        &self,
        answer: reqwest::Response,
        how: Option<Spoilt>,
        entry: &Entry,
    ) -> Answer {
        let mut response = Response::builder().status(answer.status());
        entry.answered(answer.status().as_u16());
        let headers = answer.headers().clone();
        let bytes = answer.bytes().await.map_err(io::Error::other)?;
        let body = match how {
            Some(Spoilt::Flipped) => full(flipped(&bytes)),
            Some(Spoilt::CutAfter(count)) if count < bytes.len() => {
                let cut = stream::iter([Ok(bytes.slice(..count))]);
                let end = stream::once(async {
                    // What came before it is sent when there is nothing more at the moment.
                    tokio::task::yield_now().await;
                    Err(io::ErrorKind::ConnectionReset.into())
                });
                streamed(cut.chain(end))
            }
            _ => full(bytes),
        };
        for (name, value) in &headers {
            if !matches!(name.as_str(), "transfer-encoding" | "connection") {
                response = response.header(name, value);
            }
        }
        Ok(response.body(body).expect("the headers came from an answer"))
    }
}

fn flipped(bytes: &Bytes) -> Bytes {
    let mut bytes = bytes.to_vec();
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 1;
    }
    bytes.into()
}

fn refusal(status: u16, code: &str, entry: &Entry) -> Response<crate::server::Body> {
    entry.answered(status);
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code>\
         <Message>as ordered</Message></Error>"
    );
    let status = StatusCode::from_u16(status).expect("a status a test may order");
    let answer = Response::builder().status(status).header("content-type", "application/xml");
    answer.body(full(text)).expect("the parts are valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_pass_and_are_spoilt_as_ordered() {
        let s3 = SeaweedFs::start().await;
        s3.overwrite("k", "hello").await;
        let (front, http) = (S3Front::start(&s3).await, client::plain());
        let get = async || http.get(front.endpoint() + "/cache/k").send().await;
        // Unsigned, so S3 itself refuses it.
        assert_eq!(get().await.unwrap().status(), 403);
        let once = |how| front.spoil(Spoiling::of("GET", "*/k", how).times(1));
        let slow_down = once(Spoilt::Refused(503, "SlowDown"));
        let refused = get().await.unwrap();
        assert_eq!(refused.status(), 503);
        assert!(refused.text().await.unwrap().contains("<Code>SlowDown</Code>"));
        once(Spoilt::Unanswered);
        assert!(get().await.is_err());
        once(Spoilt::CutAfter(3));
        assert!(get().await.unwrap().bytes().await.is_err());
        assert_eq!((slow_down.fired(), get().await.unwrap().status().as_u16()), (1, 403));
        assert_eq!(front.requests_of("GET", "*/k").len(), 5);
    }
}
