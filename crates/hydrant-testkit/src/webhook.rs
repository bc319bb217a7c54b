//! An endpoint that records webhooks and answers as scripted.

use crate::{
    server::{Answer, Body, Handler, Server, full, streamed},
    until,
};
use bytes::Bytes;
use futures::{FutureExt, future, stream};
use http_body_util::BodyExt;
use hyper::{HeaderMap, Request, Response, body::Incoming};
use serde_json::Value;
use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant, SystemTime},
};

/// A running webhook endpoint; gone when dropped.
pub struct WebhookSink {
    server: Server,
    shared: Arc<Mutex<State>>,
}

struct State {
    received: Vec<WebhookRequest>,
    /// Answers to come, each used once.
    script: VecDeque<Reply>,
    /// The answer when the script is used up.
    usual: Reply,
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct WebhookRequest {
    pub at: Instant,
    pub time: SystemTime,
    pub method: String,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl WebhookRequest {
    /// A header as text; empty when it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The `webhook-id`.
    pub fn id(&self) -> &str {
        self.header("webhook-id")
    }

    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The CloudEvents `type`; empty when there is none.
    pub fn kind(&self) -> String {
        self.json()["type"].as_str().unwrap_or_default().to_owned()
    }
}

/// How a webhook is answered.
#[derive(Clone, Debug)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    delay: Duration,
    ending: Ending,
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    Clean,
    Hang,
    Endless,
    Close,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), delay: Duration::ZERO, ending: Ending::Clean }
    }

    /// 302 to `location`.
    pub fn redirect(location: &str) -> Self {
        Self::status(302).header("location", location)
    }

    /// Never answers.
    pub fn hang() -> Self {
        Self { ending: Ending::Hang, ..Self::status(200) }
    }

    /// Answers 200 with a body that never ends.
    pub fn endless() -> Self {
        Self { ending: Ending::Endless, ..Self::status(200) }
    }

    /// Closes the connection without an answer.
    pub fn close() -> Self {
        Self { ending: Ending::Close, ..Self::status(200) }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Waits before it answers.
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    async fn send(self) -> Answer {
        tokio::time::sleep(self.delay).await;
        let mut response = Response::builder().status(self.status);
        for (name, value) in &self.headers {
            response = response.header(name, value);
        }
        let body = match self.ending {
            Ending::Clean => full(""),
            Ending::Endless => endless(),
            Ending::Hang => future::pending().await,
            Ending::Close => return Err(io::ErrorKind::ConnectionAborted.into()),
        };
        Ok(response.body(body).expect("the script has valid headers"))
    }
}

fn endless() -> Body {
    streamed(stream::repeat_with(|| Ok(Bytes::from_static(&[b'x'; 4_096]))))
}

impl WebhookSink {
    /// Starts an endpoint that answers 200.
    pub async fn start() -> Self {
        let state =
            State { received: Vec::new(), script: VecDeque::new(), usual: Reply::status(200) };
        let shared = Arc::new(Mutex::new(state));
        let server = Server::start(handler(shared.clone())).await;
        Self { server, shared }
    }

    /// `http://127.0.0.1:<port>/hook`; every other path is recorded as well.
    pub fn url(&self) -> String {
        format!("{}/hook", self.server.url())
    }

    /// Answers the next requests so, one after the other, before the usual answer.
    pub fn script(&self, replies: impl IntoIterator<Item = Reply>) {
        self.state().script.extend(replies);
    }

    /// The usual answer from now on.
    pub fn usually(&self, reply: Reply) {
        self.state().usual = reply;
    }

    /// Closes the port and every connection.
    pub async fn stop(&self) {
        self.server.stop().await;
    }

    /// Ends [`WebhookSink::stop`], on the same port.
    pub async fn restart(&self) {
        self.server.resume().await;
    }

    /// Every request so far, in the order of arrival, whatever it was answered.
    pub fn received(&self) -> Vec<WebhookRequest> {
        self.state().received.clone()
    }

    /// How many there were so far.
    pub fn count(&self) -> usize {
        self.state().received.len()
    }

    /// Waits for at least `count` requests and returns all.
    pub async fn wait_for(&self, count: usize, limit: Duration) -> Vec<WebhookRequest> {
        until(&format!("the arrival of {count} webhooks"), limit, async || {
            Some(self.received()).filter(|received| received.len() >= count)
        })
        .await
    }

    /// Waits for a request that `wanted` takes and returns the first.
    pub async fn wait_for_one(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&WebhookRequest) -> bool,
    ) -> WebhookRequest {
        self.wait_until(what, limit, |all| all.iter().find(|request| wanted(request)).cloned())
            .await
    }

    /// Waits until `wanted` makes something of all requests so far, and returns it.
    pub async fn wait_until<T>(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&[WebhookRequest]) -> Option<T>,
    ) -> T {
        until(&format!("webhooks: {what}"), limit, async || wanted(&self.received())).await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.lock().expect("no holder panics")
    }
}

fn handler(shared: Arc<Mutex<State>>) -> Handler {
    Arc::new(move |request: Request<Incoming>| {
        let shared = shared.clone();
        async move {
            let (parts, body) = request.into_parts();
            // A request that breaks off is none.
            let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
            let received = WebhookRequest {
                at: Instant::now(),
                time: SystemTime::now(),
                method: parts.method.to_string(),
                path: parts.uri.path().to_owned(),
                headers: parts.headers,
                body,
            };
            let reply = shared.lock().expect("no holder panics").take(received);
            reply.send().await
        }
        .boxed()
    })
}

impl State {
    fn take(&mut self, request: WebhookRequest) -> Reply {
        self.received.push(request);
        self.script.pop_front().unwrap_or_else(|| self.usual.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client;

    #[tokio::test]
    async fn requests_are_recorded_and_answered_by_script() {
        let sink = WebhookSink::start().await;
        sink.script([Reply::status(500), Reply::redirect("http://x/"), Reply::close()]);
        let post = || {
            let body = r#"{"type":"image.hydrated"}"#;
            client::plain().post(sink.url()).header("webhook-id", "e1").body(body).send()
        };
        assert_eq!(post().await.unwrap().status(), 500);
        assert_eq!(post().await.unwrap().headers()["location"], "http://x/");
        assert!(post().await.is_err());
        assert_eq!(post().await.unwrap().status(), 200);
        let received = sink.wait_for(4, Duration::from_secs(5)).await;
        assert_eq!((received[3].id(), received[3].kind().as_str()), ("e1", "image.hydrated"));

        let patience = Duration::from_millis(100);
        sink.script([Reply::hang(), Reply::status(200).after(patience)]);
        assert!(tokio::time::timeout(patience, post()).await.is_err());
        let start = Instant::now();
        post().await.unwrap();
        assert!(start.elapsed() >= patience);
        sink.usually(Reply::endless());
        let mut answer = post().await.unwrap();
        assert!(answer.chunk().await.unwrap().is_some());
    }
}
