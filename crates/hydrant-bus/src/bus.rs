//! The connection: made in the background, watched over, and closed in order.

use crate::{
    BusConfig, BusError,
    config::REQUEST_TIMEOUT,
    link::{Link, LinkState, unsuitable},
    topology,
};
use async_nats::{
    Client, Request,
    jetstream::{AckKind, Context, ContextBuilder, Message},
};
use bytes::Bytes;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How often the streams are looked at while the connection stands.
const CHECK_EVERY: Duration = Duration::from_secs(30);
/// How soon after a failed look.
const CHECK_AGAIN: Duration = Duration::from_secs(2);

/// The bus. Clones share one connection; it ends with the last of them.
#[derive(Clone, Debug)]
pub struct Bus {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    checks: Checks,
    owner: String,
    keeper: Mutex<Option<JoinHandle<()>>>,
    /// Stops the keeper, which would else hold the connection open.
    _stop: DropGuard,
}

/// What is needed to look after the streams.
#[derive(Clone, Debug)]
struct Checks {
    config: BusConfig,
    client: Client,
    jetstream: Context,
    link: Link,
}

impl Bus {
    /// Prepares the connection and returns at once, whether NATS is there or not; it is looked
    /// for in the background for ever. Fails only for settings that can never work.
    pub async fn connect(config: BusConfig) -> Result<Self, BusError> {
        // One TLS provider per process; already there when `main` installed it.
        let _ = async_nats::rustls::crypto::aws_lc_rs::default_provider().install_default();
        let link = Link::new(config.server_names()?);
        let observer = link.clone();
        let options = config.options().await?.event_callback(move |event| {
            let observer = observer.clone();
            async move { observer.observe(&event) }
        });
        let client = options
            .connect(config.servers()?)
            .await
            .map_err(|e| BusError::Refused { what: "connect to nats", reason: e.to_string() })?;
        let jetstream = ContextBuilder::new().timeout(REQUEST_TIMEOUT).build(client.clone());
        let owner = format!("{}-{:016x}", config.client_name, rand::random::<u64>());
        let stop = CancellationToken::new();
        let checks = Checks { config, client, jetstream, link };
        let keeper = tokio::spawn(keep(checks.clone(), stop.clone()));
        let keeper = Mutex::new(Some(keeper));
        let shared = Shared { checks, owner, keeper, _stop: stop.drop_guard() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Whether the bus is usable: connected to a server that is new enough, with the streams as
    /// they should be.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.shared.checks.link.connected()
    }

    /// Why the bus is not usable, for `/readyz` and people; `None` when it is.
    pub fn problem(&self) -> Option<String> {
        self.shared.checks.link.now().problem
    }

    /// Makes or repairs the streams and buckets now. A background task does so at every connect
    /// and every 30 s, so this is for those who cannot wait.
    pub async fn ensure_topology(&self) -> Result<(), BusError> {
        self.reachable()?;
        self.shared.checks.run().await
    }

    /// Waits until everything sent so far has left, at most 5 s.
    pub async fn flush(&self) -> Result<(), BusError> {
        self.reachable()?;
        match timeout(REQUEST_TIMEOUT, self.shared.checks.client.flush()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(BusError::unknown("flush", error)),
            Err(elapsed) => Err(BusError::unknown("flush", elapsed)),
        }
    }

    /// Sends what is left and closes the connection, for the end of a process; at most 5 s each.
    pub async fn close(&self) {
        let keeper = self.shared.keeper.lock().expect("no holder panics").take();
        if let Some(keeper) = keeper {
            keeper.abort();
            let _ = keeper.await;
        }
        if self.flush().await.is_ok() && self.shared.checks.client.drain().await.is_ok() {
            let closed =
                async { self.shared.checks.link.watch().wait_for(|link| !link.up).await.is_ok() };
            let _ = timeout(REQUEST_TIMEOUT, closed).await;
        }
    }

    /// Refuses at once while the connection is down: nothing piles up in the client to be sent
    /// later, when it may no longer be wanted.
    pub(crate) fn reachable(&self) -> Result<(), BusError> {
        let link = self.shared.checks.link.now();
        match link {
            LinkState { up: true, barred: false, .. } => Ok(()),
            LinkState { problem, .. } => Err(BusError::Disconnected(problem.unwrap_or_default())),
        }
    }

    /// Settles a message and waits for the server to say so. By the one inbox of the connection: the
    /// library's own way subscribes and unsubscribes for each.
    pub(crate) async fn settle(&self, message: &Message, ack: AckKind) -> Result<(), BusError> {
        const WHAT: &str = "settle a message";
        let Some(reply) = message.reply.clone() else {
            let reason = "it is no message of a consumer".to_owned();
            return Err(BusError::Refused { what: WHAT, reason });
        };
        let request = Request::new().payload(ack.into());
        let settled = self.shared.checks.client.send_request(reply, request).await;
        settled.map(drop).map_err(|error| BusError::unknown(WHAT, error))
    }

    /// Sends what may be lost: nobody waits for it to be stored.
    pub(crate) async fn send(&self, subject: String, payload: Bytes) -> Result<(), BusError> {
        self.reachable()?;
        let sent = self.shared.checks.client.publish(subject, payload).await;
        sent.map_err(|error| BusError::unknown("send a message", error))
    }

    pub(crate) fn jetstream(&self) -> &Context {
        &self.shared.checks.jetstream
    }

    /// Names this connection as the writer of shared values; another one after each start.
    pub(crate) fn owner(&self) -> &str {
        &self.shared.owner
    }

    pub(crate) fn config(&self) -> &BusConfig {
        &self.shared.checks.config
    }

    pub(crate) fn link(&self) -> watch::Receiver<LinkState> {
        self.shared.checks.link.watch()
    }
}

impl Checks {
    /// Looks at the server and its streams once, and tells the link.
    async fn run(&self) -> Result<(), BusError> {
        if let Some(reason) = unsuitable(&self.client.server_info()) {
            self.link.refuse(&reason, true);
            return Err(BusError::Refused { what: "use this nats-server", reason });
        }
        // Boxed: requests that carry a whole stream configuration make a future of 20 KiB.
        let outcome = Box::pin(topology::ensure(&self.jetstream, &self.config)).await;
        match &outcome {
            Ok(()) => self.link.ready(),
            Err(error) => self.link.refuse(&error.to_string(), false),
        }
        outcome
    }
}

/// Looks after the streams at every connect and from time to time, until stopped.
async fn keep(checks: Checks, stop: CancellationToken) {
    let mut link = checks.link.watch();
    let mut told = None;
    let work = async {
        while let Ok(epoch) = link.wait_for(|link| link.up).await.map(|link| link.epoch) {
            let problem = checks.run().await.err().map(|error| error.to_string());
            tell(&mut told, &problem);
            let pause = if problem.is_some() { CHECK_AGAIN } else { CHECK_EVERY };
            // Whatever ends the wait, the next look is due.
            let _ = timeout(pause, link.wait_for(|link| !link.up || link.epoch != epoch)).await;
        }
    };
    stop.run_until_cancelled(work).await;
}

/// Logs each change once, not each look.
fn tell(told: &mut Option<Option<String>>, problem: &Option<String>) {
    if told.as_ref() == Some(problem) {
        return;
    }
    match problem {
        Some(problem) => tracing::error!(problem, "the bus is not usable"),
        None => tracing::info!("the bus is ready"),
    }
    *told = Some(problem.clone());
}
