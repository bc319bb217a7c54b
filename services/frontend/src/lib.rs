//! The pull half of the OCI distribution spec over the cache.
//!
//! A request is parsed once (`request.rs`), led to a rule (`place.rs`) and answered from storage,
//! from what is on its way, or from the upstream: manifests in `manifest.rs` and `tag.rs`, blobs in
//! `blob.rs`, lists in `list.rs`. What was missed is written down off the path of the answer
//! (`misses.rs`). Everything a client reads is made in `answer.rs` and `error.rs`.
//!
//! Absent on purpose: converting content, choosing a platform for a client, and any state that
//! another frontend would need.

mod answer;
mod asking;
mod blob;
mod board;
mod body;
mod checks;
mod circle;
mod coalesce;
mod error;
mod family;
mod heard;
mod held;
mod list;
mod manifest;
mod memory;
mod misses;
mod origin;
mod place;
mod range;
mod record;
mod request;
mod rumours;
mod sent_file;
mod serve;
mod shelf;
mod tag;

use asking::Asking;
use axum::{Router, body::Body, extract::Request};
use blob::Blobs;
use checks::Checks;
use family::Family;
use hydrant_boot::{ResourceFeed, drain, serve as http};
use hydrant_bus::Bus;
use hydrant_flight::Flights;
use hydrant_proto::Identity;
use hydrant_store::Store;
use hydrant_upstream::Upstreams;
use list::Lists;
use manifest::Manifests;
use memory::Memory;
use misses::Recorder;
use origin::Origins;
use rumours::Rumours;
use serve::Server;
use shelf::Shelf;
use std::{sync::Arc, time::Duration};
use tag::Tags;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What the frontend works with.
#[derive(Clone)]
pub struct Context {
    pub store: Store,
    pub bus: Bus,
    /// Tells which rules and upstreams there are.
    pub feed: ResourceFeed,
    pub upstreams: Upstreams,
    /// Who this hydrant is, to know its own requests when they come back.
    pub identity: Identity,
    pub settings: Settings,
}

/// How the frontend works.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Requests of clients that wait for upstreams at once; more are turned away.
    pub upstream_requests: usize,
    pub http: http::Limits,
    /// How long requests under way may go on after the stop, and misses may be written down.
    pub drain: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            upstream_requests: 4_096,
            http: http::Limits::default(),
            drain: Duration::from_secs(25),
        }
    }
}

/// Serves pulls on `listener` until `shutdown`, then finishes what is under way.
pub async fn run(
    context: Context,
    flights: Flights,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (settings, tasks, closing) =
        (context.settings, TaskTracker::new(), CancellationToken::new());
    let (server, recorder, rumours) = build(context, flights, &tasks);
    tasks.spawn(recorder.run(closing.clone()));
    tasks.spawn(rumours.listen(closing.clone()));

    let router = Router::new().fallback(move |request: Request| answer(server.clone(), request));
    let serving = http::serve(listener, router, settings.http, shutdown.clone());
    drain(&shutdown, settings.drain, serving).await;

    closing.cancel();
    tasks.close();
    drain(&closing, settings.drain, tasks.wait()).await;
    Ok(())
}

async fn answer(server: Arc<Server>, request: Request) -> axum::response::Response {
    let (parts, _) = request.into_parts();
    server.serve(&parts).await.map(Body::new)
}

fn build(
    context: Context,
    flights: Flights,
    tasks: &TaskTracker,
) -> (Arc<Server>, Recorder, Rumours) {
    let Context { store, bus, feed, upstreams, identity, settings } = context;
    let shelf = Shelf::new(store.clone());
    let origins = Arc::new(Origins::new(shelf.clone()));
    let (misses, recorder) = misses::misses(store.clone(), bus.clone());
    let (memory, family) = (Arc::new(Memory::new()), Arc::new(Family::new()));
    let asking = Arc::new(Asking::new(settings.upstream_requests, flights.clone(), tasks));
    let rumours = Rumours::new(store, bus, memory.clone(), tasks.clone());
    let manifests = Manifests {
        shelf: shelf.clone(),
        memory: memory.clone(),
        family: family.clone(),
        asking: asking.clone(),
        origins: origins.clone(),
        misses: Arc::new(misses),
    };
    let checks = Arc::new(Checks::new(tasks));
    let tags = Tags { manifests, rumours: rumours.clone(), checks };
    let lists = Lists::new(shelf.clone(), asking.clone(), origins.clone());
    let blobs = Blobs { shelf, flights, memory, family, asking, origins, tasks: tasks.clone() };
    let server = Server { feed, upstreams, identity, tags, blobs, lists };
    (Arc::new(server), recorder, rumours)
}
