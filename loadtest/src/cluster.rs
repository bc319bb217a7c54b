//! hydrant as it is measured: processes on this machine in any number, or a deployment that runs
//! already and is reached by its URLs.

use crate::{pull::Source, usage::Watched};
use anyhow::{Context, Result, bail, ensure};
use hydrant_testkit::{
    Hydrant, HydrantOptions, NatsOptions, NatsServer, PortLease, SeaweedFs, WebhookSink,
};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use std::{env, sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// Downstream paths of the harness's rule: `load/<repository>`.
const PREFIX: &str = "load/";
/// The upstream it leads to.
const UPSTREAM: &str = "load";
/// Standard Webhooks secret of the harness's webhook.
const SECRET: &str = "whsec_aHlkcmFudC1sYWItc2VjcmV0LTMyLWJ5dGVzLWxvbmc=";
const ASK_LIMIT: Duration = Duration::from_secs(30);

/// Where content lies.
#[derive(Clone, Debug)]
pub enum Place {
    Directory,
    /// Below a prefix of its own.
    S3(Arc<SeaweedFs>),
}

/// Whether what is sent to S3 is hashed for the signature of its request. hydrant does that unless
/// the connection is TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bodies {
    Signed,
    /// As over TLS.
    Unsigned,
}

/// Which nats-server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusKind {
    /// Every write synced before it is answered.
    Synced,
    /// The server's own default: flushed every two minutes.
    Default,
}

/// Which processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `hydrant up`: everything in one process, with the nats-server it starts itself.
    One,
    /// `hydrant up` over a bus that tells how many messages it sees.
    OneOver(BusKind),
    /// A process for each role, over one bus.
    Roles { frontends: usize, importers: usize, bus: BusKind },
}

/// What a cluster is started as.
pub struct Shape<'a> {
    pub layout: Layout,
    pub place: Place,
    /// Of requests to S3.
    pub bodies: Bodies,
    /// URLs of the upstreams: the first is behind `load/*`, the second behind `other/*`.
    pub upstreams: Vec<String>,
    /// Told of every image that is hydrated.
    pub webhook: Option<&'a WebhookSink>,
    /// Further flags of each process that has them.
    pub importing: Vec<String>,
    /// How stored blobs are delivered: `stream` or `redirect`.
    pub delivery: &'static str,
    /// Further lines of each upstream.
    pub asking: &'static str,
}

impl Shape<'_> {
    /// `hydrant up` with a directory.
    pub fn one(upstream: &str) -> Self {
        Self {
            layout: Layout::One,
            place: Place::Directory,
            bodies: Bodies::Signed,
            upstreams: vec![upstream.to_owned()],
            webhook: None,
            importing: Vec::new(),
            delivery: "stream",
            asking: "",
        }
    }

    pub fn roles(upstream: &str, frontends: usize, importers: usize, bus: BusKind) -> Self {
        Self { layout: Layout::Roles { frontends, importers, bus }, ..Self::one(upstream) }
    }

    fn config(&self) -> String {
        let names = ["load", "other"].into_iter().zip(&self.upstreams);
        let mut text: String = names.map(|(name, url)| self.rule(name, url)).collect();
        if let Some(sink) = self.webhook {
            text += &format!(
                "[[webhook]]\nname = \"load\"\nurl = \"{}\"\nallow_private = true\n\
                 secret = {{ env = \"HOOK_SECRET\" }}\nevents = [\"image.hydrated\"]\n",
                sink.url()
            );
        }
        text
    }

    fn rule(&self, name: &str, url: &str) -> String {
        let Self { delivery, asking, .. } = self;
        format!(
            "[[upstream]]\nname = \"{name}\"\nendpoint = \"{url}\"\nallow_private = true\n\
             {asking}\n\
             [[rule]]\nname = \"{name}\"\ndownstream = \"{name}/*\"\nupstream = \"{name}\"\n\
             fresh_for = \"1h\"\ndelivery = \"{delivery}\"\n"
        )
    }
}

/// Processes of hydrant that belong together; gone when dropped.
pub struct Cluster {
    /// `up`, or the frontends.
    pub frontends: Vec<Hydrant>,
    pub importers: Vec<Hydrant>,
    others: Vec<Hydrant>,
    pub nats: Option<NatsServer>,
    /// Where the bus tells of itself.
    monitor: Option<PortLease>,
    api: Api,
    pub directory: TempDir,
    /// For the store of this cluster in `place`.
    place: Place,
    /// The processes of hydrant and the bus, in the order of [`Cluster::pids`].
    watched: Vec<Watched>,
}

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    Frontend(usize),
    Importer(usize),
    Bus,
}

impl Cluster {
    pub async fn start(shape: &Shape<'_>) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hydrant-load-").tempdir()?;
        let options = |role: &str| {
            let options = Hydrant::role(role).config(&shape.config()).env("HOOK_SECRET", SECRET);
            match &shape.place {
                Place::Directory => {
                    options.store(&directory.path().join("store").to_string_lossy())
                }
                Place::S3(s3) => {
                    let unsigned = (shape.bodies == Bodies::Unsigned).to_string();
                    options.s3(s3, &prefix(&directory)).env("AWS_UNSIGNED_PAYLOAD", &unsigned)
                }
            }
        };
        let importing =
            |options: HydrantOptions| options.args(shape.importing.iter().map(String::as_str));
        let (mut frontends, mut importers, mut others) = (Vec::new(), Vec::new(), Vec::new());
        let (mut nats, mut monitor) = (None, None);
        match shape.layout {
            Layout::One => frontends.push(importing(options("up")).start().await),
            Layout::OneOver(bus) => {
                let port = PortLease::take();
                let server = start_nats(bus, &port).await;
                frontends.push(importing(options("up")).nats(&server.url()).start().await);
                (nats, monitor) = (Some(server), Some(port));
            }
            Layout::Roles { frontends: front, importers: back, bus } => {
                let port = PortLease::take();
                let server = start_nats(bus, &port).await;
                let role = |role: &str| options(role).nats(&server.url());
                // Control first: it writes the rules for all.
                others.push(role("control").start().await);
                for _ in 0..front {
                    frontends.push(role("frontend").start().await);
                }
                for _ in 0..back {
                    importers.push(importing(role("importer")).start().await);
                }
                if shape.webhook.is_some() {
                    others.push(role("notifier").start().await);
                }
                (nats, monitor) = (Some(server), Some(port));
            }
        }
        let admin = others.first().or(frontends.first()).map(Hydrant::admin_url);
        let api = Api::new(&admin.context("a cluster has a process")?, None);
        let place = shape.place.clone();
        let watched = watch(&frontends, &importers, &others, nats.as_ref());
        Ok(Self { frontends, importers, others, nats, monitor, api, directory, place, watched })
    }

    /// Kills a process with SIGKILL and starts it again; who watches it goes on with the new one.
    pub async fn restart(&mut self, victim: Victim) {
        match victim {
            Victim::Frontend(n) => self.frontends[n].restart().await,
            Victim::Importer(n) => self.importers[n].restart().await,
            Victim::Bus => {
                if let Some(nats) = &mut self.nats {
                    nats.restart().await;
                }
            }
        }
        for (watched, pid) in self.watched.iter().zip(self.pids()) {
            watched.is_now(pid);
        }
    }

    fn pids(&self) -> Vec<u32> {
        let hydrants = self.frontends.iter().chain(&self.importers).chain(&self.others);
        hydrants.map(Hydrant::pid).chain(self.nats.iter().map(NatsServer::pid)).collect()
    }

    pub fn sources(&self) -> Vec<Source> {
        let source =
            |hydrant: &Hydrant| Source { authority: hydrant.host(), prefix: PREFIX.to_owned() };
        self.frontends.iter().map(source).collect()
    }

    /// Ends all processes and leaves the directory: removing thousands of small files makes the next
    /// ones of the file system slow for minutes (see [`crate::stage::Stage::keep`]).
    pub fn end(self) -> TempDir {
        self.directory
    }

    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Every process of hydrant, and the bus.
    pub fn watched(&self) -> Vec<Watched> {
        self.watched.clone()
    }

    /// The processes of hydrant alone.
    pub fn hydrants(&self) -> Vec<Watched> {
        self.watched.iter().filter(|watched| watched.is_measured()).cloned().collect()
    }

    /// The nats-server beside them, if it is a process of the harness's own.
    pub fn bus(&self) -> Option<&Watched> {
        self.watched.iter().find(|watched| !watched.is_measured())
    }

    /// Messages the bus has received so far; `None` where it does not tell.
    pub async fn bus_messages(&self) -> Option<u64> {
        monitored(self.monitor.as_ref()?.port(), "varz").await?["in_msgs"].as_u64()
    }

    /// Messages that the bus has written into streams on disk so far; `None` where it does not tell.
    pub async fn bus_stored(&self) -> Option<u64> {
        stored(&monitored(self.monitor.as_ref()?.port(), STREAMS).await?)
    }

    /// Bytes of what is on its way: spool files below the spool directories, and those that have no
    /// name, which are seen as files that a process of hydrant holds open though they are deleted.
    pub fn scratch_bytes(&self) -> u64 {
        let all = self.frontends.iter().chain(&self.importers);
        let named: u64 = all.map(|hydrant| bytes_below(&hydrant.data().join("spool"))).sum();
        named + self.hydrants().iter().map(Watched::deleted_bytes).sum::<u64>()
    }

    /// Unfinished writes in the store.
    pub async fn unfinished_writes(&self) -> Result<u64> {
        match &self.place {
            Place::Directory => Ok(staging_below(&self.directory.path().join("store"))),
            Place::S3(s3) => Ok(s3.open_uploads().await.len() as u64),
        }
    }
}

fn watch(
    frontends: &[Hydrant],
    importers: &[Hydrant],
    others: &[Hydrant],
    nats: Option<&NatsServer>,
) -> Vec<Watched> {
    let name = |kind: &str, all: &[Hydrant]| {
        let number = |n: usize| if all.len() > 1 { format!(" {}", n + 1) } else { String::new() };
        let watched = |(n, hydrant): (usize, &Hydrant)| {
            Watched::new(&format!("{kind}{}", number(n)), hydrant.pid())
        };
        all.iter().enumerate().map(watched).collect::<Vec<_>>()
    };
    let front = if others.is_empty() { "hydrant up" } else { "frontend" };
    let bus = nats.map(|nats| Watched::new("nats-server", nats.pid()).aside());
    [
        name(front, frontends),
        name("importer", importers),
        name("control or notifier", others),
        bus.into_iter().collect(),
    ]
    .concat()
}

/// The question for all streams, what they are kept on and how far they have come.
const STREAMS: &str = "jsz?streams=true&config=true";

async fn monitored(port: u16, what: &str) -> Option<Value> {
    reqwest::get(format!("http://127.0.0.1:{port}/{what}")).await.ok()?.json().await.ok()
}

/// Numbers given by streams on disk: what was removed since was written all the same.
fn stored(told: &Value) -> Option<u64> {
    let accounts = told["account_details"].as_array()?.iter();
    let streams = accounts.flat_map(|account| account["stream_detail"].as_array()).flatten();
    let on_disk = streams.filter(|stream| stream["config"]["storage"] == "file");
    Some(on_disk.filter_map(|stream| stream["state"]["last_seq"].as_u64()).sum())
}

async fn start_nats(bus: BusKind, monitor: &PortLease) -> NatsServer {
    let options = NatsOptions::default().config(&format!("http: \"127.0.0.1:{}\"", monitor.port()));
    match bus {
        BusKind::Synced => options.durable().start().await,
        BusKind::Default => options.start().await,
    }
}

/// The store's prefix in a bucket that clusters share.
fn prefix(directory: &TempDir) -> String {
    let name = directory.path().file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn bytes_below(directory: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes_below(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

/// Files that a write in a directory store leaves until it is complete have `#` in their name.
fn staging_below(directory: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let count = |entry: std::fs::DirEntry| {
        let own = entry.file_name().to_string_lossy().contains('#');
        let below = entry.path().is_dir().then(|| staging_below(&entry.path()));
        u64::from(own) + below.unwrap_or(0)
    };
    entries.map(count).sum()
}

/// Where the most special of the rules that take all below `prefix` leads.
fn upstream_of(rules: &Value, prefix: &str) -> Option<String> {
    let fits = |rule: &&Value| {
        let downstream = rule["downstream"].as_str().and_then(|name| name.strip_suffix('*'));
        downstream.is_some_and(|downstream| prefix.starts_with(downstream))
    };
    let length = |rule: &&Value| rule["downstream"].as_str().map_or(0, str::len);
    let rule = rules["items"].as_array()?.iter().filter(fits).max_by_key(length)?;
    rule["upstream"].as_str().map(str::to_owned)
}

/// The admin API of a deployment.
#[derive(Clone, Debug)]
pub struct Api {
    base: String,
    token: Option<String>,
    client: Client,
    /// What stands before the upstream's repositories.
    pub prefix: String,
    /// Whose queue is asked for; found by the rule for `prefix` where it is not known.
    upstream: Option<String>,
}

impl Api {
    /// `prefix` is absent for clusters of this harness.
    pub fn new(base: &str, prefix: Option<&str>) -> Self {
        Self {
            base: base.trim_end_matches('/').to_owned(),
            token: env::var("HYDRANT_ADMIN_TOKEN").ok(),
            client: Client::new(),
            prefix: prefix.unwrap_or(PREFIX).to_owned(),
            upstream: prefix.is_none().then(|| UPSTREAM.to_owned()),
        }
    }

    /// The same, asking for the queue of another upstream.
    pub fn of_upstream(&self, name: &str) -> Self {
        Self { upstream: Some(name.to_owned()), ..self.clone() }
    }

    /// The same, knowing which upstream its rule leads to: a deployment may call it anything.
    pub async fn found(self) -> Result<Self> {
        let rules = self.get("/api/v1/rules").await?;
        let name = upstream_of(&rules, &self.prefix)
            .with_context(|| format!("no rule takes {}*", self.prefix))?;
        Ok(Self { upstream: Some(name), ..self })
    }

    /// The same for what lies behind another rule.
    pub fn behind(&self, prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), ..self.clone() }
    }

    /// Asks for an image of [`crate::upstream::PLATFORM`] to be made local; `name` as the upstream has it.
    pub async fn hydrate(&self, name: &str) -> Result<()> {
        let image = format!("{}{name}", self.prefix);
        let body = json!({ "image": image, "platforms": [crate::upstream::PLATFORM] });
        let request = self.client.post(format!("{}/api/v1/hydrations", self.base)).json(&body);
        let answer = self.authorised(request).send().await.context("ask for a hydration")?;
        let status = answer.status();
        ensure!(status == StatusCode::ACCEPTED, "{status}: {}", answer.text().await?);
        Ok(())
    }

    /// Waits until all that is wanted of the image is local.
    pub async fn hydrated(&self, name: &str, limit: Duration) -> Result<()> {
        let path = format!("/api/v1/status?image={}{name}", self.prefix);
        let deadline = Instant::now() + limit;
        loop {
            let status = self.get(&path).await?;
            if status["hydrated"] == true {
                return Ok(());
            }
            if !status["dead_letter"].is_null() {
                bail!("{name} was given up: {}", status["dead_letter"]["reason"]);
            }
            ensure!(Instant::now() < deadline, "{name} was not hydrated within {limit:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Jobs that wait or run.
    pub async fn queue(&self) -> Result<u64> {
        let upstream = self.upstream.as_deref().context("the upstream's name is not known")?;
        let status = self.get(&format!("/api/v1/upstreams/{upstream}/status")).await?;
        let lanes = status["queue"].as_array().context("the bus tells no queue")?;
        let jobs = |lane: &Value| {
            lane["waiting"].as_u64().unwrap_or(0) + lane["outstanding"].as_u64().unwrap_or(0)
        };
        Ok(lanes.iter().map(jobs).sum())
    }

    async fn get(&self, path: &str) -> Result<Value> {
        let request = self.client.get(format!("{}{path}", self.base)).timeout(ASK_LIMIT);
        let answer = self.authorised(request).send().await.context("ask hydrant's admin port")?;
        let status = answer.status();
        ensure!(status.is_success(), "{path} was answered {status}");
        Ok(answer.json().await?)
    }

    fn authorised(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_bus_tells_what_it_stored() {
        let port = PortLease::take();
        let nats = start_nats(BusKind::Default, &port).await;
        let before = stored(&monitored(port.port(), STREAMS).await.unwrap());
        assert_eq!(before.unwrap_or(0), 0);
        let time = Duration::from_millis(100);
        let rate = crate::raw::nats::publishes(nats.port(), time).await.unwrap();
        let after = stored(&monitored(port.port(), STREAMS).await.unwrap()).unwrap();
        assert!(after > 0 && after as f64 >= rate * 0.1 * 0.9, "{after} of {rate}/s");
    }

    #[test]
    fn the_upstream_is_that_of_the_rule_that_takes_the_prefix() {
        let rules = json!({ "items": [
            { "name": "all", "downstream": "*", "upstream": "hub" },
            { "name": "a", "downstream": "load/*", "upstream": "test-registry" },
            { "name": "b", "downstream": "loads/*", "upstream": "other" },
            { "name": "c", "downstream": "load/exact", "upstream": "exact" },
        ]});
        assert_eq!(upstream_of(&rules, "load/").as_deref(), Some("test-registry"));
        assert_eq!(upstream_of(&rules, "else/").as_deref(), Some("hub"));
        assert_eq!(upstream_of(&json!({ "items": [] }), "load/"), None);
    }
}
