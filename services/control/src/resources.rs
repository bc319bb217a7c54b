//! Upstreams, credential sets, rules and webhooks: read, written one by one, or applied as a whole.
//!
//! Secrets are never in here: a resource says where one lives.

use crate::{
    failure::{Failure, Told},
    input::{Body, Params, from_value},
    precondition::{Demands, etag},
};
use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use hydrant_boot::{
    Action, Change, EditError, Editor, ResourceFeed,
    merge::{all, by_name, merge, name, put, remove},
};
use hydrant_rules::{
    Credential, Kind, Name, Problem, Resource, Resources, Rule, Table, Upstream, Webhook,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

/// Says that the bus is away and the answer is what this process last knew.
const LAST_KNOWN: HeaderName = HeaderName::from_static("x-hydrant-last-known-good");

/// All resources of a kind.
pub(crate) async fn list(kind: Kind, editor: Editor, feed: ResourceFeed) -> Response {
    let (resources, stale) = read(&editor, &feed).await;
    let items: Vec<Resource> = all(&resources, kind);
    marked(Json(json!({ "items": items })).into_response(), stale)
}

/// One resource, with its `ETag`.
pub(crate) async fn get(
    kind: Kind,
    name: String,
    headers: HeaderMap,
    editor: Editor,
    feed: ResourceFeed,
) -> Result<Response, Failure> {
    let (resources, stale) = read(&editor, &feed).await;
    let found = by_name(&resources, kind, &name);
    let resource = found.ok_or_else(|| Failure::no_resource(kind, &name))?;
    let tag = [(header::ETAG, etag(&resource))];
    if Demands::of(&headers)?.not_modified(&resource) {
        return Ok((StatusCode::NOT_MODIFIED, tag).into_response());
    }
    Ok(marked((tag, Json(resource)).into_response(), stale))
}

/// Makes a resource, or replaces the one of that name.
pub(crate) async fn set(
    kind: Kind,
    name: String,
    headers: HeaderMap,
    editor: Editor,
    body: Body,
) -> Result<Response, Failure> {
    let resource = parse(kind, &name, &body)?;
    let demands = Demands::of(&headers)?;
    let created = Mutex::new(false);
    let change = |current: &Resources| {
        let there = by_name(current, kind, &name);
        demands.check(there.as_ref())?;
        *created.lock().unwrap_or_else(PoisonError::into_inner) = there.is_none();
        let mut wanted = current.clone();
        put(&mut wanted, resource.clone());
        Ok(wanted)
    };
    editor.edit(change).await?;
    let created = created.into_inner().unwrap_or_else(PoisonError::into_inner);
    tracing::info!(%kind, name, created, "resource written");
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, [(header::ETAG, etag(&resource))], Json(resource)).into_response())
}

/// Takes a resource away, unless another one needs it.
pub(crate) async fn delete(
    kind: Kind,
    name: String,
    headers: HeaderMap,
    editor: Editor,
) -> Result<StatusCode, Failure> {
    let demands = Demands::of(&headers)?;
    let change = |current: &Resources| {
        let there = by_name(current, kind, &name);
        demands.check(there.as_ref())?;
        there.ok_or_else(|| Failure::no_resource(kind, &name))?;
        let mut wanted = current.clone();
        remove(&mut wanted, kind, &name);
        Ok(wanted)
    };
    match editor.edit(change).await {
        // What was valid with it is not valid without it: something names it.
        Err(EditError::Invalid(problems)) => {
            let users = problems.0.into_iter().map(|problem| in_use(kind, &name, &problem));
            Err(Failure::Conflict(users.collect()))
        }
        Err(error) => Err(error.into()),
        Ok(_) => {
            tracing::info!(%kind, name, "resource deleted");
            Ok(StatusCode::NO_CONTENT)
        }
    }
}

fn in_use(kind: Kind, name: &str, problem: &Problem) -> Told {
    let message = format!("{kind} `{name}` is needed: without it {problem}");
    Told::new(&problem.field, message, "change or delete what names it first")
}

/// How a document is applied.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ApplyParams {
    /// Whether resources that the document does not name are deleted.
    prune: bool,
    /// Whether a document without resources may prune, which deletes all there are.
    allow_empty: bool,
    /// Whether only to say what would happen.
    dry_run: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct Applied {
    changes: Vec<Change>,
    dry_run: bool,
}

/// Lays a whole document, TOML or JSON, over the configuration in one change.
pub(crate) async fn apply(
    State(editor): State<Editor>,
    Params(params): Params<ApplyParams>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Applied>, Failure> {
    let wanted = document(&headers, &body)?;
    check(&wanted, &params)?;
    let changes = match params.dry_run {
        true => foresee(&editor, &wanted, params.prune).await?,
        false => lay(&editor, &wanted, params.prune).await?,
    };
    let made = changes.iter().filter(|change| change.action != Action::Unchanged).count();
    tracing::info!(changes = made, dry_run = params.dry_run, "configuration applied");
    Ok(Json(Applied { changes, dry_run: params.dry_run }))
}

/// Refuses documents that say something else than what was meant: an empty one, as a failed
/// generator writes it, and one that names a resource twice.
fn check(wanted: &Resources, params: &ApplyParams) -> Result<(), Failure> {
    if params.prune && !params.allow_empty && *wanted == Resources::default() {
        let message = "the document names no resources, so that all there are would be deleted";
        let remedy = "if that is meant, say so with allow_empty=true (`--allow-empty`)";
        return Err(Failure::invalid("prune", message, remedy));
    }
    let named = Kind::ALL.into_iter().flat_map(|kind| {
        all(wanted, kind).into_iter().map(move |resource| (kind, name(&resource).clone()))
    });
    let mut seen = HashSet::new();
    let twice = named.filter(|one| !seen.insert(one.clone())).map(|(kind, name)| {
        let message = format!("the document names the {kind} `{name}` more than once");
        Told::new(
            format!("{kind}.{name}.name"),
            message,
            "keep one, or give the other another name",
        )
    });
    match twice.collect::<Vec<_>>() {
        none if none.is_empty() => Ok(()),
        twice => Err(Failure::Conflict(twice)),
    }
}

async fn lay(editor: &Editor, wanted: &Resources, prune: bool) -> Result<Vec<Change>, Failure> {
    let changes = Mutex::new(Vec::new());
    let change = |current: &Resources| {
        let (merged, made) = merge(current, wanted, prune);
        *changes.lock().unwrap_or_else(PoisonError::into_inner) = made;
        Ok(merged)
    };
    match editor.edit(change).await {
        Err(EditError::Unreadable(_)) if prune => {
            editor.replace(wanted).await.map_err(refused)?;
            Ok(merge(&Resources::default(), wanted, false).1)
        }
        Err(error) => Err(error.into()),
        Ok(_) => Ok(changes.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}

async fn foresee(editor: &Editor, wanted: &Resources, prune: bool) -> Result<Vec<Change>, Failure> {
    let (current, _) = editor.read().await.map_err(refused)?;
    let (merged, changes) = merge(&current, wanted, prune);
    Table::compile(merged)?;
    Ok(changes)
}

/// The same error, of a call that makes no refusals of its own.
fn refused(error: EditError<()>) -> Failure {
    match error {
        EditError::Refused(()) | EditError::Contended => EditError::Contended.into(),
        EditError::Invalid(problems) => problems.into(),
        EditError::Unreadable(reason) => EditError::Unreadable(reason).into(),
        EditError::Bus(error) => error.into(),
    }
}

fn document(headers: &HeaderMap, body: &Body) -> Result<Resources, Failure> {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if media_type.is_some_and(|media_type| media_type.contains("json")) {
        return body.json();
    }
    let text = std::str::from_utf8(&body.0)
        .map_err(|_| Failure::invalid("body", "is not UTF-8", "send TOML or JSON"))?;
    // Which directory relative files were meant to be relative to is not known here.
    Ok(Resources::from_toml(text, std::path::Path::new(""))?)
}

/// The body as a resource of `kind` called `name`; the body may leave the name out.
fn parse(kind: Kind, name: &str, body: &Body) -> Result<Resource, Failure> {
    let name: Name = name.parse().map_err(|why| Failure::invalid("name", why, "change it"))?;
    let mut value: Value = body.json()?;
    let Some(object) = value.as_object_mut() else {
        return Err(Failure::invalid("body", "is not a JSON object", "send one resource"));
    };
    let given = object.entry("name").or_insert_with(|| json!(name)).clone();
    if given != json!(name) {
        let message = format!("is {given} in the body and `{name}` in the path");
        return Err(Failure::invalid("name", message, "make them the same, or leave it out"));
    }
    Ok(match kind {
        Kind::Upstream => Resource::Upstream(from_value::<Upstream>(value)?),
        Kind::Credential => Resource::Credential(from_value::<Credential>(value)?),
        Kind::Rule => Resource::Rule(from_value::<Rule>(value)?),
        Kind::Webhook => {
            let webhook = from_value::<Webhook>(value)?;
            // An empty reason is none.
            let disabled = webhook.disabled.filter(|reason| !reason.trim().is_empty());
            Resource::Webhook(Webhook { disabled, ..webhook })
        }
    })
}

/// The shared configuration, else what this process last knew of it.
async fn read(editor: &Editor, feed: &ResourceFeed) -> (Resources, bool) {
    match editor.read().await {
        Ok((resources, _)) => (resources, false),
        Err(_) => (feed.current().resources().clone(), true),
    }
}

fn marked(mut response: Response, stale: bool) -> Response {
    if stale {
        response.headers_mut().insert(LAST_KNOWN, header::HeaderValue::from_static("true"));
    }
    response
}

/// The path of one resource.
pub(crate) type At = Path<String>;
