//! One consume loop per upstream, so that an open breaker pauses that upstream's jobs and nobody
//! else's. Loops follow the configuration.

use crate::worker::Worker;
use hydrant_bus::{ConsumeOptions, consume};
use hydrant_rules::{Credential, Name, Table, Upstream};
use hydrant_telemetry::metrics;
use hydrant_upstream::{BreakerState, Client};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// How a process works on its jobs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Jobs of one upstream under way at once.
    pub slots: usize,
    /// How long jobs may go on after the process was told to stop.
    pub drain: Duration,
}

/// Runs the loops until `stop`, then waits until they have drained.
pub(crate) async fn run(worker: Worker, pace: Pace, stop: CancellationToken) {
    let mut tables = worker.feed.changed();
    let mut lanes = Lanes { worker, pace, running: HashMap::new(), tasks: JoinSet::new() };
    loop {
        let table = tables.borrow_and_update().clone();
        lanes.follow(&table, &stop);
        let changed = stop.run_until_cancelled(tables.changed()).await;
        if !matches!(changed, Some(Ok(()))) {
            break;
        }
    }
    stop.cancelled().await;
    while lanes.tasks.join_next().await.is_some() {}
}

type Served = (Arc<Upstream>, Option<Credential>);

struct Lanes {
    worker: Worker,
    pace: Pace,
    running: HashMap<Name, (Served, CancellationToken)>,
    tasks: JoinSet<()>,
}

impl Lanes {
    fn follow(&mut self, table: &Table, stop: &CancellationToken) {
        while self.tasks.try_join_next().is_some() {}
        table
            .resources()
            .rule
            .iter()
            .for_each(|rule| metrics().hydrations.expect(rule.name.as_str()));
        let wanted: HashMap<_, _> = served(table).map(|s| (s.0.name.clone(), s)).collect();
        self.running.retain(|name, (served, token)| {
            let stays = wanted.get(name) == Some(served);
            if !stays {
                token.cancel();
            }
            stays
        });
        for (name, served) in wanted {
            if !self.running.contains_key(&name) {
                let token = stop.child_token();
                self.begin(&served, token.clone());
                self.running.insert(name, (served, token));
            }
        }
    }

    fn begin(&mut self, (upstream, credential): &Served, stop: CancellationToken) {
        let client = match self.worker.upstreams.get(upstream, credential.as_ref()) {
            Ok(client) => client,
            Err(error) => {
                tracing::error!(upstream = %upstream.name, %error, "upstream cannot be worked on");
                return;
            }
        };
        let (paused, gate) = watch::channel(false);
        self.tasks.spawn(pause_while_open(client, paused, stop.clone()));
        let options = ConsumeOptions {
            slots: self.pace.slots,
            paused: gate,
            shutdown: stop,
            drain: self.pace.drain,
        };
        let jobs = self.worker.bus.jobs(upstream.name.as_str());
        let (handler, rejecter) = (self.worker.clone(), self.worker.clone());
        let handle = move |job| {
            let worker = handler.clone();
            Box::pin(async move { worker.handle(job).await })
        };
        let reject = move |rejected| {
            let worker = rejecter.clone();
            async move { worker.reject(rejected).await }
        };
        self.tasks.spawn(consume(jobs, options, handle, reject));
    }
}

fn served(table: &Table) -> impl Iterator<Item = Served> {
    table.resources().upstream.iter().map(|upstream| {
        let credential =
            upstream.credential.as_ref().and_then(|name| table.credential(name.as_str()));
        (Arc::new(upstream.clone()), credential.cloned())
    })
}

/// Keeps the gate as the breaker is: nothing is pulled while it is open, so no attempt is burned.
/// Half open it lets jobs through, of which the breaker takes one as its probe.
async fn pause_while_open(
    client: Arc<Client>,
    paused: watch::Sender<bool>,
    stop: CancellationToken,
) {
    let breaker = client.breaker();
    let mut state = breaker.watch();
    let follow = async {
        loop {
            let now = *state.borrow_and_update();
            paused.send_replace(matches!(now, BreakerState::Open { .. }));
            // Jobs may wait there that nobody else would probe for.
            breaker.attend();
            if state.changed().await.is_err() {
                return;
            }
        }
    };
    stop.run_until_cancelled(follow).await;
}
