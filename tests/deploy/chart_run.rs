//! A trial release, run: every container of the rendered chart as a process of this machine, all
//! started at once as a cluster would, with what a cluster provides put in: names of Services,
//! values of Secrets, files of ConfigMaps, ports. What the manifests say is otherwise taken as it
//! stands.

use crate::{
    here::Here,
    rendered::{Rendered, containers, with_values},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use hydrant_testkit::{FakeUpstream, Finished, Image, Process, Skopeo, binaries, until};
use serde_json::Value;
use std::{fs, path::PathBuf, time::Duration};

const SOON: Duration = Duration::from_secs(90);

struct Cluster {
    rendered: Rendered,
    here: Here,
    running: Vec<Process>,
}

impl Cluster {
    fn new(rendered: Rendered) -> Self {
        let mut cluster = Self { rendered, here: Here::new(), running: Vec::new() };
        for service in ["hydrant-nats:4222", "hydrant-store:8333", "hydrant-control:9464"] {
            cluster.here.serves(service);
        }
        cluster.configuration("hydrant-config", "/etc/hydrant/config");
        cluster
    }

    /// Lays out the files of a ConfigMap that pods mount at `at`.
    fn configuration(&mut self, name: &str, at: &str) {
        let place = self.here.dir(name);
        let map = self.rendered.named("ConfigMap", name)["data"].as_object().unwrap().clone();
        for (file, text) in map {
            fs::write(place.join(file), self.here.put_in(text.as_str().unwrap())).unwrap();
        }
        self.here.is(at, place.to_string_lossy());
    }

    /// A container as a process; `ports` are the addresses it binds and those it binds here.
    fn container(
        &self,
        name: &str,
        program: PathBuf,
        of: &Value,
        ports: &[(&str, &str)],
    ) -> Process {
        let place = |text: &str| {
            let data = self.here.dir(name);
            let text = ports.iter().fold(text.to_owned(), |text, (a, b)| text.replace(a, b));
            let text = text.replace("/var/lib/hydrant", &data.to_string_lossy());
            self.here.put_in(&text.replace("=/data", &format!("={}", data.display())))
        };
        let mut process = Process::new(name, program, self.here.path());
        let args = of["args"].as_array().into_iter().flatten();
        process.args(args.map(|arg| place(arg.as_str().expect("arguments are text"))));
        for entry in of["env"].as_array().into_iter().flatten() {
            let key = entry["name"].as_str().unwrap();
            let value = match entry["value"].as_str() {
                Some(value) => place(value),
                None => self.secret(&entry["valueFrom"]["secretKeyRef"]),
            };
            process.env(key, value);
        }
        process
    }

    fn secret(&self, reference: &Value) -> String {
        let secret = self.rendered.named("Secret", reference["name"].as_str().unwrap());
        let data = secret["data"][reference["key"].as_str().unwrap()].as_str().unwrap();
        String::from_utf8(BASE64_STANDARD.decode(data).unwrap()).unwrap()
    }

    fn start(&mut self, mut process: Process) {
        process.spawn();
        self.running.push(process);
    }

    /// A role; returns its addresses for pulls and for its admin port.
    fn role(&mut self, role: &str) -> (String, String) {
        let listen = self.here.address();
        let admin = match role {
            "control" => self.here.put_in("hydrant-control:9464"),
            _ => self.here.address(),
        };
        let container = &self.rendered.pod(role)["spec"]["containers"][0];
        let peer = self.here.address();
        let ports = [
            ("0.0.0.0:5000", listen.as_str()),
            ("0.0.0.0:9464", admin.as_str()),
            ("0.0.0.0:5001", peer.as_str()),
        ];
        let process = self.container(role, binaries::hydrant(), container, &ports);
        self.start(process);
        (listen, admin)
    }

    fn nats(&mut self) {
        let monitor = self.here.address();
        let address = self.here.put_in("hydrant-nats:4222");
        let data = self.here.dir("nats-data").to_string_lossy().into_owned();
        self.here.is("0.0.0.0:4222", address);
        self.here.is("0.0.0.0:8222", monitor);
        self.here.is("store_dir: /data", format!("store_dir: \"{data}\""));
        self.configuration("hydrant-nats", "/etc/nats");
        let container = &self.stateful("hydrant-nats")["containers"][0];
        let process = self.container("nats", binaries::find("nats-server"), container, &[]);
        self.start(process);
    }

    fn store(&mut self) {
        let address = self.here.put_in("hydrant-store:8333");
        let (_, port) = address.rsplit_once(':').unwrap();
        let s3 = format!("-s3.port={port}");
        let others: Vec<_> = ["master", "volume", "filer", "admin"]
            .map(|server| format!("-{server}.port={}", self.here.port()))
            .into();
        let container = &self.stateful("hydrant-store")["containers"][0];
        assert_eq!(container["command"], serde_json::json!(["weed"]));
        let ports = [("-s3.port=8333", s3.as_str())];
        let mut process = self.container("store", binaries::find("weed"), container, &ports);
        // In a pod these are its own.
        process.args(others).args(["-filer.localSocket=filer.sock", "-s3.localSocket=s3.sock"]);
        self.start(process);
    }

    fn stateful(&self, name: &str) -> &Value {
        &self.rendered.named("StatefulSet", name)["spec"]["template"]["spec"]
    }

    /// Runs the containers of the hook job, one after the other.
    async fn job(&self) -> String {
        let pod = &self.rendered.named("Job", "hydrant-apply")["spec"]["template"];
        let mut told = String::new();
        for container in containers(pod) {
            let name = format!("job-{}", container["name"].as_str().unwrap());
            let process = self.container(&name, binaries::hydrant(), container, &[]);
            told.push_str(&process.run(SOON).await.success().text());
        }
        told
    }

    /// A client command with the token of the release.
    async fn command(&self, args: &[&str]) -> Finished {
        let mut process = Process::new("command", binaries::hydrant(), self.here.path());
        process.args(args);
        process
            .env("HYDRANT_SERVER", format!("http://{}", self.here.put_in("hydrant-control:9464")));
        let token = serde_json::json!({"name": "hydrant-admin", "key": "token"});
        process.env("HYDRANT_ADMIN_TOKEN", self.secret(&token));
        process.run(SOON).await
    }
}

fn values(upstream: &FakeUpstream) -> String {
    format!(
        "image: {{repository: registry.example.com/hydrant}}\n\
         bundled: {{nats: {{enabled: true}}, store: {{enabled: true}}}}\n\
         config:\n  upstream:\n    - {{name: lab, endpoint: \"{}\", allow_private: true}}\n  \
         rule:\n    - {{name: lab, downstream: lab/*, upstream: lab}}\n",
        upstream.url()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trial_release_starts_in_any_order_and_hydrates_what_is_pulled() {
    let upstream = FakeUpstream::start().await;
    let image = Image::multi_arch(3, &["linux/amd64"], &[100_000, 1000]);
    upstream.insert(&image, "app", "1");
    let Some(rendered) = with_values(&values(&upstream)).await else { return };
    assert_eq!(rendered.refused, None);
    let mut cluster = Cluster::new(rendered);
    for role in ["importer", "notifier", "control"] {
        cluster.role(role);
    }
    let (registry, admin) = cluster.role("frontend");
    cluster.nats();
    cluster.store();

    let told = cluster.job().await;
    assert!(told.contains("2 changed") || told.contains("2 as they were"), "{told}");
    assert!(cluster.command(&["rule", "get", "lab"]).await.success().text().contains("lab/*"));
    let ready = ["health", "--ready", "--wait", "60s", "--admin", &admin];
    cluster.command(&ready).await.success();
    let name = format!("{registry}/lab/app:1");
    Skopeo::pull(&name).platform("linux/amd64").run().await.expect("a pull");
    until("a hydrated image", SOON, async || {
        let status = cluster.command(&["status", "lab/app:1", "--output", "json"]).await.text();
        let status: Value = serde_json::from_str(&status).ok()?;
        (status["hydrated"] == true).then_some(())
    })
    .await;
    upstream.stop().await;
    Skopeo::pull(&name).platform("linux/amd64").run().await.expect("a pull without the upstream");
}
