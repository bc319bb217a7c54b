//! The client of one upstream: what can be asked of a registry, one method each.

use crate::{
    adaptive::Adaptive,
    answer::{Blame, Failure},
    auth::Auth,
    blob::{self, BlobBody, Part},
    breaker::Breaker,
    error::UpstreamError,
    exchange::{Ask, Exchange, Reply},
    guard::Guard,
    listing::{self, TagPage},
    manifest::{self, Expected, FetchedManifest, Head},
    once::UnderWay,
    pace::Pace,
    permits::{Permits, Priority},
    secret::SecretSource,
    strangers::{Named, Wanted},
    upstreams::Options,
    urgency::Urgency,
    wire::Wire,
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method,
    header::{ACCEPT, RANGE},
};
use hydrant_egress::{Egress, Policy};
use hydrant_proto::{Digest, Manifest, Reference, RepositoryName, Via};
use hydrant_rules::{Credential, Upstream};
use hydrant_telemetry::{metrics::RequestKind, spans::Server};
use moka::future::Cache;
use std::{
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};
use url::Url;

/// The client of one upstream with one credential reference. Shared by all who use it, since the
/// breaker, the permits and the tokens live here. Clones share them.
#[derive(Clone, Debug)]
pub struct Client {
    exchange: Arc<Exchange>,
    body_idle: Duration,
    manifests: Arc<UnderWay<(RepositoryName, Reference), FetchedManifest>>,
    /// What the upstream did not have a moment ago.
    unknown: Cache<Named, UpstreamError>,
    /// The hydrants whose request this one passes on.
    via: Via,
}

/// Most names remembered as unknown.
const MAX_UNKNOWN: u64 = 10_000;
/// Most parts of one manifest that are expected to exist.
const MAX_PARTS: usize = 1_000;
/// Longest wait for one connection, however long the upstream's timeout is.
const MAX_CONNECT: Duration = Duration::from_secs(10);

impl Client {
    pub(crate) fn new(
        upstream: Arc<Upstream>,
        credential: Option<Credential>,
        secrets: SecretSource,
        options: &Options,
        guard: Guard,
    ) -> Result<Self, UpstreamError> {
        let name = upstream.name.to_string();
        let egress = egress(&upstream, options)
            .map_err(|source| UpstreamError::Egress { upstream: name.clone(), source })?;
        let ping = v2(&upstream.endpoint, "");
        guard.quota().keep(upstream.quota_reserve);
        let exchange = Exchange {
            wire: Wire { upstream: name.clone(), server: server(&upstream.endpoint), egress },
            auth: Auth::new(upstream.clone(), ping, credential, secrets),
            guard,
            permits: Permits::new(upstream.concurrency),
            turns: Permits::new(upstream.concurrency),
            adaptive: Adaptive::new(upstream.concurrency),
            pace: Arc::new(Pace::new(upstream.caps)),
            identity: options.identity.clone(),
            upstream,
        };
        let unknown =
            Cache::builder().max_capacity(MAX_UNKNOWN).time_to_live(options.unknown_for).build();
        let (exchange, manifests) = (Arc::new(exchange), Arc::new(UnderWay::new()));
        let (body_idle, via) = (options.body_idle, Via::default());
        Ok(Self { exchange, body_idle, manifests, unknown, via })
    }

    /// The same client, for a request that came through other hydrants: they are named to the
    /// upstream, so that each of them knows its own request when it comes back. A request that
    /// waits for another's names only those of the other.
    pub fn forwarding(&self, via: Via) -> Self {
        Self { via, ..self.clone() }
    }

    /// The hydrants that are named to the upstream, besides this one.
    pub fn via(&self) -> &Via {
        &self.via
    }

    /// The upstream this client asks.
    pub fn upstream(&self) -> &Upstream {
        &self.exchange.upstream
    }

    /// The breaker every call passes through.
    pub fn breaker(&self) -> &Breaker {
        self.exchange.guard.breaker()
    }

    /// Most calls that may wait for their answers at once, at the moment.
    pub fn concurrency(&self) -> u32 {
        self.exchange.concurrency()
    }

    /// Calls that wait for a slot.
    pub fn waiting(&self) -> usize {
        self.exchange.permits.waiting()
    }

    /// Whether what failed may be asked once more now; it is paid for when the answer is yes. For
    /// who repeats on another schedule than that of a single call.
    pub fn may_repeat(&self) -> bool {
        let guard = self.guard();
        guard.retries().take(guard.sharers())
    }

    /// All that protects the upstream.
    pub fn guard(&self) -> &Guard {
        &self.exchange.guard
    }

    /// Makes the next call ask for this manifest again, though the upstream did not have it a
    /// moment ago: for those who know better, such as a job asked for after a push.
    pub async fn forget_unknown(&self, repository: &RepositoryName, reference: &Reference) {
        self.unknown.invalidate(&manifest_named(repository, reference)).await;
    }

    /// What a manifest is now, by a HEAD and nothing else: at most `budget` from the call to the
    /// answer, waits for a slot included. An upstream that does not answer in time counts as
    /// failed, so give it no less than it may reasonably take.
    pub async fn head_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        priority: Priority,
        budget: Duration,
    ) -> Result<Head, UpstreamError> {
        let named = manifest_named(repository, reference);
        self.worth_asking(&named, priority).await?;
        let (method, kind) = (Method::HEAD, RequestKind::ManifestHead);
        let mut ask = self.manifest_ask(repository, reference, method, kind, priority);
        ask.budget = Some(budget);
        let reply = self.exchange.call(&ask).await;
        let reply = self.remember(named, reply).await.map_err(|failure| failure.error)?;
        self.expected(&ask, reference).head(reply.response.headers())
    }

    /// A manifest, verified. Calls for the same one at the same time share one request, which is a
    /// client's as soon as one of them is.
    pub async fn manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        urgency: impl Into<Urgency>,
    ) -> Result<FetchedManifest, UpstreamError> {
        let (named, urgency) = (manifest_named(repository, reference), urgency.into());
        self.worth_asking(&named, urgency.now()).await?;
        let fetched = loop {
            let key = (repository.clone(), reference.clone());
            let fetch = |urgency| self.fetch_manifest(repository, reference, urgency);
            let fetched = self.manifests.join(key, &urgency, fetch).await;
            if !fetched.as_ref().is_err_and(|failure| is_reserved(&failure.error))
                || urgency.now() == Priority::Background
            {
                break fetched;
            }
            // What was kept from the background was kept for this.
        };
        let fetched = self.remember(named, fetched).await.map_err(|failure| failure.error)?;
        self.expect_parts(repository, &fetched.bytes).await;
        Ok(fetched)
    }

    /// The size of a blob in bytes by a HEAD, or `None` if the upstream does not have it. Where the
    /// HEAD tells no size, a GET of the first byte does.
    pub async fn head_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        urgency: impl Into<Urgency>,
    ) -> Result<Option<u64>, UpstreamError> {
        let urgency = urgency.into();
        let mut ask = self.blob_ask(repository, digest, urgency.clone());
        (ask.kind, ask.method) = (RequestKind::BlobHead, Method::HEAD);
        let reply = match self.call(blob_named(repository, digest), &ask).await {
            Ok(reply) => reply,
            Err(UpstreamError::Unknown { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let size = blob::length(reply.response.headers());
        drop(reply); // The next request needs the slot.
        match size {
            Some(size) => Ok(Some(size)),
            None => self.size_by_first_byte(repository, digest, urgency).await.map(Some),
        }
    }

    async fn size_by_first_byte(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        urgency: Urgency,
    ) -> Result<u64, UpstreamError> {
        let first = Part { from: 0, until: Some(1), of: None };
        let size = match self.blob(repository, digest, first, urgency).await {
            Ok(body) => body.size,
            Err(UpstreamError::RangeNotHonoured { .. }) => None,
            Err(error) => return Err(error),
        };
        size.ok_or_else(|| {
            let what = format!("blob {digest} of {repository}");
            let detail = "neither its HEAD nor its first byte tells the size".to_owned();
            self.exchange.wire.down(&what, detail, Blame::Answered).error
        })
    }

    /// A blob from some byte on, unverified: `blob(repository, digest, 0, priority)` for all of it.
    /// An answer with another range than the one asked for is [`UpstreamError::RangeNotHonoured`].
    pub async fn blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        part: impl Into<Part>,
        urgency: impl Into<Urgency>,
    ) -> Result<BlobBody, UpstreamError> {
        let part = part.into();
        let mut ask = self.blob_ask(repository, digest, urgency.into());
        if let Some(range) = part.range() {
            ask.headers.insert(RANGE, range);
        }
        let reply = self.call(blob_named(repository, digest), &ask).await?;
        BlobBody::new(reply, part, &ask, self.name(), &self.exchange, self.body_idle)
    }

    /// One page of at most `n` tags after `last`, as the upstream pages them.
    pub async fn tags(
        &self,
        repository: &RepositoryName,
        n: Option<u32>,
        last: Option<&str>,
        priority: Priority,
    ) -> Result<TagPage, UpstreamError> {
        let mut ask = self.ask(RequestKind::Tags, repository, "tags/list", priority);
        ask.what = format!("the tags of {repository}");
        if let Some(n) = n {
            ask.url.query_pairs_mut().append_pair("n", &n.to_string());
        }
        if let Some(last) = last {
            ask.url.query_pairs_mut().append_pair("last", last);
        }
        let named = (repository.clone(), Wanted::List);
        ask.named = Some(named.clone());
        let reply = self.call(named, &ask).await?;
        listing::tags(reply, self.name(), &ask.what).await
    }

    /// The index of what refers to `digest`, by the referrers API or, where the upstream has none,
    /// by the tag that stands in for it; `None` when nothing does. Unverified: an index made up on
    /// request has no digest.
    pub async fn referrers(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        priority: Priority,
    ) -> Result<Option<Bytes>, UpstreamError> {
        let path = format!("referrers/{digest}");
        let mut ask = self.ask(RequestKind::Manifest, repository, &path, priority);
        ask.what = format!("the referrers of {repository}@{digest}");
        ask.any_404 = true;
        ask.headers.insert(ACCEPT, manifest::accept());
        match self.exchange.call(&ask).await {
            Ok(reply) => listing::referrers(reply, self.name(), &ask.what).await.map(Some),
            Err(Failure { error: UpstreamError::Unknown { .. }, .. }) => {
                self.referrers_by_tag(repository, digest, priority).await
            }
            Err(failure) => Err(failure.error),
        }
    }

    /// OCI distribution spec 1.1, "Referrers Tag Schema".
    async fn referrers_by_tag(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        priority: Priority,
    ) -> Result<Option<Bytes>, UpstreamError> {
        let tag = digest.to_string().replace(':', "-");
        // The tag of a longer digest than SHA-256 is cut to what a tag may hold.
        let tag: String = tag.chars().take(128).collect();
        let tag = Reference::Tag(tag.parse().expect("a digest makes a valid tag"));
        match self.manifest(repository, &tag, priority).await {
            Ok(found) if found.media_type.is_index() => Ok(Some(found.bytes)),
            Ok(_) | Err(UpstreamError::Unknown { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn fetch_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        urgency: Urgency,
    ) -> Result<FetchedManifest, Failure> {
        let (method, kind) = (Method::GET, RequestKind::Manifest);
        let ask = self.manifest_ask(repository, reference, method, kind, urgency);
        let reply: Reply = self.exchange.call(&ask).await?;
        let read = self.expected(&ask, reference).read(reply).await;
        read.map_err(|error| Failure { error, blame: Blame::Answered })
    }

    /// Makes a call for something that may not be there.
    async fn call(&self, named: Named, ask: &Ask) -> Result<Reply, UpstreamError> {
        self.worth_asking(&named, ask.urgency.now()).await?;
        let reply = self.exchange.call(ask).await;
        self.remember(named, reply).await.map_err(|failure| failure.error)
    }

    /// Spares the upstream the clients that ask again and again, and names nobody knows when too
    /// many of them did not exist. Work in the background asks again: it was ordered, maybe because
    /// the thing is there by now.
    async fn worth_asking(&self, named: &Named, priority: Priority) -> Result<(), UpstreamError> {
        if priority == Priority::Interactive
            && let Some(error) = self.unknown.get(named).await
        {
            return Err(error);
        }
        let guard = self.guard();
        let admitted = guard.strangers().admit(named, guard.sharers()).await;
        admitted.map_err(|retry_after| self.exchange.too_many_unknown(retry_after).error)
    }

    async fn remember<T>(&self, named: Named, result: Result<T, Failure>) -> Result<T, Failure> {
        match result.as_ref().map_err(|failure| &failure.error) {
            Ok(_) => {
                self.unknown.invalidate(&named).await;
                self.guard().strangers().found(named).await;
            }
            Err(error @ UpstreamError::Unknown { .. }) => {
                self.unknown.insert(named, error.clone()).await;
            }
            Err(_) => {}
        }
        result
    }

    /// What a manifest names exists, whatever was heard of it before.
    async fn expect_parts(&self, repository: &RepositoryName, manifest: &[u8]) {
        let Ok(manifest) = Manifest::parse(manifest) else { return };
        let blobs = manifest.blobs().map(|blob| Wanted::Blob(blob.digest.clone()));
        let children = manifest.children().iter();
        let children =
            children.map(|child| Wanted::Manifest(Reference::Digest(child.digest.clone())));
        for wanted in blobs.chain(children).take(MAX_PARTS) {
            let named = (repository.clone(), wanted);
            self.unknown.invalidate(&named).await;
            self.guard().strangers().found(named).await;
        }
    }

    fn manifest_ask(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        method: Method,
        kind: RequestKind,
        urgency: impl Into<Urgency>,
    ) -> Ask {
        let mut ask = self.ask(kind, repository, &format!("manifests/{reference}"), urgency);
        ask.named = Some(manifest_named(repository, reference));
        let separator = if reference.tag().is_some() { ':' } else { '@' };
        ask.what = format!("manifest {repository}{separator}{reference}");
        ask.method = method;
        ask.headers.insert(ACCEPT, manifest::accept());
        ask
    }

    fn blob_ask(&self, repository: &RepositoryName, digest: &Digest, urgency: Urgency) -> Ask {
        let mut ask = self.ask(RequestKind::Blob, repository, &format!("blobs/{digest}"), urgency);
        ask.what = format!("blob {digest} of {repository}");
        ask.named = Some(blob_named(repository, digest));
        ask.headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        ask
    }

    fn ask(
        &self,
        kind: RequestKind,
        repository: &RepositoryName,
        path: &str,
        urgency: impl Into<Urgency>,
    ) -> Ask {
        Ask {
            kind,
            what: String::new(),
            named: None,
            method: Method::GET,
            url: v2(&self.upstream().endpoint, &format!("{repository}/{path}")),
            headers: HeaderMap::new(),
            scope: format!("repository:{repository}:pull"),
            urgency: urgency.into(),
            via: self.via.clone(),
            any_404: false,
            budget: None,
            sent: AtomicU32::new(0),
        }
    }

    fn expected<'a>(&'a self, ask: &'a Ask, reference: &'a Reference) -> Expected<'a> {
        Expected { upstream: self.name(), what: &ask.what, reference }
    }

    fn name(&self) -> &str {
        self.exchange.upstream.name.as_str()
    }
}

fn is_reserved(error: &UpstreamError) -> bool {
    matches!(error, UpstreamError::Reserved { .. })
}

fn manifest_named(repository: &RepositoryName, reference: &Reference) -> Named {
    (repository.clone(), Wanted::Manifest(reference.clone()))
}

fn blob_named(repository: &RepositoryName, digest: &Digest) -> Named {
    (repository.clone(), Wanted::Blob(digest.clone()))
}

fn server(endpoint: &Url) -> Server {
    let address = endpoint.host_str().unwrap_or_default().to_owned();
    Server { address, port: endpoint.port_or_known_default().unwrap_or_default() }
}

fn egress(upstream: &Upstream, options: &Options) -> Result<Egress, hydrant_egress::EgressError> {
    let policy = Policy {
        allow_private: upstream.allow_private,
        connect_timeout: upstream.timeout.0.min(MAX_CONNECT),
    };
    match &options.resolver {
        Some(resolver) => Egress::with_resolver(policy, resolver.clone()),
        None => Egress::new(policy),
    }
}

/// `<endpoint>/v2/<path>`. Names and digests need no escaping: their grammars allow nothing that
/// would.
fn v2(endpoint: &Url, path: &str) -> Url {
    let mut url = endpoint.clone();
    let prefix = endpoint.path().trim_end_matches('/').to_owned();
    url.set_path(&format!("{prefix}/v2/{path}"));
    url.set_query(None);
    url
}
