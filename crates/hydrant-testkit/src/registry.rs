//! A real docker-registry (CNCF distribution 2.8), as an upstream or over a hydrated store.

use crate::{Image, PortLease, Process, SeaweedFs, binaries, client, pattern, process, until};
use serde_json::{Value, json};
use std::{fs, path::Path, time::Duration};
use tempfile::TempDir;

const START_LIMIT: Duration = Duration::from_secs(30);
const USER: &str = "lab";
const PASSWORD: &str = "labsecret";
/// bcrypt of [`PASSWORD`] at cost 5.
const HTPASSWD: &str = "lab:$2b$05$abcdefghijklmnopqrstuuWInDxP2/JcHqScNCI2v6gT/ZzzjHprK\n";

/// A running docker-registry; gone when dropped, except for a store it was given.
#[derive(Debug)]
pub struct Registry {
    process: Process,
    port: PortLease,
    user: Option<(&'static str, &'static str)>,
    _directory: TempDir,
}

/// One line of the access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    pub method: String,
    /// Without the query.
    pub path: String,
    pub status: u16,
    /// Body bytes sent.
    pub bytes: u64,
}

impl Registry {
    /// An empty registry with its own storage, open to all.
    pub async fn start() -> Self {
        let directory = directory();
        let root = directory.path().join("data");
        Self::serve(directory, filesystem(&root, false), None).await
    }

    /// The same, asking for Basic credentials: those of [`Registry::user`].
    pub async fn start_with_password() -> Self {
        let directory = directory();
        let root = directory.path().join("data");
        Self::serve(directory, filesystem(&root, false), Some((USER, PASSWORD))).await
    }

    /// Serves, read-only, the store in the directory `root` (which holds `docker/registry/v2`).
    pub async fn on_directory(root: &Path) -> Self {
        Self::serve(directory(), filesystem(root, true), None).await
    }

    /// Serves, read-only, the store below `prefix` in the bucket of `s3`.
    pub async fn on_s3(s3: &SeaweedFs, prefix: &str) -> Self {
        Self::serve(directory(), bucket(s3, prefix, true), None).await
    }

    /// A pull-through cache of the registry at `remote` (`http://host:port`) with its own storage.
    pub async fn proxy(remote: &str) -> Self {
        let directory = directory();
        let root = directory.path().join("data");
        Self::configured(directory, proxying(filesystem(&root, false), remote), None).await
    }

    /// The same with its storage below `prefix` in the bucket of `s3`.
    pub async fn proxy_on_s3(remote: &str, s3: &SeaweedFs, prefix: &str) -> Self {
        Self::configured(directory(), proxying(bucket(s3, prefix, false), remote), None).await
    }

    async fn serve(
        directory: TempDir,
        storage: Value,
        user: Option<(&'static str, &'static str)>,
    ) -> Self {
        Self::configured(directory, json!({ "storage": storage }), user).await
    }

    async fn configured(
        directory: TempDir,
        mut config: Value,
        user: Option<(&'static str, &'static str)>,
    ) -> Self {
        let port = PortLease::take();
        config["version"] = json!("0.1");
        // Who measures a proxy asks its upstream, and writing a line for each request would be measured.
        let is_proxy = config.get("proxy").is_some();
        config["log"] = json!({ "level": "warn", "accesslog": { "disabled": is_proxy } });
        config["http"] =
            json!({ "addr": format!("127.0.0.1:{}", port.port()), "secret": "testkit" });
        if user.is_some() {
            let file = directory.path().join("htpasswd");
            fs::write(&file, HTPASSWD).expect("the directory is writable");
            config["auth"] = json!({ "htpasswd": { "realm": "testkit", "path": file } });
        }
        let file = directory.path().join("config.yml");
        // Every JSON document is a YAML document.
        fs::write(&file, config.to_string()).expect("the directory is writable");
        let program = binaries::find("docker-registry");
        let mut process = Process::new("docker-registry", program, directory.path());
        process.arg("serve").arg(file);
        let mut registry = Self { process, port, user, _directory: directory };
        registry.restart().await;
        registry
    }

    /// `http://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("http://{}", self.host())
    }

    /// `127.0.0.1:<port>`, as it stands in an image name.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port.port())
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The Basic credentials it asks for.
    pub fn user(&self) -> Option<(&'static str, &'static str)> {
        self.user
    }

    pub async fn push(&self, image: &Image, repository: &str, tag: &str) {
        match self.user {
            Some(user) => image.push_as(&self.url(), repository, tag, user).await,
            None => image.push(&self.url(), repository, tag).await,
        }
    }

    /// Starts it again on the same port and storage, killing it first when it still runs.
    pub async fn restart(&mut self) {
        self.process.kill9();
        self.process.spawn();
        let (url, client) = (self.url() + "/v2/", client::plain());
        let process = &mut self.process;
        until("an answer of docker-registry", START_LIMIT, async || {
            process.assert_running();
            client.get(&url).send().await.ok()
        })
        .await;
    }

    /// Kills it with SIGKILL; port and storage stay for [`Registry::restart`].
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Freezes it: connections stay open, nothing is answered.
    pub fn freeze(&self) {
        self.process.signal(process::SIGSTOP);
    }

    /// Ends [`Registry::freeze`].
    pub fn thaw(&self) {
        self.process.signal(process::SIGCONT);
    }

    /// Requests answered so far, oldest first; the probes of its start (`GET /v2/`) included.
    pub fn accesses(&self) -> Vec<Access> {
        self.process.log().lines().filter_map(Access::parse).collect()
    }

    /// How many requests of `method` had a path that fits `pattern` (`*` stands for anything).
    pub fn count(&self, method: &str, pattern: &str) -> usize {
        let fits = |a: &Access| a.method == method && pattern::matches(pattern, &a.path);
        self.accesses().into_iter().filter(fits).count()
    }

    /// What the server wrote.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

fn directory() -> TempDir {
    let directory = tempfile::Builder::new().prefix("hydrant-registry-").tempdir();
    directory.expect("the temporary directory is writable")
}

fn filesystem(root: &Path, read_only: bool) -> Value {
    json!({
        "filesystem": { "rootdirectory": root },
        "maintenance": { "readonly": { "enabled": read_only } },
    })
}

fn proxying(storage: Value, remote: &str) -> Value {
    json!({ "storage": storage, "proxy": { "remoteurl": remote } })
}

fn bucket(s3: &SeaweedFs, prefix: &str, read_only: bool) -> Value {
    json!({
        "s3": {
            "accesskey": s3.access_key(),
            "secretkey": s3.secret_key(),
            "region": "us-east-1",
            "regionendpoint": s3.endpoint(),
            "bucket": s3.bucket(),
            "rootdirectory": format!("/{}", prefix.trim_matches('/')),
            "secure": false,
            "v4auth": true,
        },
        "redirect": { "disable": true },
        "maintenance": { "readonly": { "enabled": read_only } },
    })
}

impl Access {
    /// Reads a line in Apache's combined format: `… "GET /v2/ HTTP/1.1" 200 2 "" "agent"`.
    fn parse(line: &str) -> Option<Self> {
        let mut quoted = line.splitn(3, '"').skip(1);
        let mut request = quoted.next()?.split(' ');
        let (method, target) = (request.next()?, request.next()?);
        request.next().filter(|version| version.starts_with("HTTP/"))?;
        let mut answer = quoted.next()?.split_whitespace();
        Some(Self {
            method: method.to_owned(),
            path: target.split('?').next()?.to_owned(),
            status: answer.next()?.parse().ok()?,
            bytes: answer.next()?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ImageBuilder;

    #[tokio::test]
    async fn a_pushed_image_is_served_and_requests_are_counted() {
        let registry = Registry::start().await;
        let image = Image::multi_arch(1, &["linux/amd64", "linux/arm64"], &[1_000, 100_000]);
        registry.push(&image, "lab/app", "1").await;
        let url = registry.url() + "/v2/lab/app/manifests/1";
        let get = client::plain().get(url).header("accept", image.media_type.as_str());
        assert_eq!(get.send().await.unwrap().bytes().await.unwrap(), image.manifest);
        until("the access log", START_LIMIT, async || {
            (registry.count("GET", "/v2/lab/*/manifests/*") == 1).then_some(())
        })
        .await;
        assert_eq!(registry.count("PUT", "/v2/lab/app/blobs/uploads/*"), 6);
    }

    #[tokio::test]
    async fn a_registry_with_password_refuses_strangers() {
        let registry = Registry::start_with_password().await;
        registry.push(&ImageBuilder::new(1).layer(10).build(), "lab/app", "1").await;
        let stranger = client::plain().get(registry.url() + "/v2/lab/app/tags/list").send().await;
        assert_eq!(stranger.unwrap().status(), 401);
    }

    #[tokio::test]
    async fn a_registry_reads_a_directory_that_another_wrote() {
        let writer = Registry::start().await;
        writer.push(&ImageBuilder::new(1).layer(10).build(), "lab/app", "1").await;
        let reader = Registry::on_directory(&writer._directory.path().join("data")).await;
        let tags = client::plain().get(reader.url() + "/v2/lab/app/tags/list").send().await;
        assert!(tags.unwrap().text().await.unwrap().contains("\"1\""));
    }

    #[tokio::test]
    async fn a_proxy_reads_from_its_remote() {
        let remote = Registry::start().await;
        remote.push(&ImageBuilder::new(1).layer(10).build(), "lab/app", "1").await;
        let proxy = Registry::proxy(&remote.url()).await;
        let get = client::plain().get(proxy.url() + "/v2/lab/app/manifests/1");
        let get = get.header("accept", "application/vnd.oci.image.manifest.v1+json");
        assert_eq!(get.send().await.unwrap().status(), 200);
    }

    #[tokio::test]
    async fn a_registry_reads_a_bucket_that_another_wrote() {
        let s3 = SeaweedFs::start().await;
        let writer = Registry::serve(directory(), bucket(&s3, "some/prefix", false), None).await;
        let image = ImageBuilder::new(1).layer(10).build();
        writer.push(&image, "lab/app", "1").await;
        let reader = Registry::on_s3(&s3, "some/prefix").await;
        let url = format!("{}/v2/lab/app/blobs/{}", reader.url(), image.blobs[1].digest);
        let blob = client::plain().get(url).send().await.unwrap().bytes().await.unwrap();
        assert_eq!(blob, image.blobs[1].content.bytes());
        assert!(!s3.objects("some/prefix/docker/registry/v2/").await.is_empty());
    }
}
