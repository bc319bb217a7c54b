//! nginx, as the limit of what serving files can cost and as a cache before the upstream.

use crate::usage::Watched;
use anyhow::{Context, Result, bail};
use hydrant_testkit::{PortLease, Process, binaries};
use std::{fs, path::Path, time::Duration};
use tempfile::TempDir;
use tokio::{net::TcpStream, time::sleep};

/// A running nginx with a worker per core; gone when dropped.
pub struct Nginx {
    process: Process,
    port: PortLease,
    directory: TempDir,
}

/// Told in reports: how the peer was set.
pub const STATIC_AND_CACHE: &str = "worker_processes auto, sendfile, unlimited keep-alive, no \
     access log; static with open_file_cache; cache with proxy_cache_lock, one cache per instance";

impl Nginx {
    /// Serves the files below `directory` as they lie there, by their path.
    pub async fn files(directory: TempDir) -> Result<Self> {
        let locations = "
            open_file_cache max=10000; open_file_cache_valid 1h;
            location ~ /manifests/ { default_type application/vnd.oci.image.index.v1+json; }
            location / { default_type application/octet-stream; }";
        Self::start(directory, "", locations).await
    }

    /// Caches what comes from `upstream` (`http://host:port`).
    pub async fn cache(upstream: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hydrant-load-").tempdir()?;
        let cache = "proxy_cache_path cache levels=1:2 keys_zone=cache:16m max_size=100g \
             inactive=1d use_temp_path=off;";
        let locations = format!(
            "location / {{
                proxy_pass {upstream};
                proxy_http_version 1.1;
                proxy_set_header Connection \"\";
                proxy_cache cache;
                proxy_cache_key $uri;
                proxy_cache_valid 200 1h;
                proxy_cache_lock on;
                proxy_cache_lock_timeout 1h;
                proxy_cache_lock_age 1h;
            }}"
        );
        Self::start(directory, cache, &locations).await
    }

    async fn start(directory: TempDir, http: &str, locations: &str) -> Result<Self> {
        let port = PortLease::take();
        for name in ["files", "tmp", "cache"] {
            fs::create_dir_all(directory.path().join(name))?;
        }
        let config = directory.path().join("nginx.conf");
        fs::write(&config, text(port.port(), http, locations, &user()))?;
        let mut process = Process::new("nginx", binaries::find("nginx"), directory.path());
        process.arg("-p").arg(directory.path()).arg("-c").arg(&config);
        process.args(["-e", "stderr"]);
        process.spawn();
        let mut nginx = Self { process, port, directory };
        nginx.ready().await?;
        Ok(nginx)
    }

    async fn ready(&mut self) -> Result<()> {
        for _ in 0..200 {
            if !self.process.is_running() {
                bail!("nginx ended: {}", self.process.log().trim());
            }
            if TcpStream::connect(self.host()).await.is_ok() {
                return Ok(());
            }
            sleep(Duration::from_millis(10)).await;
        }
        bail!("nginx does not listen: {}", self.process.log().trim())
    }

    /// `host:port`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port.port())
    }

    pub fn watched(&self) -> Watched {
        Watched::new("nginx", self.process.pid())
    }

    /// Where the files lie that [`Nginx::files`] serves.
    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    /// Puts a file where `path` of a URL finds it.
    pub fn put(root: &Path, path: &str, bytes: &[u8]) -> Result<()> {
        let file = root.join("files").join(path.trim_start_matches('/'));
        let parent = file.parent().context("a path has a directory")?;
        fs::create_dir_all(parent)?;
        fs::write(&file, bytes).with_context(|| format!("write {}", file.display()))
    }
}

/// Workers of root would run as nobody, who may not enter the directory.
fn user() -> String {
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| {
        use std::os::unix::fs::MetadataExt;
        own.uid() == 0
    });
    if is_root { "user root;".to_owned() } else { String::new() }
}

fn text(port: u16, http: &str, locations: &str, user: &str) -> String {
    format!(
        "daemon off; {user} worker_processes auto; pid nginx.pid; error_log stderr warn;
        worker_rlimit_nofile 65536;
        events {{ worker_connections 16384; }}
        http {{
            access_log off; sendfile on; tcp_nodelay on;
            keepalive_requests 100000000; keepalive_timeout 1h;
            client_body_temp_path tmp/body; proxy_temp_path tmp/proxy;
            fastcgi_temp_path tmp/fastcgi; uwsgi_temp_path tmp/uwsgi; scgi_temp_path tmp/scgi;
            {http}
            server {{ listen 127.0.0.1:{port} backlog=4096; root files; {locations} }}
        }}"
    )
}
