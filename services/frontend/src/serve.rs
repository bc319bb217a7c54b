//! One request, from its first line to its answer: parsed, routed, handed to the room it belongs
//! to, and answered with the headers every answer has.

use crate::{
    answer::Answer,
    blob::Blobs,
    body::Body,
    circle,
    error::{Audience, Failure},
    list::Lists,
    place::{self, Place},
    record::{Pulled, Record},
    request::{Ask, Read, Rejected, Request},
    tag::Tags,
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, Version,
    header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, VIA},
    request::Parts,
};
use hydrant_boot::ResourceFeed;
use hydrant_proto::{Identity, Reference, RepositoryName, Via};
use hydrant_rules::Name;
use hydrant_telemetry::{metrics::PullKind, propagation, spans};
use hydrant_upstream::Upstreams;
use tracing::{Instrument, Span};
use ulid::Ulid;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-hydrant-request-id");
const RULE: HeaderName = HeaderName::from_static("x-hydrant-rule");
/// The endpoint of a request that names none.
const NO_ENDPOINT: &str = "other";

/// Everything a request may need.
pub struct Server {
    pub feed: ResourceFeed,
    pub upstreams: Upstreams,
    pub identity: Identity,
    pub tags: Tags,
    pub blobs: Blobs,
    pub lists: Lists,
}

/// Who asked, through whom, and under which rule, as far as that is known.
struct Caller {
    audience: Audience,
    rule: Option<Name>,
    /// The hydrants that sent it on.
    via: Via,
}

impl Server {
    pub async fn serve(&self, parts: &Parts) -> Response<Body> {
        let request = parse(parts);
        let endpoint = request.as_ref().map_or(NO_ENDPOINT, |request| request.ask.endpoint());
        let mut record = Record::begin(method(&parts.method), endpoint);
        let span = span(parts, endpoint, &request);
        let answered = async {
            let mut answer = self.answered(request, parts).await;
            answer.set_text(REQUEST_ID, &request_id());
            answer
        };
        let mut answer = answered.instrument(span.clone()).await;
        if parts.version < Version::HTTP_2 && (has_body(&parts.headers) || !has_host(parts)) {
            answer.set(CONNECTION, HeaderValue::from_static("close"));
        }
        span.record("http.response.status_code", answer.status.as_u16());
        spans::answered(&span, answer.status.as_u16());
        record.answered(answer.status.as_u16(), answer.pulled, span);
        record.holding(answer.permit.take());
        let mut response = Response::new(Body::new(answer.content, record));
        (*response.status_mut(), *response.headers_mut()) = (answer.status, answer.headers);
        response
    }

    async fn answered(&self, request: Result<Request, Rejected>, asked: &Parts) -> Answer {
        let via = Via::read(asked.headers.get_all(VIA).iter().map(HeaderValue::as_bytes));
        let mut caller = Caller { audience: Audience::Direct, rule: None, via };
        let (read, kind) = request
            .as_ref()
            .map_or((Read::Get, None), |request| (request.method, kind(&request.ask)));
        let outcome = match &request {
            Ok(request) if caller.via.is_empty() => self.answer(request, asked, &mut caller).await,
            Ok(request) => Box::pin(self.answer_hydrant(request, asked, &mut caller)).await,
            Err(rejected) => Err(Failure::Rejected(*rejected)),
        };
        let mut answer = outcome.unwrap_or_else(|failure| {
            failure.log();
            let mut answer = Answer::failed(&failure, &failure.said(caller.audience));
            answer.pulled = kind.map(|kind| Pulled::failed(kind, &failure));
            answer
        });
        if let Some(rule) = &caller.rule {
            answer.set_text(RULE, rule.as_str());
        }
        answer.finish(read, &asked.headers)
    }

    async fn answer(
        &self,
        request: &Request,
        asked: &Parts,
        caller: &mut Caller,
    ) -> Result<Answer, Failure> {
        let read = request.method;
        // Futures of rarer answers are boxed, here and further in: this one is moved several times
        // on its way to the connection, and is as large as the largest in it.
        match &request.ask {
            Ask::Base => Ok(Answer::json(&serde_json::json!({}))),
            Ask::Catalog { page } => Box::pin(self.lists.catalog(&self.feed.current(), page)).await,
            Ask::Manifest { name, reference } => {
                let place = self.place(request, name, caller)?;
                match reference {
                    Reference::Tag(tag) => self.tags.by_tag(&place, tag, read).await,
                    Reference::Digest(digest) => {
                        self.tags.manifests.by_digest(&place, digest, read).await
                    }
                }
            }
            Ask::Blob { name, digest } => {
                let place = self.place(request, name, caller)?;
                self.blobs.answer(&place, digest, read, asked).await
            }
            Ask::Tags { name, page } => {
                let place = self.place(request, name, caller)?;
                let namespace = request.namespace.as_deref();
                Box::pin(self.lists.tags(&place, name, page, namespace)).await
            }
            Ask::Referrers { name, digest, artifact_type } => {
                let place = self.place(request, name, caller)?;
                let artifact_type = artifact_type.as_deref();
                Box::pin(self.lists.referrers(&place, digest, artifact_type)).await
            }
        }
    }

    fn place(
        &self,
        request: &Request,
        name: &RepositoryName,
        caller: &mut Caller,
    ) -> Result<Place, Failure> {
        if request.namespace.is_some() {
            caller.audience = Audience::Mirror;
        }
        let (route, audience) = place::route(&self.feed.current(), request, name)?;
        (caller.audience, caller.rule) = (audience, Some(route.rule.name.clone()));
        if caller.via.is_circle(&self.identity) {
            return Err(Failure::Circle { rule: route.rule.name.clone() });
        }
        Place::of(route, &self.upstreams, caller.via.clone())
    }

    /// The answer to another hydrant, unless it turns out that it waits for itself.
    async fn answer_hydrant(
        &self,
        request: &Request,
        asked: &Parts,
        caller: &mut Caller,
    ) -> Result<Answer, Failure> {
        let Some(name) = request.ask.repository() else {
            return self.answer(request, asked, caller).await;
        };
        let place = self.place(request, name, caller)?;
        tokio::select! {
            answer = self.answer(request, asked, caller) => answer,
            failure = circle::found(&place, &request.ask) => Err(failure),
        }
    }
}

/// A read has no body; one that comes all the same, or whose length is told in two ways, is
/// refused, because somebody on the way may see two requests where we see one.
fn parse(parts: &Parts) -> Result<Request, Rejected> {
    let request = Request::parse(&parts.method, &parts.uri)?;
    match (has_body(&parts.headers), has_host(parts)) {
        (true, _) => Err(Rejected::Body),
        (_, false) => Err(Rejected::Host),
        _ => Ok(request),
    }
}

/// RFC 9112, 3.2: HTTP/1.1 has exactly one Host. Of two, proxies choose differently.
fn has_host(parts: &Parts) -> bool {
    match parts.headers.get_all(HOST).iter().count() {
        0 => parts.version != Version::HTTP_11,
        hosts => hosts == 1,
    }
}

fn has_body(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next();
    headers.contains_key(TRANSFER_ENCODING)
        || length.is_some_and(|length| length != "0")
        || lengths.next().is_some()
}

fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        // OpenTelemetry semantic conventions, "http.request.method".
        _ => "_OTHER",
    }
}

const fn kind(ask: &Ask) -> Option<PullKind> {
    match ask {
        Ask::Manifest { .. } => Some(PullKind::Manifest),
        Ask::Blob { .. } => Some(PullKind::Blob),
        Ask::Base | Ask::Tags { .. } | Ask::Catalog { .. } | Ask::Referrers { .. } => None,
    }
}

/// The span of a request, continuing the client's trace.
fn span(parts: &Parts, endpoint: &'static str, request: &Result<Request, Rejected>) -> Span {
    let span = tracing::info_span!(
        "pull",
        otel.name = format!("{} {endpoint}", method(&parts.method)),
        otel.kind = "server",
        url.scheme = "http",
        http.request.method = method(&parts.method),
        http.route = endpoint,
        http.response.status_code = tracing::field::Empty,
        image.repository = tracing::field::Empty,
    );
    let header = |name: &str| Some(parts.headers.get(name)?.to_str().ok()?.to_owned());
    propagation::set_parent(&span, header);
    spans::received(&span, parts.uri.path());
    if let Some(name) = request.as_ref().ok().and_then(|request| request.ask.repository()) {
        span.record("image.repository", name.as_str());
    }
    span
}

/// The trace's id, so that an answer is found in traces and logs; else one of our own.
fn request_id() -> String {
    propagation::current_trace_id().unwrap_or_else(|| Ulid::new().to_string().to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(headers: &[(HeaderName, &str)]) -> Parts {
        let mut request = http::Request::get("/v2/").header(HOST, "x");
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_read_with_a_body_is_refused() {
        assert!(parse(&parts(&[])).is_ok());
        assert!(parse(&parts(&[(CONTENT_LENGTH, "0")])).is_ok());
        for headers in [
            &[(CONTENT_LENGTH, "5")][..],
            &[(CONTENT_LENGTH, "0"), (CONTENT_LENGTH, "5")],
            &[(CONTENT_LENGTH, "0"), (CONTENT_LENGTH, "0")],
            &[(TRANSFER_ENCODING, "chunked")],
            &[(CONTENT_LENGTH, "0"), (TRANSFER_ENCODING, "chunked")],
        ] {
            assert_eq!(parse(&parts(headers)), Err(Rejected::Body));
        }
    }
}
