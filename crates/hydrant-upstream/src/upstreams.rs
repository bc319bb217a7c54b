//! The clients of a process: one per upstream and credential reference.

use crate::{BreakerSettings, Client, Guard, SecretSource, UpstreamError, guard::scope};
use hydrant_egress::Resolve;
use hydrant_proto::Identity;
use hydrant_rules::{Credential, Name, Upstream};
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::watch;

/// How clients behave, beyond what the configuration of an upstream says.
#[derive(Clone)]
pub struct Options {
    pub breaker: BreakerSettings,
    /// Longest pause between two reads of a blob's body.
    pub body_idle: Duration,
    /// How long a manifest the upstream does not have is not asked for again.
    pub unknown_for: Duration,
    /// Who asks, as upstreams are told.
    pub identity: Identity,
    /// Resolves names instead of the system; what it answers is checked all the same.
    pub resolver: Option<Arc<dyn Resolve>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            breaker: BreakerSettings::default(),
            body_idle: Duration::from_secs(60),
            unknown_for: Duration::from_secs(30),
            identity: Identity::default(),
            resolver: None,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("breaker", &self.breaker)
            .field("body_idle", &self.body_idle)
            .field("unknown_for", &self.unknown_for)
            .finish_non_exhaustive()
    }
}

/// The clients of a process. Cheap to clone; clones share the clients.
#[derive(Clone, Debug)]
pub struct Upstreams(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    secrets: SecretSource,
    options: Options,
    clients: Mutex<HashMap<Name, Vec<Known>>>,
    guards: watch::Sender<Vec<Guard>>,
}

#[derive(Debug)]
struct Known {
    upstream: Arc<Upstream>,
    credential: Option<Credential>,
    client: Arc<Client>,
}

/// Versions of one upstream kept at once: while a change spreads, calls under the old
/// configuration may still be under way, and must not make the breaker of the new one forget.
const VERSIONS: usize = 2;

impl Upstreams {
    pub fn new(secrets: SecretSource) -> Self {
        Self::with_options(secrets, Options::default())
    }

    pub fn with_options(secrets: SecretSource, options: Options) -> Self {
        let (clients, guards) = (Mutex::default(), watch::Sender::default());
        Self(Arc::new(Shared { secrets, options, clients, guards }))
    }

    /// The client of `upstream` with `credential`; the same one as long as both are unchanged.
    /// Fails only when TLS cannot be set up.
    pub fn get(
        &self,
        upstream: &Arc<Upstream>,
        credential: Option<&Credential>,
    ) -> Result<Arc<Client>, UpstreamError> {
        let mut clients = self.clients();
        let versions = clients.entry(upstream.name.clone()).or_default();
        let same =
            |known: &&Known| known.upstream == *upstream && known.credential.as_ref() == credential;
        if let Some(known) = versions.iter().find(same) {
            return Ok(known.client.clone());
        }
        let (upstream, credential) = (upstream.clone(), credential.cloned());
        let (secrets, options) = (self.0.secrets.clone(), &self.0.options);
        let guard = self.guard(&upstream, versions);
        let client = Client::new(upstream.clone(), credential.clone(), secrets, options, guard)?;
        let client = Arc::new(client);
        versions.insert(0, Known { upstream, credential, client: client.clone() });
        versions.truncate(VERSIONS);
        self.0.guards.send_replace(guards(&clients));
        Ok(client)
    }

    /// The guard of a version that is the same upstream with other settings, or a new one.
    fn guard(&self, upstream: &Upstream, versions: &[Known]) -> Guard {
        let scope = scope(upstream);
        let guards = versions.iter().map(|known| known.client.guard());
        let held = guards.into_iter().find(|guard| guard.scope() == scope);
        held.cloned().unwrap_or_else(|| Guard::new(upstream, self.0.options.breaker))
    }

    /// The guards of all clients, now and whenever there is another.
    pub fn guards(&self) -> watch::Receiver<Vec<Guard>> {
        self.0.guards.subscribe()
    }

    /// The newest client of each upstream asked for so far.
    pub fn all(&self) -> Vec<Arc<Client>> {
        let clients = self.clients();
        clients.values().filter_map(|versions| Some(versions.first()?.client.clone())).collect()
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<Name, Vec<Known>>> {
        self.0.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Also those of the version before: it may still be asked, or come back.
fn guards(clients: &HashMap<Name, Vec<Known>>) -> Vec<Guard> {
    let mut guards: Vec<Guard> = Vec::new();
    for known in clients.values().flatten() {
        let guard = known.client.guard();
        if !guards.iter().any(|held| held.scope() == guard.scope()) {
            guards.push(guard.clone());
        }
    }
    guards
}
