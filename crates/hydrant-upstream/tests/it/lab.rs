//! One fake upstream and its client.

use hydrant_proto::{Digest, Reference, RepositoryName};
use hydrant_rules::{Credential, Upstream};
use hydrant_testkit::{FakeUpstream, Image, ImageBuilder};
use hydrant_upstream::{Client, Options, SecretSource, Upstreams};
use serde_json::{Value, json};
use std::sync::Arc;

pub const USER: &str = "lab-user";
pub const PASSWORD: &str = "hunter2-s3cret";

pub struct Lab {
    pub fake: FakeUpstream,
    pub image: Image,
    pub upstreams: Upstreams,
    pub client: Arc<Client>,
}

/// What a test changes about the upstream.
pub struct Setup {
    pub extra: Value,
    pub options: Options,
    pub credential: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self { extra: json!({}), options: Options::default(), credential: false }
    }
}

impl Lab {
    /// An upstream that serves one image as `lab/app:1`, and a client without credential.
    pub async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    pub async fn with_credential() -> Self {
        Self::with(Setup { credential: true, ..Setup::default() }).await
    }

    pub async fn with(setup: Setup) -> Self {
        let fake = FakeUpstream::start().await;
        let image = ImageBuilder::new(1).layer(300_000).build();
        fake.insert(&image, "lab/app", "1");
        let upstreams = Upstreams::with_options(secrets(), setup.options);
        let upstream = upstream(&fake.url(), setup.extra);
        let credential = setup.credential.then(credential);
        let client = upstreams.get(&upstream, credential.as_ref()).unwrap();
        Self { fake, image, upstreams, client }
    }

    /// The digest of the one layer.
    pub fn layer(&self) -> &Digest {
        &self.image.blobs[1].digest
    }
}

pub fn upstream(endpoint: &str, extra: Value) -> Arc<Upstream> {
    let mut written = json!({
        "name": "lab", "endpoint": endpoint, "allow_private": true, "timeout": "2s",
    });
    for (key, value) in extra.as_object().unwrap() {
        written[key] = value.clone();
    }
    Arc::new(serde_json::from_value(written).unwrap())
}

pub fn credential() -> Credential {
    let (username, password) = (json!({"env": "LAB_USER"}), json!({"env": "LAB_PASSWORD"}));
    let written = json!({"name": "lab-user", "username": username, "password": password});
    serde_json::from_value(written).unwrap()
}

pub fn secrets() -> SecretSource {
    SecretSource::with_variables([
        ("LAB_USER".to_owned(), USER.to_owned()),
        ("LAB_PASSWORD".to_owned(), PASSWORD.to_owned()),
    ])
}

pub fn app() -> RepositoryName {
    "lab/app".parse().unwrap()
}

pub fn tag(text: &str) -> Reference {
    text.parse().unwrap()
}
