//! Signed webhooks: one delivery per endpoint, retried, logged, dead-lettered.
//!
//! An event comes from the bus, one durable consumer per webhook, and goes out as a CloudEvent
//! signed as Standard Webhooks prescribe. The bus counts the attempts and keeps the time until the
//! next one, so a restart loses neither.

mod cloudevent;
mod dead_letter;
mod delivery;
mod disable;
mod endpoint;
mod endpoints;
mod filter;
mod schedule;
mod secret;
mod settle;
pub mod signature;
mod streak;

pub use delivery::Limits;
pub use schedule::Schedule;
pub use signature::verify;
pub use streak::PATIENCE;

use endpoints::Endpoints;
use hydrant_boot::{Editor, Readiness, ResourceFeed};
use hydrant_bus::Bus;
use hydrant_store::Store;
use jiff::SignedDuration;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What the notifier works with.
#[derive(Clone, Debug)]
pub struct Context {
    pub bus: Bus,
    /// Where dead letters go.
    pub store: Store,
    /// Tells which webhooks there are.
    pub feed: ResourceFeed,
    /// Turns webhooks off that are gone.
    pub editor: Editor,
    pub readiness: Readiness,
    pub settings: Settings,
}

impl Context {
    /// With the parts that the roles of a process share, and the usual settings.
    pub fn of(process: &hydrant_boot::Context) -> Self {
        // A little less than the process has, so that what is cut off is still given back.
        let drain = process.settings.drain_deadline.0.saturating_sub(Duration::from_secs(1));
        let settings = Settings { drain, ..Settings::default() };
        Self {
            bus: process.bus.clone(),
            store: process.store.clone(),
            feed: process.feed.clone(),
            editor: process.editor.clone(),
            readiness: process.readiness.clone(),
            settings,
        }
    }
}

/// How the notifier works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Deliveries under way at once, per webhook.
    pub concurrency: usize,
    pub limits: Limits,
    pub schedule: Schedule,
    /// How long an endpoint may fail at everything before it is disabled.
    pub patience: SignedDuration,
    /// How long deliveries under way may go on after the stop.
    pub drain: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            concurrency: 16,
            limits: Limits::default(),
            schedule: Schedule::default(),
            patience: PATIENCE,
            drain: Duration::from_secs(25),
        }
    }
}

/// Serves every enabled webhook until `shutdown`, then finishes what is under way.
pub async fn run(context: Context, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut tables = context.feed.changed();
    let mut endpoints = Endpoints::new(&context);
    loop {
        let table = tables.borrow_and_update().clone();
        endpoints.follow(table.resources());
        let changed = async {
            // A feed that is gone changes no more.
            if tables.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            () = changed => {}
            () = endpoints.tend() => {}
        }
    }
    endpoints.stop().await;
    Ok(())
}
