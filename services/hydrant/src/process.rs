//! One process: its parts built in order, its roles run until told to stop, then drained.

use crate::{
    banner,
    cli::{RoleFlags, UpFlags},
    embedded::NatsServer,
    peering::PeerPort,
    standing::standings,
};
use anyhow::Context as _;
use hydrant_boot::{
    AdminToken, Context, Drained, Readiness, Role, Settings, admin, bind, drain, stop_on_signals,
};
use hydrant_flight::Flights;
use hydrant_telemetry::metrics;
use hydrant_upstream::{Options, SecretSource, Upstreams};
use std::time::Duration;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Longest wait for what is left to do after the roles have ended.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// `hydrant up`: all four roles, against a nats-server of its own unless another is named.
pub async fn up(flags: UpFlags) -> anyhow::Result<()> {
    check(Role::Up, &flags.settings)?;
    if flags.settings.bus.nats_url.is_some() {
        return Box::pin(run(Role::Up, flags.settings, None)).await;
    }
    let program = crate::embedded::find(flags.nats_server.as_deref())?;
    Box::pin(run(Role::Up, flags.settings, Some(program))).await
}

/// One of the four roles.
pub async fn role(role: Role, flags: RoleFlags) -> anyhow::Result<()> {
    check(role, &flags.settings)?;
    Box::pin(run(role, flags.settings, None)).await
}

/// All that can be known to be wrong before anything is started.
fn check(role: Role, settings: &Settings) -> anyhow::Result<()> {
    settings.check(role)?;
    Ok(Context::check(settings)?)
}

async fn run(
    role: Role,
    settings: Settings,
    nats_server: Option<crate::embedded::Program>,
) -> anyhow::Result<()> {
    let token = AdminToken::from_env().map_err(anyhow::Error::msg)?;
    let telemetry = hydrant_telemetry::init(&settings.telemetry(role))?;
    let mut listeners = Listeners::bind(role, &settings).await?;
    let readiness = Readiness::default();
    let stop =
        stop_on_signals(readiness.clone(), settings.drain_delay.0).context("listen for signals")?;

    let nats = match nats_server {
        Some(program) => Some(NatsServer::start(program, &settings.data()).await?),
        None => None,
    };
    let nats_url = match &nats {
        Some(server) => server.url(),
        None => settings.bus.nats_url.clone().unwrap_or_default(),
    };
    let deadline = settings.drain_deadline.0;
    let parts = async {
        let context = Context::start(settings, role, &nats_url, readiness, &stop).await?;
        let fetching = Fetching::new(role, &context, listeners.peer.as_ref())?;
        anyhow::Ok((context, fetching))
    };
    let (context, fetching) = match parts.await {
        Ok(parts) => parts,
        Err(error) => {
            stop_server(nats).await;
            return Err(error);
        }
    };
    let facts = banner::Facts::gather(role, &context, &listeners, nats.as_ref());
    let closing = CancellationToken::new();
    let upstreams = fetching.as_ref().map(|fetching| fetching.upstreams.clone());
    let standings = standings(upstreams, context.bus.clone());
    let config = hydrant_control::Config { context: context.clone(), token, standings };
    let admin = tokio::spawn(serve_admin(role, config, listeners.admin, &stop, closing.clone()));
    let peers = listeners.peer.take().zip(fetching.as_ref());
    let peers = peers.map(|(port, fetching)| port.serve(&fetching.flights, closing.clone()));
    let roles = start(role, &context, fetching.as_ref(), listeners.pulls, &stop);
    facts.tell(&context);

    let ended = drain(&stop, deadline, all(roles, &stop)).await;
    let all_closed = async {
        close(context, fetching, nats).await;
        closing.cancel();
        if let Some(peers) = peers {
            peers.await.context("serve the peer port")?;
        }
        admin.await.context("serve the admin port")?
    };
    let closed = tokio::time::timeout(CLOSE_LIMIT, all_closed).await.unwrap_or_else(|_| {
        tracing::warn!("not everything was closed in time");
        Ok(())
    });
    tracing::info!("stopped");
    // It blocks while it sends the last spans.
    let _ = tokio::task::spawn_blocking(|| telemetry.shutdown()).await;
    match ended {
        Drained::Finished(outcome) => outcome.and(closed),
        Drained::DeadlinePassed => closed,
    }
}

/// The sockets of a process, bound before anything else is started: a taken port is known at once.
pub struct Listeners {
    pub pulls: Option<TcpListener>,
    pub admin: TcpListener,
    pub peer: Option<PeerPort>,
}

impl Listeners {
    async fn bind(role: Role, settings: &Settings) -> anyhow::Result<Self> {
        let pulls = match role {
            Role::Up | Role::Frontend => Some(bind("--listen", settings.listen).await?),
            Role::Importer | Role::Notifier | Role::Control => None,
        };
        let admin = bind("--admin", settings.admin).await?;
        Ok(Self { pulls, admin, peer: PeerPort::bind(role, settings).await? })
    }
}

/// What fetches from upstreams: shared by frontend and importer, so that one process reads a blob
/// once and has one breaker per upstream.
struct Fetching {
    upstreams: Upstreams,
    flights: Flights,
}

impl Fetching {
    fn new(
        role: Role,
        context: &Context,
        peers: Option<&PeerPort>,
    ) -> anyhow::Result<Option<Self>> {
        if !matches!(role, Role::Up | Role::Frontend | Role::Importer) {
            return Ok(None);
        }
        let (spool, budget) = (context.settings.spool_dir(), context.settings.spool.0);
        metrics().flights.spool_limit(budget);
        let cluster = peers.map(|port| port.cluster(context));
        let flights = Flights::new(context.store.clone(), spool.clone(), budget, cluster)
            .with_context(|| format!("use the spool directory {} (--data)", spool.display()))?;
        let options = Options { identity: context.identity.clone(), ..Options::default() };
        let upstreams = Upstreams::with_options(SecretSource::default(), options);
        Ok(Some(Self { upstreams, flights }))
    }
}

type Roles = JoinSet<(&'static str, anyhow::Result<()>)>;

/// Starts the roles of this process.
fn start(
    role: Role,
    context: &Context,
    fetching: Option<&Fetching>,
    listener: Option<TcpListener>,
    stop: &CancellationToken,
) -> Roles {
    let mut roles = Roles::new();
    if let Some(fetching) = fetching {
        let run = hydrant_fleet::run(context.bus.clone(), fetching.upstreams.clone(), stop.clone());
        roles.spawn(async {
            run.await;
            ("fleet", Ok(()))
        });
    }
    if let (Some(fetching), Some(listener)) = (fetching, listener) {
        let frontend = hydrant_frontend::Context {
            store: context.store.clone(),
            bus: context.bus.clone(),
            feed: context.feed.clone(),
            upstreams: fetching.upstreams.clone(),
            identity: context.identity.clone(),
            settings: hydrant_frontend::Settings {
                drain: context.settings.drain_deadline.0,
                ..hydrant_frontend::Settings::default()
            },
        };
        let run = hydrant_frontend::run(frontend, fetching.flights.clone(), listener, stop.clone());
        roles.spawn(async { ("frontend", run.await) });
    }
    if let (Some(fetching), Role::Up | Role::Importer) = (fetching, role) {
        let (flights, upstreams) = (fetching.flights.clone(), fetching.upstreams.clone());
        let run = hydrant_importer::run(context.clone(), flights, upstreams, stop.clone());
        roles.spawn(async { ("importer", run.await) });
    }
    if matches!(role, Role::Up | Role::Notifier) {
        let notifier = hydrant_notifier::Context::of(context);
        let run = hydrant_notifier::run(notifier, stop.clone());
        roles.spawn(async { ("notifier", run.await) });
    }
    roles
}

/// The admin port: the control role's API beside it where there is that role. It answers until
/// `closing`, so that a process that drains can be watched; should it end by itself, the process
/// stops with it.
fn serve_admin(
    role: Role,
    config: hydrant_control::Config,
    listener: TcpListener,
    stop: &CancellationToken,
    closing: CancellationToken,
) -> impl Future<Output = anyhow::Result<()>> + use<> {
    let stop = stop.clone();
    async move {
        let _stop_with_it = stop.clone().drop_guard();
        if matches!(role, Role::Up | Role::Control) {
            return hydrant_control::run(config, listener, stop, closing).await;
        }
        let readiness = config.context.readiness;
        admin::serve_admin(listener, readiness, axum::Router::new(), closing).await;
        Ok(())
    }
}

/// Waits for all roles. One that fails or ends unasked ends the others, and the process with them.
async fn all(mut roles: Roles, stop: &CancellationToken) -> anyhow::Result<()> {
    let mut first = Ok(());
    while let Some(joined) = roles.join_next().await {
        let outcome = match joined {
            Ok((name, Ok(()))) if stop.is_cancelled() => {
                tracing::debug!(role = name, "role ended");
                Ok(())
            }
            Ok((name, Ok(()))) => Err(anyhow::anyhow!("{name} ended unasked")),
            Ok((name, Err(error))) => Err(error.context(format!("run {name}"))),
            Err(panicked) => Err(anyhow::anyhow!("a role panicked: {panicked}")),
        };
        stop.cancel();
        first = first.and(outcome);
    }
    // A process may have no role but what its admin port serves.
    stop.cancelled().await;
    first
}

/// What is left after the roles: flights are ended with their uploads aborted, then the bus goes,
/// then the server of the bus.
async fn close(context: Context, fetching: Option<Fetching>, nats: Option<NatsServer>) {
    if let Some(fetching) = fetching {
        fetching.flights.stop().await;
    }
    context.close().await;
    stop_server(nats).await;
}

/// Ends the server in order, so that its data directory is free for the next start.
async fn stop_server(nats: Option<NatsServer>) {
    if let Some(server) = nats {
        server.stop().await;
    }
}
