//! A control process of a test, with its own nats-server and store, and what it is asked by.

use clap::Parser;
use hydrant_boot::{AdminToken, Context, Readiness, Role, Settings, bind};
use hydrant_control::{Config, Standings};
use hydrant_store::{S3Settings, Store, StoreConfig};
use hydrant_testkit::NatsServer;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use std::{
    net::{SocketAddr, TcpListener},
    time::Duration,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const SOON: Duration = Duration::from_secs(10);

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    settings: Settings,
}

/// A control process with its own nats-server and store.
pub struct Control {
    pub address: SocketAddr,
    pub http: reqwest::Client,
    pub context: Context,
    pub stop: CancellationToken,
    serving: JoinHandle<anyhow::Result<()>>,
    pub nats: NatsServer,
    _data: TempDir,
}

impl Control {
    pub async fn start() -> Self {
        Self::start_with(None, &[]).await
    }

    pub async fn start_with(token: Option<&str>, flags: &[&str]) -> Self {
        Self::start_over(None, token, flags).await
    }

    pub async fn start_over(store: Option<Store>, token: Option<&str>, flags: &[&str]) -> Self {
        let (nats, data) = (NatsServer::start().await, tempfile::tempdir().unwrap());
        let stop = CancellationToken::new();
        let in_data = format!("--data={}", data.path().display());
        let line = Line::try_parse_from([&["hydrant", &in_data], flags].concat()).unwrap();
        let readiness = Readiness::default();
        let url = nats.url();
        let context = Context::start(line.settings, Role::Control, &url, readiness, &stop);
        let mut context = context.await.unwrap();
        if let Some(store) = store {
            context.store = store;
        }
        let mut connected = context.bus.connected();
        connected.wait_for(|connected| *connected).await.unwrap();
        let listener = bind("--admin", "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = Config {
            context: context.clone(),
            token: token.map(|token| AdminToken::parse(token).unwrap()),
            standings: Standings::none(),
        };
        let serving =
            tokio::spawn(hydrant_control::run(config, listener, stop.clone(), stop.clone()));
        hydrant_boot::install_tls_provider();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { address, http, context, stop, serving, nats, _data: data }
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("http://{}{path}", self.address))
    }

    pub async fn send(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        told(self.request(method, &format!("/api/v1{path}")).json(&body).send().await.unwrap())
            .await
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        told(self.request(Method::GET, &format!("/api/v1{path}")).send().await.unwrap()).await
    }

    pub async fn put(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.send(Method::PUT, path, body).await
    }

    /// An upstream and a rule for `lab/*`.
    pub async fn with_lab(self) -> Self {
        let upstream = json!({"endpoint": "https://lab.example"});
        assert_eq!(self.put("/upstreams/lab", upstream).await.0, StatusCode::CREATED);
        let rule = json!({"downstream": "lab/*", "upstream": "lab"});
        assert_eq!(self.put("/rules/lab", rule).await.0, StatusCode::CREATED);
        self
    }

    pub async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(SOON, self.serving).await.unwrap().unwrap().unwrap();
        self.context.close().await;
        drop(self.nats);
    }
}

pub async fn told(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

pub fn field(body: &Value) -> &str {
    body["error"]["field"].as_str().unwrap_or_default()
}

/// A store that takes connections and never says a word.
pub fn silent_store() -> (TcpListener, Store) {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let s3 = S3Settings::from_vars([
        ("AWS_ENDPOINT_URL", format!("http://{}", silent.local_addr().unwrap())),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ACCESS_KEY_ID", "id".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "key".to_owned()),
    ]);
    let url = "s3://cache".parse().unwrap();
    (silent, Store::open(&StoreConfig { url, s3, public_endpoint: None }).unwrap())
}
