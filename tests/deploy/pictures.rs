//! The pictures of the dashboards in the docs: six minutes of a small fleet in which one thing after the
//! other goes wrong, drawn by `docs/pictures/draw.py`. Not one of the tests: it takes its time, and
//! Chromium and pngquant.
//!
//! `cargo test -p hydrant-it --test deploy -- --ignored pictures`

use crate::tools::{run_in, tool};
use hydrant_testkit::{
    FakeUpstream, Fault, Hydrant, HydrantOptions, Image, ImageBuilder, NatsServer, PortLease,
    Process, Reply, WebhookSink, binaries::workspace_root, until,
};
use std::{
    fs,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tempfile::TempDir;
use tokio::{
    sync::RwLock,
    time::{Instant, sleep, sleep_until},
};

const SOON: Duration = Duration::from_secs(60);
const SECRET: &str = "whsec_aHlkcmFudC1sYWItc2VjcmV0LTMyLWJ5dGVzLWxvbmc=";
const LAST: Duration = Duration::from_secs(360);

struct Fleet {
    hub: FakeUpstream,
    lab: FakeUpstream,
    sink: WebhookSink,
    nats: NatsServer,
    directory: TempDir,
    config: String,
    frontends: Vec<Hydrant>,
    importers: Vec<Hydrant>,
    others: Vec<Hydrant>,
}

impl Fleet {
    async fn start() -> Self {
        let (hub, lab) = (FakeUpstream::start().await, FakeUpstream::start().await);
        let (sink, nats) = (WebhookSink::start().await, NatsServer::start().await);
        let mut config = String::new();
        for (name, upstream) in [("hub", &hub), ("lab", &lab)] {
            config += &format!(
                "[[upstream]]\nname='{name}'\nendpoint='{}'\nallow_private=true\nconcurrency=8\n\
                 [[rule]]\nname='{name}'\ndownstream='{name}/*'\nupstream='{name}'\nfresh_for='5s'\n",
                upstream.url()
            );
        }
        config += &format!(
            "[[webhook]]\nname='ci'\nurl='{}'\nallow_private=true\nsecret={{env='HOOK_SECRET'}}\n",
            sink.url()
        );
        let directory = tempfile::tempdir().unwrap();
        let mut fleet = Self {
            hub,
            lab,
            sink,
            nats,
            directory,
            config,
            frontends: Vec::new(),
            importers: Vec::new(),
            others: Vec::new(),
        };
        fleet.others.push(fleet.role("control").start().await);
        for _ in 0..2 {
            fleet.frontends.push(fleet.role("frontend").start().await);
        }
        for _ in 0..2 {
            fleet.importers.push(fleet.role("importer").start().await);
        }
        fleet.others.push(fleet.role("notifier").start().await);
        fleet
    }

    fn role(&self, role: &str) -> HydrantOptions {
        let store = self.directory.path().join("store");
        let options = Hydrant::role(role).config(&self.config).env("HOOK_SECRET", SECRET);
        options.nats(&self.nats.url()).store(&store.to_string_lossy())
    }

    /// Starts a Prometheus and returns where it is.
    fn watched(&self, lease: &PortLease) -> (Process, String) {
        let mut scrape =
            "global: {scrape_interval: 2s}\nscrape_configs:\n  - job_name: hydrant\n    \
                          static_configs:\n"
                .to_owned();
        let named = |role: &str, of: &[Hydrant]| -> String {
            let one = |(index, hydrant): (usize, &Hydrant)| {
                let address = hydrant.admin_url().trim_start_matches("http://").to_owned();
                let labels = format!("namespace: hydrant, role: {role}, instance: {role}-{index}");
                format!("      - {{targets: ['{address}'], labels: {{{labels}}}}}\n")
            };
            of.iter().enumerate().map(one).collect()
        };
        scrape += &named("frontend", &self.frontends);
        scrape += &named("importer", &self.importers);
        scrape += &named("control", &self.others[..1]);
        scrape += &named("notifier", &self.others[1..]);
        fs::write(self.directory.path().join("prometheus.yml"), scrape).unwrap();
        let program = tool("prometheus", "the pictures").expect("cargo xtask setup");
        let mut prometheus = Process::new("prometheus", program, self.directory.path());
        prometheus.args(["--config.file=prometheus.yml", "--storage.tsdb.path=figures"]);
        let address = format!("127.0.0.1:{}", lease.port());
        prometheus.arg(format!("--web.listen-address={address}")).spawn();
        (prometheus, format!("http://{address}"))
    }
}

/// What clients know, and whom they ask.
struct Clients {
    frontends: Vec<String>,
    known: RwLock<Vec<(String, Image)>>,
}

impl Clients {
    async fn pull(&self, turn: usize, name: &str, image: &Image) {
        let base = format!("{}/v2/{name}", self.frontends[turn % self.frontends.len()]);
        let (repository, tag) = base.rsplit_once(':').expect("a name with a tag");
        let manifest = format!("{repository}/manifests/{tag}");
        let blobs = image.all_blobs().into_iter();
        let blobs = blobs.map(|blob| format!("{repository}/blobs/{}", blob.digest));
        for url in std::iter::once(manifest).chain(blobs) {
            if let Ok(answer) = reqwest::get(url).await {
                // What fails is a figure as well.
                let _ = answer.bytes().await;
            }
        }
    }
}

/// New images now and then, and all the time those that are known.
async fn traffic(fleet: Arc<Fleet>, clients: Arc<Clients>) {
    let began = Instant::now();
    let mut turn = 0_usize;
    while began.elapsed() < LAST {
        turn += 1;
        if turn.is_multiple_of(6) {
            let (name, upstream) =
                if turn.is_multiple_of(12) { ("hub", &fleet.hub) } else { ("lab", &fleet.lab) };
            let image = ImageBuilder::new(turn as u64).layers(&[400_000, 1_500_000]).build();
            upstream.insert(&image, "app", &turn.to_string());
            let name = format!("{name}/app:{turn}");
            // Two clients at once, so that one joins the other.
            for client in 0..2 {
                let (clients, name, image) = (clients.clone(), name.clone(), image.clone());
                tokio::spawn(async move { clients.pull(turn + client, &name, &image).await });
            }
            clients.known.write().await.push((name, image));
        }
        let known = clients.known.read().await;
        if let Some((name, image)) = known.get(turn * 7 % known.len().max(1)).cloned() {
            let clients = clients.clone();
            tokio::spawn(async move { clients.pull(turn, &name, &image).await });
        }
        drop(known);
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "draws pictures: six minutes and Chromium"]
async fn pictures_are_drawn() {
    let chromium = tool("chromium", "the pictures").expect("apt-get install chromium");
    assert!(chromium.is_file());
    let mut fleet = Fleet::start().await;
    let lease = PortLease::take();
    let (_prometheus, url) = fleet.watched(&lease);
    let importers = std::mem::take(&mut fleet.importers);
    let fleet = Arc::new(fleet);
    let clients = Arc::new(Clients {
        frontends: fleet.frontends.iter().map(Hydrant::url).collect(),
        known: RwLock::default(),
    });
    let load = tokio::spawn(traffic(fleet.clone(), clients));
    let (began, started) = (Instant::now(), SystemTime::now());
    trouble(&fleet, importers, began).await;
    load.await.unwrap();
    let start = started.duration_since(UNIX_EPOCH).unwrap().as_secs();
    let names = [start, start + LAST.as_secs()].map(|time| time.to_string());
    let draw = workspace_root().join("docs/pictures/draw.py");
    let python = tool("python3", "the pictures").expect("python3");
    let args = [draw.to_string_lossy().into_owned(), url].into_iter().chain(names);
    let drawn = run_in(fleet.directory.path(), &python, args).await.success();
    println!("{}", drawn.text());
}

/// One thing after the other; minutes and seconds from the beginning are in the comments.
async fn trouble(fleet: &Fleet, mut importers: Vec<Hydrant>, began: Instant) {
    let at = async |minute: u64, second: u64| {
        sleep_until(began + Duration::from_secs(60 * minute + second)).await;
    };
    let control = &fleet.others[0];
    let quota = |left: u64| {
        let fault = Fault::none().header("ratelimit-limit", "100;w=21600");
        fault.header("ratelimit-remaining", &format!("{left};w=21600"))
    };
    for upstream in [&fleet.hub, &fleet.lab] {
        // So that there is time to join what is under way.
        upstream.inject("*/blobs/*", Fault::slow(2_000_000));
    }
    let mut told = fleet.hub.inject("*/manifests/*", quota(90));
    // 0:40 to 1:40: the webhook's endpoint fails.
    at(0, 40).await;
    fleet.sink.usually(Reply::status(500));
    // 1:00 to 1:45: the hub hangs, then fails.
    at(1, 0).await;
    let hangs = fleet.hub.inject("*", Fault::status(503).and(Fault::delay(Duration::from_secs(2))));
    at(1, 40).await;
    fleet.sink.usually(Reply::status(200));
    at(1, 45).await;
    hangs.remove();
    // 2:15 to 2:40: the lab is too busy now and then, and fails now and then.
    at(2, 15).await;
    for _ in 0..5 {
        let busy = fleet.lab.inject("*", Fault::status(429).header("retry-after", "1").times(1));
        let fails = fleet.lab.inject("*/blobs/*", Fault::status(500).times(1));
        sleep(Duration::from_secs(5)).await;
        busy.remove();
        fails.remove();
    }
    // 2:50 to 3:50: no importer, and the hub's quota goes down.
    for importer in &mut importers {
        importer.terminate().await;
    }
    for left in [70, 50, 30, 12] {
        told.remove();
        told = fleet.hub.inject("*/manifests/*", quota(left));
        sleep(Duration::from_secs(15)).await;
    }
    for importer in &mut importers {
        importer.restart().await;
    }
    // 4:10 to 4:40: what is asked for is not there.
    at(4, 10).await;
    for missing in 0..6 {
        let image = format!("lab/gone:{missing}");
        control.command(["hydrate", &image]).await.success();
        sleep(Duration::from_secs(5)).await;
    }
    told.remove();
    fleet.hub.inject("*/manifests/*", quota(95));
    until("the backlog is done", 2 * SOON, async || {
        let depth = control.metric("hydrant_hydration_queue_depth", &[]).await;
        (depth == 0.0).then_some(())
    })
    .await;
    sleep_until(began + LAST).await;
}
