//! Every route of the API, in one list, from which the router is built and against which the
//! OpenAPI document is tested.

use crate::{
    Parts,
    access::{Access, guard},
    dead_letters, deliveries, events,
    failure::Failure,
    hydrations,
    input::Body,
    openapi,
    resources::{self, At},
    status, tags, upstreams,
};
use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, Method, Uri},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::{MethodRouter, delete, get, post, put},
};
use hydrant_boot::{Editor, ResourceFeed};
use hydrant_rules::Kind;

/// Where the API begins.
pub(crate) const PREFIX: &str = "/api/v1";

pub(crate) struct Route {
    #[cfg_attr(not(test), expect(dead_code, reason = "compared with the OpenAPI document"))]
    pub method: Method,
    /// Below [`PREFIX`].
    pub path: String,
    handler: MethodRouter<Parts>,
}

pub(crate) fn router(parts: Parts, access: Access) -> Router {
    let add = |router: Router<Parts>, route: Route| {
        router.route(&format!("{PREFIX}{}", route.path), route.handler)
    };
    routes()
        .into_iter()
        .fold(Router::new(), add)
        .fallback(nowhere)
        .with_state(parts)
        .layer(from_fn_with_state(access, guard))
}

pub(crate) fn routes() -> Vec<Route> {
    let fixed = [
        (Method::POST, "/apply", post(resources::apply)),
        (Method::GET, "/upstreams/{name}/status", get(upstreams::status)),
        (Method::GET, "/hydrations", get(hydrations::list)),
        (Method::POST, "/hydrations", post(hydrations::request)),
        (Method::GET, "/hydrations/{id}", get(hydrations::get)),
        (Method::GET, "/status", get(status::status)),
        (Method::GET, "/tags/history", get(tags::history)),
        (Method::POST, "/tags/refresh", post(tags::refresh)),
        (Method::POST, "/tags/freeze", post(tags::freeze)),
        (Method::POST, "/tags/unfreeze", post(tags::unfreeze)),
        (Method::POST, "/tags/rollback", post(tags::rollback)),
        (Method::GET, "/dead-letters", get(dead_letters::list)),
        (Method::POST, "/dead-letters/drop", post(dead_letters::drop_many)),
        (Method::POST, "/dead-letters/retry", post(dead_letters::retry_many)),
        (Method::GET, "/dead-letters/{id}", get(dead_letters::get)),
        (Method::DELETE, "/dead-letters/{id}", delete(dead_letters::drop)),
        (Method::POST, "/dead-letters/{id}/retry", post(dead_letters::retry)),
        (Method::GET, "/webhooks/{name}/deliveries", get(deliveries::log)),
        (Method::POST, "/webhooks/{name}/test", post(deliveries::test)),
        (Method::GET, "/events", get(events::follow)),
        (Method::GET, "/openapi.json", get(openapi::document)),
    ];
    let fixed = fixed.into_iter().map(|(method, path, handler)| Route {
        method,
        path: path.to_owned(),
        handler,
    });
    fixed.chain(Kind::ALL.into_iter().flat_map(of_kind)).collect()
}

fn of_kind(kind: Kind) -> [Route; 4] {
    let list = move |State(editor): State<Editor>, State(feed): State<ResourceFeed>| {
        resources::list(kind, editor, feed)
    };
    let read = move |Path(name): At,
                     headers: HeaderMap,
                     editor: State<Editor>,
                     feed: State<ResourceFeed>| {
        resources::get(kind, name, headers, editor.0, feed.0)
    };
    let write = move |Path(name): At, headers: HeaderMap, editor: State<Editor>, body: Body| {
        resources::set(kind, name, headers, editor.0, body)
    };
    let remove = move |Path(name): At, headers: HeaderMap, editor: State<Editor>| {
        resources::delete(kind, name, headers, editor.0)
    };
    let one = format!("/{kind}s/{{name}}");
    [
        Route { method: Method::GET, path: format!("/{kind}s"), handler: get(list) },
        Route { method: Method::GET, path: one.clone(), handler: get(read) },
        Route { method: Method::PUT, path: one.clone(), handler: put(write) },
        Route { method: Method::DELETE, path: one, handler: delete(remove) },
    ]
}

async fn nowhere(uri: Uri) -> Response {
    let message = format!("there is nothing at {}", uri.path());
    let remedy = "see /api/v1/openapi.json for what there is".to_owned();
    Failure::Missing { field: "path", message, remedy }.into_response()
}
