//! Looks at the queue from time to time, for whoever watches hydrant: what waits and for how long is to
//! be known when no importer runs, and an autoscaler is to see from it that one is needed.

use hydrant_boot::ResourceFeed;
use hydrant_bus::Bus;
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// How often, and how soon after a look that failed.
const EVERY: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_secs(5);

/// Takes stock at every connect, at every change of the resources and from time to time, until `stop`.
pub(crate) async fn take_regularly(bus: Bus, feed: ResourceFeed, stop: CancellationToken) {
    let (mut connected, mut tables) = (bus.connected(), feed.changed());
    let work = async {
        // An error means that the bus is gone for good, with the process.
        while connected.wait_for(|connected| *connected).await.is_ok() {
            let table = tables.borrow_and_update().clone();
            let upstreams = table.resources().upstream.iter();
            let names: Vec<_> = upstreams.map(|upstream| upstream.name.as_str()).collect();
            let taken = bus.take_stock(&names).await;
            if let Err(error) = &taken {
                tracing::debug!(%error, "the queue was not looked at");
            }
            tokio::select! {
                () = sleep(if taken.is_ok() { EVERY } else { AGAIN }) => {}
                // The feed is held here, so it does not end.
                _ = tables.changed() => {}
                _ = connected.wait_for(|connected| !*connected) => {}
            }
        }
    };
    stop.run_until_cancelled(work).await;
}
