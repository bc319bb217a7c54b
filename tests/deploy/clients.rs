//! Real clients, configured by `hydrant client-config` and by nothing else: they pull through
//! hydrant, and from the registry itself when hydrant is away.

use crate::tools::{run, tool};
use hydrant_proto::Digest;
use hydrant_testkit::{FakeUpstream, Finished, Hydrant, Process, binaries, until};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(60);

/// A registry known as `lab.test` and as Docker Hub, hydrant before it, and a node's files.
struct Node {
    upstream: FakeUpstream,
    hydrant: Hydrant,
    root: TempDir,
}

impl Node {
    /// With the files that `hydrant client-config <client>` writes.
    async fn configured(client: &str) -> Self {
        let upstream = FakeUpstream::start().await;
        insert(&upstream, "app");
        insert(&upstream, "library/app");
        let config = format!(
            "[[upstream]]\nname='lab'\nendpoint='{url}'\nallow_private=true\nnamespace='lab.test'\n\
             [[upstream]]\nname='hub'\nendpoint='{url}'\nallow_private=true\nnamespace='docker.io'\n\
             [[rule]]\nname='lab'\ndownstream='any/lab/*'\nupstream='lab'\n\
             [[rule]]\nname='hub'\ndownstream='any/hub/*'\nupstream='hub'\n",
            url = upstream.url()
        );
        let hydrant = Hydrant::role("up").config(&config).start().await;
        let root = tempfile::tempdir().unwrap();
        let there = format!("lab.test={}", upstream.url());
        let args = [
            "client-config",
            client,
            "--registry",
            &hydrant.url(),
            "--upstream",
            &there,
            "--upstream",
            "docker.io",
            "--write",
            "--root",
            &root.path().to_string_lossy(),
        ]
        .map(str::to_owned);
        hydrant.command(&args).await.success();
        Self { upstream, hydrant, root }
    }

    fn file(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    /// What went through hydrant so far.
    async fn pulled(&self) -> f64 {
        self.hydrant.metric("hydrant_pulls_total", &[("kind", "blob")]).await
    }
}

/// An image that can be unpacked: one layer with one file.
fn insert(upstream: &FakeUpstream, repository: &str) {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("hello"), repository).unwrap();
    let tar = directory.path().join("layer.tar");
    let mut command = std::process::Command::new("tar");
    command.arg("-C").arg(directory.path()).arg("-cf").arg(&tar).arg("hello");
    assert!(command.status().unwrap().success());
    let layer = fs::read(tar).unwrap();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer).to_string()]},
    });
    let config = config.to_string().into_bytes();
    let descriptor = |kind: &str, bytes: &[u8]| {
        let kind = format!("application/vnd.oci.image.{kind}");
        json!({"mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len()})
    };
    let manifest: Value = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &config),
        "layers": [descriptor("layer.v1.tar", &layer)],
    });
    for blob in [config, layer] {
        upstream.put_blob(repository, &Digest::of(&blob), blob);
    }
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    upstream.put_manifest(repository, "1", media_type, manifest.to_string().into_bytes());
}

fn worked(finished: &Finished) -> bool {
    finished.status.success()
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_pulls_through_hydrant_and_past_it_when_it_is_away() {
    let Some(program) = tool("containerd", "containerd") else { return };
    let Some(ctr) = tool("ctr", "containerd") else { return };
    let mut node = Node::configured("containerd").await;
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().display();
    fs::write(
        directory.path().join("config.toml"),
        format!(
            "version = 2\nroot = \"{dir}/root\"\nstate = \"{dir}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{dir}/c\"\n[ttrpc]\naddress = \"{dir}/t\"\n"
        ),
    )
    .unwrap();
    let mut daemon = Process::new("containerd", program, directory.path());
    daemon.args(["--config", "config.toml"]).spawn();
    let socket = format!("{dir}/c");
    let call = async |args: &[&str]| run(&ctr, [&["--address", &socket], args].concat()).await;
    until("containerd", SOON, async || worked(&call(&["version"]).await).then_some(())).await;

    let hosts = node.file("/etc/containerd/certs.d").display().to_string();
    let pull = ["images", "pull", "--snapshotter=native", "--hosts-dir", &hosts];
    let pull = async |image: &str| call(&[&pull[..], &[image]].concat()).await;
    pull("lab.test/app:1").await.success();
    assert!(node.pulled().await >= 2.0, "nothing went through hydrant");
    pull("docker.io/library/app:1").await.success();
    assert_eq!(node.upstream.gets("*/manifests/*"), 2, "by nobody but hydrant");

    node.hydrant.terminate().await;
    call(&["images", "rm", "--sync", "lab.test/app:1", "docker.io/library/app:1"]).await.success();
    pull("lab.test/app:1").await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_and_skopeo_pull_through_hydrant_and_past_it_when_it_is_away() {
    let Some(podman) = tool("podman", "podman") else { return };
    let mut node = Node::configured("podman").await;
    let registries = node.file("/etc/containers/registries.conf.d/50-hydrant.conf");
    let directory = tempfile::tempdir().unwrap();
    let call = async |program: &Path, args: &[&str]| {
        let mut process = Process::new("client", program, directory.path());
        process.args(args).env("CONTAINERS_REGISTRIES_CONF", &registries);
        process.run(SOON).await
    };
    let skopeo = binaries::find("skopeo");
    let conf = registries.display().to_string();
    let copy = ["--registries-conf", &conf, "copy", "docker://lab.test/app:1"];
    call(&skopeo, &[&copy[..], &["dir:skopeo"]].concat()).await.success();
    assert!(node.pulled().await >= 2.0, "nothing went through hydrant");
    let pull = ["--storage-driver=vfs", "--root=root", "--runroot=run", "pull"];
    let pull = async |image: &str| call(&podman, &[&pull[..], &[image]].concat()).await;
    pull("docker.io/library/app:1").await.success();
    assert!(node.pulled().await >= 4.0, "nothing went through hydrant");
    assert_eq!(node.upstream.gets("*/manifests/*"), 2, "by nobody but hydrant");

    node.hydrant.terminate().await;
    call(&skopeo, &[&copy[..], &["dir:again"]].concat()).await.success();
    pull("lab.test/app:1").await.success();
}

/// That dockerd asks Docker Hub itself when its mirror is away cannot be tried without the internet.
#[tokio::test(flavor = "multi_thread")]
async fn docker_pulls_docker_hub_through_hydrant() {
    let (Some(dockerd), Some(docker)) = (tool("dockerd", "Docker"), tool("docker", "Docker"))
    else {
        return;
    };
    let node = Node::configured("docker").await;
    let directory = tempfile::tempdir().unwrap();
    let socket = format!("unix://{}/d", directory.path().display());
    let mut daemon = Process::new("dockerd", dockerd, directory.path());
    daemon.arg("--config-file").arg(node.file("/etc/docker/daemon.json"));
    for flag in ["data-root", "exec-root", "pidfile"] {
        daemon.arg(format!("--{flag}={}/{flag}", directory.path().display()));
    }
    daemon.args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs"]);
    daemon.args(["--host", &socket]).spawn();
    let call = async |args: &[&str]| run(&docker, [&["--host", &socket], args].concat()).await;
    until("dockerd", SOON, async || worked(&call(&["version"]).await).then_some(())).await;
    call(&["pull", "app:1"]).await.success();
    assert!(node.pulled().await >= 2.0, "nothing went through hydrant");
    daemon.terminate(SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_others_are_kept_and_authorities_are_laid_where_clients_look() {
    let root = tempfile::tempdir().unwrap();
    let path = |path: &str| root.path().join(path);
    for (file, text) in [
        ("etc/docker/daemon.json", r#"{"log-driver": "journald"}"#),
        ("etc/containerd/certs.d/docker.io/hosts.toml", "server = \"https://else.example\"\n"),
        ("ca.pem", "a certificate"),
    ] {
        fs::create_dir_all(path(file).parent().unwrap()).unwrap();
        fs::write(path(file), text).unwrap();
    }
    let (place, ca) = (root.path().to_string_lossy(), path("ca.pem"));
    let call = async |client: &str, more: &[&str]| {
        let mut process = Process::new("config", binaries::hydrant(), root.path());
        process.args(["client-config", client, "--registry", "https://hydrant.test:8443", "--ca"]);
        process.arg(&ca).args(["--write", "--root", &place]).args(more);
        process.run(SOON).await
    };
    call("docker", &[]).await.success();
    let daemon = fs::read_to_string(path("etc/docker/daemon.json")).unwrap();
    assert!(
        daemon.contains("journald") && daemon.contains("https://hydrant.test:8443"),
        "{daemon}"
    );
    let laid = fs::read_to_string(path("etc/docker/certs.d/hydrant.test:8443/ca.crt")).unwrap();
    assert_eq!(laid, "a certificate");

    let refused = call("containerd", &[]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.stderr.contains("docker.io/hosts.toml") && refused.stderr.contains("--force"));
    assert!(!path("etc/containerd/certs.d/ghcr.io").exists(), "all files or none");
    call("containerd", &["--force"]).await.success();
    call("containerd", &[]).await.success();
    let hosts = fs::read_to_string(path("etc/containerd/certs.d/ghcr.io/hosts.toml")).unwrap();
    assert!(hosts.contains(&format!("ca = \"{}\"", ca.display())), "{hosts}");

    for client in ["crio", "buildkit"] {
        call(client, &[]).await.success();
    }
    let buildkit = fs::read_to_string(path("etc/buildkit/buildkitd.toml")).unwrap();
    assert!(buildkit.contains("mirrors = [\"hydrant.test:8443\"]"), "{buildkit}");
    assert!(path("etc/containers/certs.d/hydrant.test:8443/ca.crt").is_file());
    let before = fs::read(path("etc/docker/daemon.json")).unwrap();
    let hubless = call("docker", &["--upstream", "ghcr.io"]).await;
    assert_eq!(hubless.status.code(), Some(2));
    assert!(hubless.stderr.contains("Docker Hub only"), "{}", hubless.stderr);
    assert_eq!(fs::read(path("etc/docker/daemon.json")).unwrap(), before);
    let wrong = call("podman", &["--upstream", "lab:5000=http://lab:5000"]).await;
    assert_eq!(wrong.status.code(), Some(2), "{}", wrong.stderr);
}
