//! What do the processes tell each other about an upstream?
//!
//! Each upstream that this process asks has a [`Guard`](hydrant_upstream::Guard), which decides for
//! itself by what it sees. Here the guards of all processes are connected over the bus, so that they
//! act as one: each writes what it saw beside the others (`report.rs`), one at a time probes an
//! upstream that failed (`probe.rs`), what it tells one of its rate limit all know (`quota.rs`), and
//! all know how many share its limits.
//!
//! Everything here runs beside the calls to the upstream, none of which waits for the bus. While
//! the bus is away each process protects the upstream by itself.

mod announce;
mod look;
mod probe;
mod quota;
mod report;

pub use look::{Look, look};

use hydrant_bus::Bus;
use hydrant_upstream::{Guard, Upstreams};
use std::collections::HashMap;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Connects the guards of `upstreams`, those to come included, until `stop`.
pub async fn run(bus: Bus, upstreams: Upstreams, stop: CancellationToken) {
    let mut guards = upstreams.guards();
    let mut members = Members { bus, stop: stop.clone(), known: HashMap::new() };
    let mut tasks = JoinSet::new();
    loop {
        let now = guards.borrow_and_update().clone();
        members.follow(&now, &mut tasks);
        while tasks.try_join_next().is_some() {}
        if !matches!(stop.run_until_cancelled(guards.changed()).await, Some(Ok(()))) {
            break;
        }
    }
    stop.cancelled().await;
    tasks.join_all().await;
}

/// The guards that are connected, by scope.
struct Members {
    bus: Bus,
    stop: CancellationToken,
    known: HashMap<String, CancellationToken>,
}

impl Members {
    fn follow(&mut self, guards: &[Guard], tasks: &mut JoinSet<()>) {
        self.known.retain(|scope, token| {
            let stays = guards.iter().any(|guard| guard.scope() == scope);
            if !stays {
                token.cancel();
            }
            stays
        });
        for guard in guards {
            if !self.known.contains_key(guard.scope()) {
                let token = self.stop.child_token();
                self.known.insert(guard.scope().to_owned(), token.clone());
                let (bus, guard) = (self.bus.clone(), guard.clone());
                tasks.spawn(async move {
                    let member = Box::pin(member(&bus, &guard));
                    token.run_until_cancelled_owned(member).await;
                    report::leave(&bus.shared_state(), &guard).await;
                });
            }
        }
    }
}

/// Connects one guard, for ever.
async fn member(bus: &Bus, guard: &Guard) {
    guard.join_fleet();
    let state = bus.shared_state();
    tokio::join!(
        report::tell(bus, &state, guard),
        report::hear(bus, &state, guard),
        quota::tell(bus, &state, guard),
        quota::hear(&state, guard),
        probe::take_turns(&state, guard),
    );
}
