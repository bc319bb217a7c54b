//! Several processes are to an upstream as one that minds its manners.

use crate::lab::{SOON, config, hydrated, nothing_pending, role};
use futures::{StreamExt, future::join_all, stream};
use hydrant_testkit::{FakeUpstream, Fault, Hydrant, ImageBuilder, NatsServer, until};
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Three frontends, as many importers and a control, on one bus and one store.
struct Cluster {
    upstream: FakeUpstream,
    nats: NatsServer,
    frontends: Vec<Hydrant>,
    importers: Vec<Hydrant>,
    control: Hydrant,
    client: reqwest::Client,
    images: AtomicU64,
    _store: tempfile::TempDir,
}

impl Cluster {
    /// All have asked the upstream and know of each other. `extra` are fields of the upstream.
    async fn start(extra: &str) -> Self {
        let (upstream, nats) = (FakeUpstream::start().await, NatsServer::start().await);
        let store = tempfile::tempdir().unwrap();
        let config = config(&upstream.url()).replacen(
            "allow_private",
            &format!("{extra}\nallow_private"),
            1,
        );
        let (url, directory) = (nats.url(), store.path().to_str().unwrap().to_owned());
        let start = |name| role(name, &config).nats(&url).store(&directory).start();
        let roles =
            ["frontend", "frontend", "frontend", "importer", "importer", "importer", "control"];
        let mut started = join_all(roles.map(start)).await;
        let control = started.pop().unwrap();
        let importers = started.split_off(3);
        let cluster = Self {
            upstream,
            nats,
            frontends: started,
            importers,
            control,
            client: reqwest::Client::new(),
            images: AtomicU64::new(0),
            _store: store,
        };
        cluster.meet().await;
        cluster
    }

    /// Every frontend pulls, and importers work, until all are known to the control.
    async fn meet(&self) {
        until("all to know of all", SOON, async || {
            for n in 0..3 {
                let name = self.image();
                assert_eq!(self.pull(n, &name).await.status(), 200);
                self.hydrate(&self.image()).await;
            }
            let known = self.standing().await["processes"].as_u64();
            (known == Some(6)).then_some(())
        })
        .await;
        nothing_pending(&self.nats.url()).await;
        self.upstream.forget_requests();
    }

    /// A repository nobody has asked for, with an image as its tag 1.
    fn image(&self) -> String {
        let n = self.images.fetch_add(1, Ordering::SeqCst);
        let image = ImageBuilder::new(n).layers(&[1_000]).build();
        self.upstream.insert(&image, &format!("app-{n}"), "1");
        format!("app-{n}")
    }

    async fn pull(&self, frontend: usize, name: &str) -> Response {
        self.ask(frontend, Method::GET, &format!("lab/{name}/manifests/1")).await
    }

    async fn ask(&self, frontend: usize, method: Method, path: &str) -> Response {
        let url = format!("{}/v2/{path}", self.frontends[frontend % 3].url());
        let accept = "application/vnd.oci.image.manifest.v1+json";
        let request = self.client.request(method, url).header("accept", accept);
        request.send().await.expect("hydrant answers")
    }

    async fn hydrate(&self, name: &str) {
        self.control.command(["hydrate", &format!("lab/{name}:1")]).await.success();
    }

    async fn standing(&self) -> Value {
        self.control.api("/api/v1/upstreams/lab/status").await.1
    }

    /// How many of the six processes keep away from the upstream.
    async fn open(&self) -> usize {
        let all = self.frontends.iter().chain(&self.importers);
        let states =
            all.map(|one| one.metric("hydrant_upstream_breaker_state", &[("upstream", "lab")]));
        join_all(states).await.into_iter().filter(|state| *state == 2.0).count()
    }

    /// Pulls of new and of known images, so many a second over all frontends, for so long. What
    /// was answered, by status and class.
    async fn load(&self, a_second: u64, seconds: u64, warm: &str) -> BTreeMap<String, usize> {
        let (began, gap) = (Instant::now(), Duration::from_millis(1_000 / a_second));
        let pulls = (0..a_second * seconds).map(|n| async move {
            let at = began + gap * u32::try_from(n).unwrap();
            tokio::time::sleep_until(at.into()).await;
            let name = if n % 2 == 0 { self.image() } else { warm.to_owned() };
            let answer = self.pull(n as usize / 2, &name).await;
            let (status, headers) = (answer.status(), answer.headers());
            if status == StatusCode::SERVICE_UNAVAILABLE {
                assert!(headers.contains_key("retry-after"), "{headers:?}");
            }
            if name == warm {
                "warm".to_owned() + status.as_str()
            } else {
                status.as_str().to_owned()
            }
        });
        let mut counts = BTreeMap::new();
        for told in join_all(pulls).await {
            *counts.entry(told).or_default() += 1;
        }
        counts
    }
}

impl Cluster {
    /// An upstream that fails every other half second is asked little, and asked again once well.
    /// The half seconds are the fault itself, as the rhythm of `load` is the load.
    async fn flaps(&self, warm: &str) {
        self.upstream.forget_requests();
        let flapping = async {
            loop {
                self.upstream.inject("*", Fault::status(503));
                tokio::time::sleep(Duration::from_millis(500)).await;
                self.upstream.heal();
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        let told = tokio::select! {
            told = self.load(20, 5, warm) => told,
            () = flapping => unreachable!("it flaps for ever"),
        };
        self.upstream.heal();
        assert_eq!(told.get("warm200"), Some(&50), "{told:?}");
        let failed = self.upstream.requests().iter().filter(|r| r.status == Some(503)).count();
        assert!((1..=14).contains(&failed), "{failed} requests failed in 5 s");
        until("the upstream to be asked again", SOON, async || {
            (self.pull(0, &self.image()).await.status() == 200).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_opens_within_ten_failures_and_sends_one_probe_at_a_time() {
    let cluster = Cluster::start("").await;
    let warm = cluster.image();
    assert_eq!(cluster.pull(0, &warm).await.status(), 200);
    hydrated(&cluster.control, &format!("lab/{warm}:1")).await;
    cluster.upstream.forget_requests();
    let down = Fault::status(503).and(Fault::delay(Duration::from_millis(30)));
    cluster.upstream.inject("*", down);
    for n in 0..40 {
        let answer = cluster.pull(n, &cluster.image()).await;
        assert!(matches!(answer.status().as_u16(), 502 | 503), "{answer:?}");
    }
    until("all six to be open", SOON, async || (cluster.open().await == 6).then_some(())).await;
    let asked = cluster.upstream.requests().len();
    assert!((5..=10).contains(&asked), "{asked} requests before all were open");

    cluster.upstream.forget_requests();
    let told = cluster.load(20, 7, &warm).await;
    assert_eq!(told.get("warm200"), Some(&70), "{told:?}");
    assert_eq!(told.keys().filter(|key| !matches!(&key[..], "503" | "502" | "warm200")).count(), 0);
    let probes = cluster.upstream.requests().len();
    assert!((1..=3).contains(&probes), "{probes} probes in 7 s");
    assert_eq!(cluster.upstream.peak("*", "*"), 1);

    let job = cluster.image();
    cluster.hydrate(&job).await;
    cluster.upstream.heal();
    hydrated(&cluster.control, &format!("lab/{job}:1")).await;
    until("all to be closed", SOON, async || (cluster.open().await == 0).then_some(())).await;
    let events = cluster.control.command(["events", "--since", "1h", "-o", "json"]).await;
    let events = String::from_utf8_lossy(&events.success().stdout).into_owned();
    assert!(!events.contains("hydration.failed"), "an attempt was burned: {events}");
    for kind in ["upstream.breaker.opened", "upstream.breaker.closed"] {
        assert!(events.contains(kind), "no {kind}: {events}");
    }

    // A limit that one is told keeps all away for as long as it says.
    cluster.upstream.forget_requests();
    cluster.upstream.inject("*", Fault::status(429).header("retry-after", "3").times(1));
    assert_eq!(cluster.pull(0, &cluster.image()).await.status(), 429);
    until("all to have heard", SOON, async || (cluster.open().await == 6).then_some(())).await;
    let answers = join_all((0..30).map(|n| cluster.pull(n, "app-new"))).await;
    assert!(answers.iter().all(|answer| answer.status() == 503));
    assert_eq!(cluster.upstream.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_a_quota_is_kept_for_clients() {
    let cluster = Cluster::start("quota_reserve = 50").await;
    let low = Fault::none()
        .header("ratelimit-limit", "10")
        .header("ratelimit-remaining", "4")
        .header("ratelimit-reset", "6");
    let low = cluster.upstream.inject("*/manifests/*", low);
    assert_eq!(cluster.pull(0, &cluster.image()).await.status(), 200);
    until("the control to know", SOON, async || {
        let quota = &cluster.standing().await["quota"];
        (quota["remaining"] == 4 && quota["limit"] == 10).then_some(())
    })
    .await;
    let jobs = [cluster.image(), cluster.image(), cluster.image()];
    for job in &jobs {
        cluster.hydrate(job).await;
    }
    let waiting = |name: String| {
        let cluster = &cluster;
        async move {
            let status = cluster.control.api(&format!("/api/v1/status?image=lab/{name}:1")).await.1;
            status["hydration"]["phase"] == "waiting"
        }
    };
    until("the jobs to wait", SOON, async || {
        let all = join_all(jobs.iter().map(|job| waiting(job.clone()))).await;
        all.into_iter().all(|waits| waits).then_some(())
    })
    .await;
    for job in &jobs {
        assert_eq!(cluster.upstream.count("*", &format!("*/{job}/*")), 0, "{job} did not wait");
    }
    for n in 0..3 {
        assert_eq!(cluster.pull(n, &cluster.image()).await.status(), 200, "clients go on");
    }
    let shown = cluster.control.command(["upstream", "status", "lab"]).await;
    let shown = String::from_utf8(shown.success().stdout.clone()).unwrap();
    assert!(shown.contains("of 10 left"), "{shown}");
    let left = cluster.frontends[0].metric("hydrant_upstream_quota_remaining", &[]).await;
    assert!((1.0..=4.0).contains(&left), "{left}");
    low.remove();
    for job in &jobs {
        hydrated(&cluster.control, &format!("lab/{job}:1")).await;
    }
    let events = cluster.control.command(["events", "--since", "1h", "-o", "json"]).await;
    let events = String::from_utf8_lossy(&events.success().stdout).into_owned();
    assert!(events.contains("quota.low"), "{events}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_unknown_names_are_a_few_hundred_requests() {
    let cluster = Cluster::start("").await;
    let (known, began) = (cluster.image(), Instant::now());
    assert_eq!(cluster.pull(0, &known).await.status(), 200);
    cluster.upstream.forget_requests();
    let cluster = &cluster;
    let ask = |n: usize| async move {
        let digest = hydrant_proto::Digest::of(n.to_string().as_bytes());
        let (method, path) = match n % 4 {
            0 => (Method::GET, format!("lab/ghost-{n}/manifests/1")),
            1 => (Method::HEAD, format!("lab/ghost-{n}/manifests/1")),
            2 => (Method::GET, format!("lab/ghost-{n}/blobs/{digest}")),
            _ => (Method::GET, format!("lab/app-0/manifests/t{n}")),
        };
        let answer = cluster.ask(n, method, &path).await;
        match answer.status().as_u16() {
            404 => 1,
            // Or busy: a HEAD waits for its turn no longer than two seconds.
            429 | 503 => {
                let headers = answer.headers();
                assert!(headers.contains_key("retry-after"), "{headers:?}");
                0
            }
            other => panic!("{path}: {other}"),
        }
    };
    // Slow enough that all who may ask at once do.
    cluster.upstream.inject("*", Fault::delay(Duration::from_millis(500)));
    let missing: usize = stream::iter(0..10_000)
        .map(ask)
        .buffer_unordered(2_000)
        .fold(0, async |sum, n| sum + n)
        .await;
    cluster.upstream.heal();
    // What all processes have together, however many names are under way.
    let most = 200 + 5 * (1 + began.elapsed().as_secs() as usize);
    let asked = cluster.upstream.requests().len();
    assert!(asked <= most, "{asked} requests, {most} allowed");
    assert!(missing > 0 && missing <= asked, "{missing} were told to be missing, {asked} asked");
    // Who is known is not turned away, and neither are repositories that nobody abused.
    assert_eq!(cluster.pull(0, &known).await.status(), 200);
    let image = ImageBuilder::new(77_777).layers(&[1_000]).build();
    cluster.upstream.insert(&image, &known, "2");
    // What all names share is used up.
    let fresh = format!("lab/{known}/manifests/2");
    until("room for a name that nobody knows yet", SOON, async || {
        (cluster.ask(0, Method::GET, &fresh).await.status() == 200).then_some(())
    })
    .await;
    let layer = format!("lab/{known}/blobs/{}", image.blobs[1].digest);
    assert_eq!(cluster.ask(0, Method::GET, &layer).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_brownout_costs_the_upstream_little_and_loses_nothing() {
    const SECONDS: u64 = 5;
    let cluster = Cluster::start("timeout = \"1s\"").await;
    let warm = cluster.image();
    assert_eq!(cluster.pull(0, &warm).await.status(), 200);
    hydrated(&cluster.control, &format!("lab/{warm}:1")).await;
    let mut jobs = Vec::new();
    let limited = Fault::status(429).header("retry-after", "1");
    // What is under way when a black hole begins cannot be called back: a second of it, and once
    // more each that had been asked for before.
    cluster.flaps(&warm).await;
    for (fault, most) in
        [(Fault::status(500), 14), (limited, 14), (Fault::black_hole(), 14 + 2 * 20)]
    {
        cluster.upstream.forget_requests();
        cluster.upstream.inject("*", fault.clone());
        jobs.push(cluster.image());
        cluster.hydrate(&jobs[jobs.len() - 1]).await;
        let told = cluster.load(20, SECONDS, &warm).await;
        assert_eq!(told.get("warm200"), Some(&50), "{fault:?}: {told:?}");
        let asked = cluster.upstream.requests().len();
        assert!(asked <= most, "{fault:?}: {asked} requests in {SECONDS} s");
        cluster.upstream.heal();
        until("the upstream to be asked again", SOON, async || {
            (cluster.pull(0, &cluster.image()).await.status() == 200).then_some(())
        })
        .await;
    }
    for job in jobs {
        hydrated(&cluster.control, &format!("lab/{job}:1")).await;
    }
    nothing_pending(&cluster.nats.url()).await;
    let letters = cluster.control.api("/api/v1/dead-letters").await.1;
    assert_eq!(letters.to_string().matches("\"reason\"").count(), 0, "{letters}");
}
