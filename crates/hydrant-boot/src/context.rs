//! The parts that every role of a process shares, built once.

use crate::{
    edit::Editor,
    error::BootError,
    feed::ResourceFeed,
    keeper::Keeper,
    last_known_good::LastKnownGood,
    readiness::{Check, Importance, Readiness},
    retry::Schedule,
    secrets::warn_of_missing,
    settings::{Role, Settings},
};
use hydrant_bus::Bus;
use hydrant_proto::Identity;
use hydrant_rules::{Resources, Table};
use hydrant_store::{InvalidStoreUrl, Retry, Store, StoreConfig, StoreError, StoreUrl};
use std::{fs, path::Path, sync::Arc, time::Duration};
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long a start waits for the store to prove itself; one that is merely slow or away is asked
/// again in the background.
const PROBE_LIMIT: Duration = Duration::from_secs(10);
const PROBE_AGAIN: Schedule = Schedule::doubling(Duration::from_secs(1), Duration::from_secs(30));
/// Pause between two looks whether a store that proved itself still answers.
const ASK_AGAIN: Duration = Duration::from_secs(15);
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// The shared parts of one process. Clones share them.
#[derive(Clone, Debug)]
pub struct Context {
    pub settings: Arc<Settings>,
    /// The resources in effect.
    pub feed: ResourceFeed,
    /// Changes the shared resources.
    pub editor: Editor,
    pub bus: Bus,
    pub store: Store,
    /// Who this process is, once the store told it.
    pub identity: Identity,
    pub readiness: Readiness,
    tasks: TaskTracker,
}

/// What this process cannot be ready without.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    pub bus: Importance,
    pub store: Importance,
}

impl Needs {
    /// What a role needs to do anything useful: a frontend serves without bus and store (from
    /// storage, or by passing through), a worker can do nothing without them.
    pub const fn of(role: Role) -> Self {
        let (bus, store) = match role {
            Role::Up => (Importance::AtStart, Importance::AtStart),
            Role::Frontend => (Importance::Advisory, Importance::Advisory),
            Role::Importer => (Importance::Required, Importance::Required),
            Role::Notifier | Role::Control => (Importance::Required, Importance::Advisory),
        };
        Self { bus, store }
    }
}

impl Context {
    /// Finds what is wrong with the configuration file and the store's address, before anything
    /// is started.
    pub fn check(settings: &Settings) -> Result<(), BootError> {
        settings.config.as_deref().map(read_resources).transpose()?;
        store_url(&settings.store_url()).map(drop)
    }

    /// Builds the parts in order and starts what keeps them: the feed, the checks. Fails for what
    /// no waiting can mend: an invalid file, a store that refuses, settings that mean nothing.
    /// NATS and an S3 store may be away; they are looked for in the background.
    pub async fn start(
        settings: Settings,
        role: Role,
        nats_url: &str,
        readiness: Readiness,
        stop: &CancellationToken,
    ) -> Result<Self, BootError> {
        let needs = Needs::of(role);
        let data = settings.data();
        fs::create_dir_all(&data).map_err(|cause| BootError::Data { dir: data.clone(), cause })?;
        let file = settings.config.as_deref().map(read_resources).transpose()?;
        let feed = ResourceFeed::begin(LastKnownGood::new(&data), file.as_ref());
        let identity = Identity::default();
        let (store, probed) = open_store(&settings, &identity).await?;
        let bus = Bus::connect(settings.bus_config(role, nats_url))
            .await
            .map_err(|cause| BootError::Bus { url: redacted(nats_url), cause: Box::new(cause) })?;
        let editor = Editor::new(bus.resources(), feed.clone());
        let tasks = TaskTracker::new();
        let settings = Arc::new(settings);
        let context = Self { settings, feed, editor, bus, store, identity, readiness, tasks };
        context.keep(role, file, stop);
        let warning = warn_of_missing(context.feed.clone(), role);
        context.tasks.spawn(stop.clone().run_until_cancelled_owned(warning));
        context.watch_bus(needs.bus, stop);
        context.watch_store(needs.store, probed, stop);
        Ok(context)
    }

    /// Waits for the background tasks, which end when `stop` of [`Context::start`] is cancelled,
    /// and for the clean-up in
    /// storage, and closes the connection to NATS.
    pub async fn close(self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.store.settled().await;
        self.bus.close().await;
    }

    fn keep(&self, role: Role, file: Option<Resources>, stop: &CancellationToken) {
        let check = self.readiness.check("resources", Importance::AtStart);
        // A follower can work by what it last knew. A writer is not ready before its file is
        // written: a change made before that would be overwritten by it.
        if !role.keeps_resources() && !self.feed.current().resources().rule.is_empty() {
            check.ok();
        }
        let keeper = Keeper {
            bus: self.bus.clone(),
            feed: self.feed.clone(),
            editor: self.editor.clone(),
            file,
            writes: role.keeps_resources(),
            check,
        };
        self.tasks.spawn(stop.clone().run_until_cancelled_owned(keeper.run()));
    }

    fn watch_bus(&self, importance: Importance, stop: &CancellationToken) {
        let check = self.readiness.check("bus", importance);
        let bus = self.bus.clone();
        let watch = async move {
            let mut connected = bus.connected();
            loop {
                match *connected.borrow_and_update() {
                    true => check.ok(),
                    false => check.fail(bus.problem().unwrap_or_else(|| "not connected".into())),
                }
                // The reason may become clearer while it stays disconnected.
                let _ = timeout(Duration::from_secs(2), connected.changed()).await;
            }
        };
        self.tasks.spawn(stop.clone().run_until_cancelled_owned(watch));
    }

    fn watch_store(&self, importance: Importance, probed: bool, stop: &CancellationToken) {
        let check = self.readiness.check("store", importance);
        match probed {
            true => check.ok(),
            false => check.fail("the store does not answer yet"),
        }
        let (store, identity) = (self.store.clone(), self.identity.clone());
        let watching = async move {
            if !probed {
                probe_until_it_answers(&store, &check, &identity).await;
            }
            ask_for_ever(&store, &check, ASK_AGAIN).await;
        };
        self.tasks.spawn(stop.clone().run_until_cancelled_owned(watching));
    }
}

/// Reads and checks a configuration file.
fn read_resources(file: &Path) -> Result<Resources, BootError> {
    let unreadable = |cause| BootError::ConfigFile { file: file.to_owned(), cause };
    let text = fs::read_to_string(file).map_err(unreadable)?;
    let absolute = std::path::absolute(file).map_err(unreadable)?;
    let base = absolute.parent().unwrap_or(Path::new("/"));
    let checked = Resources::from_toml(&text, base).and_then(Table::compile);
    let table =
        checked.map_err(|problems| BootError::Config { file: file.to_owned(), problems })?;
    Ok(table.resources().clone())
}

fn store_url(url: &str) -> Result<StoreUrl, BootError> {
    url.parse().map_err(|why: InvalidStoreUrl| {
        let cause = Box::new(StoreError::Refused { reason: why.to_string() });
        BootError::Store { url: url.to_owned(), cause }
    })
}

/// The store, and whether it has proved that it can compare and set, and told whose it is.
async fn open_store(settings: &Settings, identity: &Identity) -> Result<(Store, bool), BootError> {
    let url = settings.store_url();
    let failed = |cause| BootError::Store { url: url.clone(), cause: Box::new(cause) };
    let public_endpoint = settings.s3_public_endpoint.clone();
    let config = StoreConfig { public_endpoint, ..StoreConfig::from_env(store_url(&url)?) };
    let store = Store::open(&config).map_err(failed)?;
    match timeout(PROBE_LIMIT, store.probe()).await {
        Ok(Ok(id)) => {
            identity.learn(id);
            Ok((store, true))
        }
        Ok(Err(error)) if error.retry() == Retry::Never => Err(failed(error)),
        Ok(Err(error)) => {
            tracing::warn!(url, %error, "the store does not answer, going on without it for now");
            Ok((store, false))
        }
        Err(_) => {
            tracing::warn!(url, "the store does not answer, going on without it for now");
            Ok((store, false))
        }
    }
}

async fn probe_until_it_answers(store: &Store, check: &Check, identity: &Identity) {
    for attempt in 1.. {
        tokio::time::sleep(PROBE_AGAIN.delay(attempt)).await;
        match timeout(PROBE_LIMIT, store.probe()).await {
            Ok(Ok(id)) => {
                identity.learn(id);
                return check.ok();
            }
            Ok(Err(error)) => check.fail(error.to_string()),
            Err(_) => check.fail(format!("no answer within {PROBE_LIMIT:?}")),
        }
    }
}

/// Asks the store, every `pause`, whether it has something that is never there: one request that
/// writes nothing. What the probe proved need not be proved again.
async fn ask_for_ever(store: &Store, check: &Check, pause: Duration) {
    let absent = format!("sha256:{:064}", 0).parse().expect("64 zeros are a digest");
    loop {
        tokio::time::sleep(pause).await;
        match timeout(ANSWER_LIMIT, store.blob_size(&absent)).await {
            Ok(Ok(_)) => check.ok(),
            Ok(Err(error)) => check.fail(error.to_string()),
            Err(_) => check.fail(format!("no answer within {ANSWER_LIMIT:?}")),
        }
    }
}

/// The address without what may be a password.
fn redacted(url: &str) -> String {
    let servers = url.split(',').map(|server| match server.rsplit_once('@') {
        Some((_, host)) => format!("…@{host}"),
        None => server.trim().to_owned(),
    });
    servers.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{Router, http::StatusCode};
    use hydrant_store::S3Settings;
    use hydrant_testkit::until;
    use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
    use tokio::net::TcpListener;

    #[test]
    fn passwords_stay_out_of_errors() {
        assert_eq!(redacted("nats://u:p@a:1, tls://b:2"), "…@a:1,tls://b:2");
    }

    #[tokio::test]
    async fn the_check_of_the_store_turns_with_the_store_and_returns() {
        let status = Arc::new(AtomicU16::new(404));
        let answers = status.clone();
        let answer = async move || StatusCode::from_u16(answers.load(Relaxed)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(axum::serve(listener, Router::new().fallback(answer)).into_future());
        let s3 = S3Settings::from_vars([
            ("AWS_ENDPOINT_URL", &*endpoint),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "key"),
        ]);
        let url = "s3://cache".parse().unwrap();
        let store = Store::open(&StoreConfig { url, s3, public_endpoint: None }).unwrap();
        let readiness = Readiness::default();
        let check = readiness.check("store", Importance::Required);
        let pause = Duration::from_millis(10);
        tokio::spawn(async move { ask_for_ever(&store, &check, pause).await });
        for (code, ready) in [(404, true), (403, false), (404, true)] {
            status.store(code, Relaxed);
            until("the check", PROBE_LIMIT, async || (readiness.is_ready() == ready).then_some(()))
                .await;
        }
    }

    #[test]
    fn an_invalid_file_is_refused_by_name_with_key_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hydrant.toml");
        fs::write(&file, "[[upstream]]\nname = 'lab'\nendpont = 'https://lab.example'\n").unwrap();
        let error = read_resources(&file).unwrap_err().to_string();
        for part in ["hydrant.toml", "endpont", "line 3"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
