//! The HTTP API over resources, hydrations, dead letters and deliveries, on the admin port.
//!
//! Everything here reads and writes what the other roles go by: the shared resource document, the
//! miss log and dead letters in storage, the queue and the event stream. Nothing is kept here, so
//! any number of control processes may run.

mod access;
mod budget;
mod dead_letters;
mod deliveries;
mod events;
mod failure;
mod hydrations;
mod input;
mod openapi;
mod poll;
mod precondition;
mod resources;
mod routes;
mod status;
mod stock;
mod tags;
mod upstreams;

pub use upstreams::{BreakerLine, QuotaLine, Standing, Standings};

use access::Access;
use axum::{Router, extract::FromRef};
use hydrant_boot::{AdminToken, Context, Editor, ResourceFeed, admin::serve_admin};
use hydrant_bus::Bus;
use hydrant_store::Store;
use std::sync::Arc;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

/// Followers of the event stream at once; more are told to come back.
const FOLLOWERS: usize = 64;

/// What the control role is built from.
#[derive(Clone, Debug)]
pub struct Config {
    pub context: Context,
    /// What callers must send; without it only this machine may call, and only on a loopback
    /// admin address.
    pub token: Option<AdminToken>,
    /// The standings of this process, where it has any.
    pub standings: Standings,
}

/// Serves the admin port with the API until `closing`, and looks at the queue from time to time. Long
/// polls, followed streams and those looks end earlier, when `stopping` is cancelled.
pub async fn run(
    config: Config,
    listener: TcpListener,
    stopping: CancellationToken,
    closing: CancellationToken,
) -> anyhow::Result<()> {
    let readiness = config.context.readiness.clone();
    let routes = api(&config, stopping.clone());
    let Context { bus, feed, .. } = config.context;
    tokio::join!(
        serve_admin(listener, readiness, routes, closing),
        stock::take_regularly(bus, feed, stopping),
    );
    Ok(())
}

/// The routes below `/api/v1`, behind the check of who may call. Long polls and followed streams
/// end when `stopping` is cancelled.
pub fn api(config: &Config, stopping: CancellationToken) -> Router {
    let context = &config.context;
    let access = Access::new(config.token.clone(), context.settings.admin_is_loopback());
    let parts = Parts {
        feed: context.feed.clone(),
        editor: context.editor.clone(),
        bus: context.bus.clone(),
        store: context.store.clone(),
        standings: config.standings.clone(),
        followers: Followers(Arc::new(Semaphore::new(FOLLOWERS))),
        stopping: Stopping(stopping),
    };
    routes::router(parts, access)
}

/// The room left for followers of the event stream.
#[derive(Clone, Debug)]
struct Followers(Arc<Semaphore>);

/// Cancelled when the process stops.
#[derive(Clone, Debug)]
struct Stopping(CancellationToken);

/// What handlers work with; each takes only the parts it names.
#[derive(Clone, Debug)]
struct Parts {
    feed: ResourceFeed,
    editor: Editor,
    bus: Bus,
    store: Store,
    standings: Standings,
    followers: Followers,
    stopping: Stopping,
}

macro_rules! part {
    ($($name:ident: $part:ty),+) => {
        $(impl FromRef<Parts> for $part {
            fn from_ref(parts: &Parts) -> Self {
                parts.$name.clone()
            }
        })+
    };
}

part!(
    feed: ResourceFeed,
    editor: Editor,
    bus: Bus,
    store: Store,
    standings: Standings,
    followers: Followers,
    stopping: Stopping
);
