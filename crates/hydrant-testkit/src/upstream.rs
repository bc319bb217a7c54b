//! A scriptable upstream registry: it serves images, counts what it is asked, and misbehaves when
//! told to, at any time.

mod access;
mod answer;
mod fault;
mod gate;
mod repository;
mod route;

pub use access::Bearer;
pub use fault::{Fault, Injected};
pub use gate::Gate;

use crate::{
    Content, Image, Request, TestCertificate,
    request::RequestLog,
    server::{Answer, Handler, Server},
};
use access::Access;
use answer::Draft;
use bytes::Bytes;
use fault::Faults;
use futures::FutureExt;
use hydrant_proto::Digest;
use hyper::{body::Incoming, http::request::Parts};
use repository::Repositories;
use route::Route;
use std::sync::{Arc, Mutex, MutexGuard};

/// A running fake upstream; gone when its last clone is dropped.
#[derive(Clone)]
pub struct FakeUpstream {
    shared: Arc<Shared>,
    server: Arc<Server>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    faults: Faults,
    requests: RequestLog,
}

#[derive(Default)]
struct State {
    repositories: Repositories,
    access: Access,
    /// Where blobs are redirected to.
    cdn: Option<String>,
}

impl FakeUpstream {
    /// An empty upstream over plain HTTP, open to all.
    pub async fn start() -> Self {
        let shared = Arc::<Shared>::default();
        let server = Server::start(handler(shared.clone())).await;
        Self { shared, server: Arc::new(server) }
    }

    /// The same over TLS with a certificate that nobody trusts by himself.
    pub async fn start_tls(certificate: &TestCertificate) -> Self {
        let shared = Arc::<Shared>::default();
        let server = Server::start_tls(handler(shared.clone()), certificate).await;
        Self { shared, server: Arc::new(server) }
    }

    /// `http://127.0.0.1:<port>`, or `https://…`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// `127.0.0.1:<port>`, as it stands in an image name.
    pub fn host(&self) -> String {
        self.server.host()
    }

    /// Closes the port and every connection; content, faults and log stay.
    pub async fn stop(&self) {
        self.server.stop().await;
    }

    /// Ends [`FakeUpstream::stop`], on the same port.
    pub async fn restart(&self) {
        self.server.resume().await;
    }

    /// Serves `image`, with all below it, as `repository:tag`; moves the tag if it exists.
    pub fn insert(&self, image: &Image, repository: &str, tag: &str) {
        self.state().repositories.insert(image, repository, tag);
    }

    /// Serves these bytes as the manifest of a tag, or of a digest they need not hash to.
    pub fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) {
        let bytes = bytes.into();
        self.state().repositories.put_manifest(repository, reference, media_type, bytes);
    }

    /// Serves this content under a digest it need not hash to.
    pub fn put_blob(&self, repository: &str, digest: &Digest, content: impl Into<Content>) {
        self.state().repositories.put_blob(repository, digest, content.into());
    }

    /// Forgets a tag; its manifest stays readable by digest.
    pub fn remove_tag(&self, repository: &str, tag: &str) {
        self.state().repositories.remove_tag(repository, tag);
    }

    /// Asks for these Basic credentials from now on.
    pub fn require_basic(&self, user: &str, password: &str) {
        self.state().access = Access::basic(user, password);
    }

    /// Asks for a Bearer token of its token endpoint (`/token`) from now on.
    pub fn require_bearer(&self, bearer: Bearer) {
        self.state().access = Access::Bearer(bearer);
    }

    /// Makes every token issued so far worthless.
    pub fn revoke_tokens(&self) {
        self.state().access.revoke_tokens();
    }

    /// Answers blob reads by a redirect (307) to `<base>/cdn/<digest>`, which every fake upstream
    /// serves without asking for credentials; `None` ends that.
    pub fn redirect_blobs(&self, base: Option<&str>) {
        self.state().cdn = base.map(str::to_owned);
    }

    /// Misbehaves from now on for paths that fit `pattern` (`*` stands for anything). Of several
    /// fitting faults each takes effect, in the order of their injection.
    pub fn inject(&self, pattern: &str, fault: Fault) -> Injected {
        self.shared.faults.inject(pattern, fault)
    }

    /// Removes all faults.
    pub fn heal(&self) {
        self.shared.faults.clear();
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.all()
    }

    /// Requests of this method (or `*`) whose path fits `pattern`.
    pub fn requests_of(&self, method: &str, pattern: &str) -> Vec<Request> {
        self.shared.requests.fitting(method, pattern)
    }

    pub fn count(&self, method: &str, pattern: &str) -> usize {
        self.requests_of(method, pattern).len()
    }

    pub fn gets(&self, pattern: &str) -> usize {
        self.count("GET", pattern)
    }

    pub fn heads(&self, pattern: &str) -> usize {
        self.count("HEAD", pattern)
    }

    /// Body bytes sent for paths that fit `pattern`. What a client did not read may be counted, up
    /// to what fits into the buffers of the connection.
    pub fn bytes(&self, pattern: &str) -> u64 {
        self.requests_of("*", pattern).iter().map(|request| request.bytes).sum()
    }

    /// The largest number of fitting requests that were under way at the same time.
    pub fn peak(&self, method: &str, pattern: &str) -> usize {
        self.shared.requests.peak(method, pattern)
    }

    /// Starts all counts anew.
    pub fn forget_requests(&self) {
        self.shared.requests.forget();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

fn handler(shared: Arc<Shared>) -> Handler {
    Arc::new(move |request: hyper::Request<Incoming>| {
        let shared = shared.clone();
        let (parts, _) = request.into_parts();
        async move { shared.handle(&parts).await }.boxed()
    })
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    async fn handle(&self, parts: &Parts) -> Answer {
        let entry = self.requests.begin(parts);
        let mut draft = self.state().answer(parts);
        self.faults.apply(parts, &mut draft);
        draft.send(entry).await
    }
}

impl State {
    /// The answer of a well-behaved registry.
    fn answer(&mut self, parts: &Parts) -> Draft {
        let Some(route) = Route::parse(parts.uri.path()) else {
            return Draft::error(404, "NOT_FOUND");
        };
        if let Route::Token = route {
            return self.access.issue(parts);
        }
        if let (Some(cdn), Route::Blob { digest, .. }) = (&self.cdn, &route)
            && self.access.admits(&route, parts)
        {
            return Draft::redirect(307, &format!("{cdn}/cdn/{digest}"));
        }
        if !self.access.admits(&route, parts) {
            return self.access.challenge(&route, parts);
        }
        self.repositories.answer(&route, parts)
    }
}

#[cfg(test)]
mod tests;
