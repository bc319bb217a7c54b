//! The dashboards: every query is asked of a Prometheus that scrapes a living hydrant, and has to
//! return figures.

use crate::{
    tools::{deploy, tool},
    typed::compiled,
};
use hydrant_testkit::{
    FakeUpstream, Fault, Hydrant, ImageBuilder, PortLease, Process, WebhookSink, until,
};
use serde_json::Value;
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
    expr.replace("$job", "hydrant")
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
            assert!(query.contains("job=~\"hydrant\""), "{panel} mixes installations: {query}");
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
    _sink: WebhookSink,
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
        let config = format!(
            "[[upstream]]\nname='lab'\nendpoint='{}'\nallow_private=true\n\
             [[rule]]\nname='lab'\ndownstream='lab/*'\nupstream='lab'\n\
             [[webhook]]\nname='ci'\nurl='{}'\nallow_private=true\nsecret={{env='HOOK_SECRET'}}\n",
            upstream.url(),
            sink.url()
        );
        let hydrant = Hydrant::role("up").config(&config).env("HOOK_SECRET", SECRET);
        let hydrant = hydrant.args(["--sweep-every=1s"]).start().await;
        let (lease, directory) = (PortLease::take(), tempfile::tempdir().unwrap());
        let scrape = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n  - job_name: hydrant\n    \
             static_configs: [{{targets: ['{}'], labels: {{role: up}}}}]\n",
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
            _sink: sink,
            _prometheus: prometheus,
            url,
            _lease: lease,
            _directory: directory,
            pulled: 0,
        })
    }

    /// Pulls something new, again, and something that there is not.
    async fn traffic(&mut self) {
        self.pulled += 1;
        let image = ImageBuilder::new(self.pulled).layers(&[20_000]).build();
        let tag = self.pulled.to_string();
        self.upstream.insert(&image, "app", &tag);
        let base = format!("{}/v2/lab/app", self.hydrant.url());
        let client = reqwest::Client::new();
        let manifest = format!("{base}/manifests/{tag}");
        let blobs =
            image.all_blobs().into_iter().map(|blob| format!("{base}/blobs/{}", blob.digest));
        let asked: Vec<_> = std::iter::once(manifest).chain(blobs).collect();
        for url in asked.iter().chain(&asked) {
            let answer = client.get(url).send().await.expect("hydrant answers");
            answer.bytes().await.expect("it answers whole");
        }
        client.get(format!("{base}/manifests/none")).send().await.expect("hydrant answers");
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
    let mut open: Vec<_> = dashboards().iter().flat_map(Dashboard::queries).collect();
    assert!(open.len() > 40, "only {} queries", open.len());
    let deadline = std::time::Instant::now() + SOON;
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
