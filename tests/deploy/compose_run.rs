//! What compose starts, run as processes of this machine: the cluster of NATS, SeaweedFS, the roles
//! with their variables, the balancer and the webhook, each with the command and the files that the
//! compose file gives it. Names of services and ports are put in; images are not looked at.

use crate::{
    compose::services,
    here::Here,
    tools::{deploy, tool},
};
use hydrant_testkit::{FakeUpstream, Image, Process, Skopeo, binaries, until};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

const SOON: Duration = Duration::from_secs(90);

struct Composed {
    services: Map<String, Value>,
    here: Here,
    running: BTreeMap<String, Process>,
}

impl Composed {
    /// A service as a process. Its own addresses are replaced first, then everybody else's.
    fn service(&mut self, name: &str, program: PathBuf, own: &[(&str, &str)]) -> &mut Process {
        let put = |text: &str| {
            let text = own.iter().fold(text.to_owned(), |text, (a, b)| text.replace(a, b));
            self.here.put_in(&text)
        };
        let service = &self.services[name];
        let mut process = Process::new(name, program, self.here.path());
        let args = service["command"].as_array().into_iter().flatten();
        process.args(args.map(|arg| put(arg.as_str().expect("arguments are text"))));
        for (key, value) in service["environment"].as_object().into_iter().flatten() {
            process.env(key, put(value.as_str().unwrap_or_default()));
        }
        self.running.insert(name.to_owned(), process);
        self.running.get_mut(name).expect("it was just put there")
    }

    /// Lays out a file of `compose/`, with `own` replaced before the rest; returns its path.
    fn file(&self, of: &str, file: &str, own: &[(&str, &str)]) -> String {
        let text = fs::read_to_string(deploy("compose").join(file)).unwrap();
        let text = own.iter().fold(text, |text, (a, b)| text.replace(a, b));
        let path = self.here.dir(of).join(file);
        fs::write(&path, self.here.put_in(&text)).unwrap();
        path.to_string_lossy().into_owned()
    }

    fn nats(&mut self, node: &str) {
        let client = self.here.put_in(&format!("{node}:4222"));
        let cluster = self.here.put_in(&format!("{node}:6222"));
        let monitor = self.here.address();
        let data = format!("store_dir: \"{}\"", self.here.dir(&format!("{node}-data")).display());
        let own = [
            ("0.0.0.0:4222", client.as_str()),
            ("0.0.0.0:6222", &cluster),
            ("0.0.0.0:8222", &monitor),
            ("store_dir: /data", &data),
        ];
        let config = self.file(node, "nats.conf", &own);
        let own = [("/etc/nats/nats.conf", config.as_str())];
        self.service(node, binaries::find("nats-server"), &own).spawn();
    }

    fn seaweedfs(&mut self) {
        let s3 = self.here.put_in("seaweedfs:8333");
        let port = format!("-s3.port={}", s3.rsplit_once(':').unwrap().1);
        let data = format!("-dir={}", self.here.dir("seaweedfs").display());
        let others: Vec<_> = ["master", "volume", "filer", "admin"]
            .map(|server| format!("-{server}.port={}", self.here.port()))
            .into();
        let own = [("-s3.port=8333", port.as_str()), ("-dir=/data", &data)];
        let weed = self.service("seaweedfs", binaries::find("weed"), &own);
        weed.args(others).args(["-filer.localSocket=filer.sock", "-s3.localSocket=s3.sock"]);
        weed.spawn();
    }

    /// A role, with the addresses that the image sets.
    fn role(&mut self, service: &str) {
        let config = self.here.dir("control").join("hydrant.toml");
        let data = self.here.dir(&format!("{service}-data"));
        let (listen, admin) = (self.here.put_in(&format!("{service}:5000")), self.admin(service));
        let peer = self.here.address();
        let own =
            [("/etc/hydrant/hydrant.toml", &*config.to_string_lossy()), ("0.0.0.0:5001", &peer)];
        let process = self.service(service, binaries::hydrant(), &own);
        process.env("HYDRANT_DATA", data).env("HYDRANT_LISTEN", listen).env("HYDRANT_ADMIN", admin);
        process.spawn();
    }

    fn admin(&self, service: &str) -> String {
        self.here.put_in(&format!("{service}:9464"))
    }

    async fn healthy(&self, service: &str) {
        let test = self.services[service]["healthcheck"]["test"].as_array().unwrap();
        let args = test.iter().skip(2).map(|arg| arg.as_str().unwrap());
        let mut check = Process::new("check", binaries::hydrant(), self.here.path());
        check.args(args).args(["--wait", "60s"]).env("HYDRANT_ADMIN", self.admin(service));
        check.run(SOON).await.success();
    }
}

const NODES: [&str; 3] = ["nats-1", "nats-2", "nats-3"];
const ROLES: [&str; 5] = ["control", "importer", "notifier", "frontend-1", "frontend-2"];

impl Composed {
    /// Gives every service its address, and returns that of the webhook.
    fn addressed(services: Map<String, Value>) -> (Self, String) {
        let mut all = Self { services, here: Here::new(), running: BTreeMap::new() };
        for node in NODES {
            all.here.serves(&format!("{node}:4222"));
            all.here.serves(&format!("{node}:6222"));
        }
        all.here.serves("seaweedfs:8333");
        let hook = all.here.serves("webhook:8080");
        for service in ROLES {
            all.here.serves(&format!("{service}:9464"));
            all.here.serves(&format!("{service}:5000"));
        }
        (all, hook)
    }

    /// Compose's rules lead to the internet; these to the test. The webhook stays.
    fn rules_to(&mut self, upstream: &FakeUpstream) {
        let config = PathBuf::from(self.file("control", "hydrant.toml", &[]));
        let text = fs::read_to_string(&config).unwrap();
        let (_, hooks) = text.split_once("[[webhook]]").unwrap();
        let lab = format!(
            "[[upstream]]\nname='lab'\nendpoint='{}'\nallow_private=true\n\
             [[rule]]\nname='lab'\ndownstream='lab/*'\nupstream='lab'\n[[webhook]]{hooks}",
            upstream.url()
        );
        fs::write(config, lab).unwrap();
    }

    fn webhook(&mut self, address: &str) {
        let sink = self.file("webhook", "sink.py", &[]);
        let port = address.rsplit_once(':').unwrap().1.to_owned();
        let python = tool("python3", "the webhook of compose").expect("python3 ran the set-up");
        let own = [("python3", "-u"), ("/sink.py", sink.as_str())];
        self.service("webhook", python, &own).env("PORT", port).spawn();
    }

    /// Starts the balancer and returns where it listens.
    fn balancer(&mut self, haproxy: PathBuf) -> String {
        let balancer = self.here.address();
        let own = ["frontend-1", "frontend-2"].map(|name| {
            let admin = self.admin(name);
            let server = format!("server {name} {name}:5000");
            (server.clone(), format!("{server} port {}", port_of(&admin)))
        });
        let bind = format!("bind {balancer}");
        let mut replaced = vec![
            ("bind :5000", bind.as_str()),
            // One port for both in compose, one each here.
            ("check port 9464", "check"),
        ];
        replaced.extend(own.iter().map(|(from, to)| (from.as_str(), to.as_str())));
        let config = self.file("balancer", "haproxy.cfg", &replaced);
        self.service("balancer", haproxy, &[]).args(["-f", &config]).spawn();
        balancer
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_compose_starts_serves_hydrates_and_outlives_a_frontend() {
    let Some(services) = services().await else { return };
    let Some(haproxy) = tool("haproxy", "a run of the compose file") else { return };
    let upstream = FakeUpstream::start().await;
    for tag in ["1", "2"] {
        let size = 100_000 * tag.len() as u64;
        upstream.insert(&Image::multi_arch(5, &["linux/amd64"], &[size]), "app", tag);
    }
    let (mut all, hook) = Composed::addressed(services);
    NODES.iter().for_each(|node| all.nats(node));
    all.seaweedfs();
    all.rules_to(&upstream);
    all.webhook(&hook);
    ROLES.iter().for_each(|service| all.role(service));
    let balancer = all.balancer(haproxy);
    for service in ROLES {
        all.healthy(service).await;
    }
    let pull = async |tag: &str| {
        Skopeo::pull(format!("{balancer}/lab/app:{tag}")).platform("linux/amd64").run().await
    };
    until("a pull by the balancer", SOON, async || pull("1").await.ok()).await;
    all.running["webhook"].logged("image.hydrated", SOON).await;
    let mut first = all.running.remove("frontend-1").expect("it runs");
    first.terminate(SOON).await;
    pull("2").await.expect("a pull by the frontend that is left");
}

fn port_of(address: &str) -> &str {
    address.rsplit_once(':').map_or("", |(_, port)| port)
}
