//! The dashboards: every query is asked of a Prometheus that scrapes a living hydrant, and has to
//! return figures.

use crate::{
    tools::{deploy, tool},
    typed::compiled,
};
use hydrant_proto::Digest;
use hydrant_testkit::{
    FakeUpstream, Fault, Hydrant, Image, ImageBuilder, PortLease, Process, Reply, WebhookSink,
    until,
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs, time::Duration};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(60);
const SECRET: &str = "whsec_aHlkcmFudC1sYWItc2VjcmV0LTMyLWJ5dGVzLWxvbmc=";

/// Units that Grafana has. One that it does not have stands behind the number as it is written.
const UNITS: [&str; 7] = ["Bps", "bytes", "ops", "percentunit", "reqps", "s", "short"];

struct Dashboard {
    name: String,
    json: Value,
}

fn dashboards() -> Vec<Dashboard> {
    let files = fs::read_dir(deploy("helm/hydrant/dashboards")).unwrap();
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        let json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        Dashboard { name: path.file_stem().unwrap().to_string_lossy().into_owned(), json }
    };
    files.map(read).collect()
}

impl Dashboard {
    fn panels(&self) -> impl Iterator<Item = &Value> {
        self.json["panels"].as_array().expect("a dashboard has panels").iter()
    }

    /// Each query with the title of its panel, with Grafana's variables put in.
    fn queries(&self) -> Vec<(String, String)> {
        let of = |panel: &Value| {
            let title = format!("{}: {}", self.name, panel["title"].as_str().unwrap_or_default());
            let targets = panel["targets"].as_array().into_iter().flatten();
            let queries = targets.filter_map(|target| target["expr"].as_str().map(put_in));
            queries.map(|query| (title.clone(), query)).collect::<Vec<_>>()
        };
        self.panels().flat_map(of).collect()
    }
}

fn put_in(expr: &str) -> String {
    let expr = expr.replace("$__rate_interval", "30s").replace("$__range", "1m");
    expr.replace("$namespace", "lab").replace("$job", "hydrant")
}

/// A query without what it shows when there is nothing: only figures count.
fn without_defaults(query: &str) -> String {
    let mut query = query.replace(" or on () vector(0)", "").replace(" or vector(0)", "");
    while let Some(start) = query.find(" or 0 * ") {
        // To the bracket that closes what the default stands in.
        let mut depth = 0_i32;
        let end = query[start..].find(|c| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            depth < 0
        });
        query.replace_range(start..end.map_or(query.len(), |end| start + end), "");
    }
    query
}

#[test]
fn defaults_are_taken_out_of_queries() {
    for (query, figures) in [
        ("sum(a) > 0 or on () vector(0)", "sum(a) > 0"),
        ("1 - (sum(a) or vector(0)) / sum(b)", "1 - (sum(a)) / sum(b)"),
        ("(sum by (u) (a) or 0 * sum by (u) (rate(b[1m]))) / c", "(sum by (u) (a)) / c"),
    ] {
        assert_eq!(without_defaults(query), figures);
    }
}

/// What series mean by their name, and the colour that says so.
const MEANINGS: [(&str, &[(&str, &str)]); 4] = [
    (
        "hydrant_pull",
        &[
            ("hit", "green"),
            ("joined", "purple"),
            ("miss", "blue"),
            ("stale", "orange"),
            ("error", "red"),
        ],
    ),
    (
        "hydrant_hydration_jobs_total",
        &[("done", "green"), ("later", "yellow"), ("dead", "red"), ("malformed", "dark-red")],
    ),
    (
        "hydrant_webhook_deliveries_total",
        &[("delivered", "green"), ("retried", "orange"), ("dead-lettered", "red")],
    ),
    ("hydrant_misses_total", &[("queued", "green"), ("dropped", "red")]),
];

#[test]
fn colours_say_what_a_series_means() {
    let mut coloured = 0;
    for dashboard in dashboards() {
        for panel in dashboard.panels() {
            let target = &panel["targets"][0];
            let legend = target["legendFormat"].as_str().unwrap_or_default();
            if !matches!(legend, "{{outcome}}" | "{{verdict}}") {
                continue;
            }
            let query = target["expr"].as_str().unwrap();
            let meaning = MEANINGS.iter().find(|(metric, _)| query.contains(metric));
            let (_, colours) = meaning.unwrap_or_else(|| panic!("{query} has no colours"));
            for (name, colour) in *colours {
                let overrides = panel["fieldConfig"]["overrides"].as_array().unwrap();
                let found = overrides.iter().find(|o| o["matcher"]["options"] == *name);
                let given = found.map(|o| &o["properties"][0]["value"]["fixedColor"]);
                assert_eq!(given, Some(&json!(colour)), "{name} of {}", panel["title"]);
            }
            coloured += 1;
        }
    }
    assert!(coloured >= 7, "only {coloured} panels");
}

#[test]
fn dashboards_explain_themselves_and_fit_together() {
    let (mut uids, mut names) = (BTreeSet::new(), BTreeSet::new());
    for dashboard in dashboards() {
        assert!(uids.insert(dashboard.json["uid"].as_str().unwrap().to_owned()));
        names.insert(dashboard.name.clone());
        let mut ids = BTreeSet::new();
        for panel in dashboard.panels() {
            let title = &panel["title"];
            assert!(panel["description"].as_str().is_some_and(|d| d.len() > 10), "{title}");
            let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap_or_default();
            assert!(UNITS.contains(&unit), "{title}: `{unit}`");
            assert!(ids.insert(panel["id"].as_u64()), "{title}");
            let place = &panel["gridPos"];
            let right = place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap();
            assert!(right <= 24, "{title} is wider than the dashboard");
        }
        for (panel, query) in dashboard.queries() {
            assert!(!query.contains('$'), "{panel} has an unknown variable: {query}");
            let ours = "{namespace=~\"lab\",job=~\"hydrant\"";
            let selectors = query.matches('{').count();
            assert!(selectors > 0, "{panel}: {query}");
            assert_eq!(query.matches(ours).count(), selectors, "{panel} mixes installations");
        }
    }
    assert_eq!(Vec::from_iter(names), ["hydration", "processes", "pulls", "upstreams", "webhooks"]);
}

#[tokio::test]
async fn dashboards_fit_the_types_of_grafana_and_its_panels() {
    let mut source = include_str!("grafana.ts").to_owned();
    for Dashboard { name, json } in dashboards() {
        source.push_str(&format!("export const {name}: Ours = {json:#};\n"));
    }
    let Some(checked) = compiled(&source, &["@grafana/schema"], "the dashboards").await else {
        return;
    };
    assert!(checked.status.success(), "{}", checked.text());
}

/// A hydrant with traffic, and a Prometheus that scrapes it every second.
struct Watched {
    hydrant: Hydrant,
    upstream: FakeUpstream,
    sink: WebhookSink,
    _prometheus: Process,
    url: String,
    _lease: PortLease,
    _directory: TempDir,
    pulled: u64,
}

impl Watched {
    async fn start() -> Option<Self> {
        let program = tool("prometheus", "the dashboards")?;
        let (upstream, sink) = (FakeUpstream::start().await, WebhookSink::start().await);
        let mut config = String::new();
        // One upstream for each trouble: the breaker of one is not that of another.
        for name in ["lab", "busy", "flaky", "late"] {
            config += &format!(
                "[[upstream]]\nname='{name}'\nendpoint='{}'\nallow_private=true\n\
                 [[rule]]\nname='{name}'\ndownstream='{name}/*'\nupstream='{name}'\n\
                 fresh_for='1s'\n",
                upstream.url()
            );
        }
        config += &format!(
            "[[webhook]]\nname='ci'\nurl='{}'\nallow_private=true\nsecret={{env='HOOK_SECRET'}}\n",
            sink.url()
        );
        let hydrant = Hydrant::role("up").config(&config).env("HOOK_SECRET", SECRET);
        let hydrant = hydrant.args(["--sweep-every=1s"]).start().await;
        let (lease, directory) = (PortLease::take(), tempfile::tempdir().unwrap());
        let scrape = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n  - job_name: hydrant\n    \
             static_configs: [{{targets: ['{}'], labels: {{namespace: lab, role: up}}}}]\n",
            hydrant.admin_url().trim_start_matches("http://")
        );
        fs::write(directory.path().join("prometheus.yml"), scrape).unwrap();
        let mut prometheus = Process::new("prometheus", program, directory.path());
        prometheus.args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"]);
        prometheus.arg(format!("--web.listen-address=127.0.0.1:{}", lease.port()));
        prometheus.spawn();
        let url = format!("http://127.0.0.1:{}", lease.port());
        Some(Self {
            hydrant,
            upstream,
            sink,
            _prometheus: prometheus,
            url,
            _lease: lease,
            _directory: directory,
            pulled: 0,
        })
    }

    /// Pulls something new by two clients, again, and something that there is not; and lets happen
    /// once whatever else there are figures of.
    async fn traffic(&mut self) {
        self.pulled += 1;
        let slowly = self.upstream.inject("*/app/blobs/*", Fault::slow(100_000));
        let image = self.image("app");
        tokio::join!(self.pull("lab/app", &image), self.pull("lab/app", &image));
        slowly.remove();
        self.pull("lab/app", &image).await;
        self.get("lab/app/manifests/none").await;
        self.trouble().await;
    }

    async fn trouble(&self) {
        // Upstreams that are too busy, fail once, and cannot tell whether a tag moved.
        let busy = Fault::status(429).header("retry-after", "1");
        for (name, fault) in [("busy", busy), ("flaky", Fault::status(503).times(1))] {
            self.upstream.inject(&format!("*/{name}/manifests/{}", self.pulled), fault);
            self.pull(&format!("{name}/{name}"), &self.image(name)).await;
        }
        if self.pulled == 1 {
            self.stored("late/late", &self.image("late")).await;
            self.upstream.inject("*/late/manifests/*", Fault::status(503));
        }
        self.get("late/late/manifests/1").await;
        // A blob that decays in storage: reading it shows that.
        let decayed = self.image("decayed");
        self.stored("lab/decayed", &decayed).await;
        fs::write(self.blob(&decayed), vec![0; 20_000]).unwrap();
        self.pull("lab/decayed", &decayed).await;
        // A webhook that fails once, and a job for what there is not.
        self.sink.script([Reply::status(500)]);
        let gone = format!("lab/gone:{}", self.pulled);
        self.hydrant.command(["hydrate", &gone]).await.success();
    }

    /// A new image of the upstream, under the tag of this round.
    fn image(&self, repository: &str) -> Image {
        let seed = repository.bytes().map(u64::from).sum::<u64>() * 1000 + self.pulled;
        let image = ImageBuilder::new(seed).layers(&[20_000]).build();
        self.upstream.insert(&image, repository, &self.pulled.to_string());
        image
    }

    /// Pulls an image and waits until its layer is in the store.
    async fn stored(&self, name: &str, image: &Image) {
        self.pull(name, image).await;
        until("it is stored", SOON, async || self.blob(image).is_file().then_some(())).await;
    }

    async fn pull(&self, name: &str, image: &Image) {
        self.get(&format!("{name}/manifests/{}", self.pulled)).await;
        for blob in image.all_blobs() {
            self.get(&format!("{name}/blobs/{}", blob.digest)).await;
        }
    }

    async fn get(&self, path: &str) {
        if let Ok(answer) = reqwest::get(format!("{}/v2/{path}", self.hydrant.url())).await {
            // It may be cut short; that is a figure, too.
            let _ = answer.bytes().await;
        }
    }

    /// Where the store has the image's first layer.
    fn blob(&self, image: &Image) -> std::path::PathBuf {
        let digest: &Digest = &image.all_blobs().last().expect("it has a layer").digest;
        let hex = digest.to_string().trim_start_matches("sha256:").to_owned();
        let blobs = self.hydrant.data().join("store/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }

    /// The values that a query returns now.
    async fn values(&self, query: &str) -> Result<Vec<f64>, String> {
        let form = format!("query={}", url_encoded(query));
        let request = reqwest::Client::new().post(format!("{}/api/v1/query", self.url));
        let request =
            request.header("content-type", "application/x-www-form-urlencoded").body(form);
        let answer: Value = match request.send().await {
            Ok(answer) => answer.json().await.map_err(|error| error.to_string())?,
            Err(error) => return Err(error.to_string()),
        };
        if answer["status"] != "success" {
            return Err(answer.to_string());
        }
        let samples = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        let number = |sample: &Value| sample["value"][1].as_str()?.parse::<f64>().ok();
        Ok(samples.iter().filter_map(number).filter(|value| value.is_finite()).collect())
    }
}

fn url_encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_returns_figures_of_a_living_hydrant() {
    let Some(mut watched) = Watched::start().await else { return };
    let limits = Fault::none().header("ratelimit-limit", "100;w=21600");
    watched.upstream.inject("*/manifests/*", limits.header("ratelimit-remaining", "76;w=21600"));
    let queries = dashboards().iter().flat_map(Dashboard::queries).collect::<Vec<_>>();
    let figures = |(panel, query): (String, String)| (panel, without_defaults(&query));
    let mut open: Vec<_> = queries.into_iter().map(figures).collect();
    assert!(open.len() > 55, "only {} queries", open.len());
    let deadline = std::time::Instant::now() + 2 * SOON;
    while !open.is_empty() {
        watched.traffic().await;
        let mut still = Vec::new();
        for (panel, query) in open {
            match watched.values(&query).await {
                Ok(values) if !values.is_empty() => {}
                _ => still.push((panel, query)),
            }
        }
        open = still;
        assert!(std::time::Instant::now() < deadline, "these return nothing: {open:#?}");
    }
    every_metric_of_the_alerts_is_there(&watched).await;
}

/// An alert on a metric that nobody exports is never raised.
async fn every_metric_of_the_alerts_is_there(watched: &Watched) {
    let rules = fs::read_to_string(deploy("helm/hydrant/alerts.yaml")).unwrap();
    let expressions = rules.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':');
    let names: BTreeSet<_> = expressions
        .flat_map(|expr| expr.split(word))
        .filter(|name| name.starts_with("hydrant_"))
        .collect();
    assert!(names.len() > 12, "{names:?}");
    for name in names {
        until(&format!("the metric {name}"), SOON, async || {
            watched.values(&format!("count({name})")).await.ok()?.first().copied()
        })
        .await;
    }
}
