//! Where the embedded nats-server keeps its things, and the configuration written for it.

use anyhow::Context as _;
use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::TcpListener,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

const USER: &str = "hydrant";
/// Bytes of the server's own words shown when it does not start.
const LAST_WORDS: usize = 2_000;

/// The directory of the server, with its port and password.
#[derive(Clone)]
pub struct Place {
    dir: PathBuf,
    pub port: u16,
    password: String,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("dir", &self.dir).field("port", &self.port).finish()
    }
}

impl Place {
    /// Makes the directory and writes the configuration. The port is the one of the last time
    /// while that is free.
    pub fn prepare(dir: &Path) -> anyhow::Result<Self> {
        let dir = std::path::absolute(dir).context("find the directory of nats-server")?;
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let port = port(&dir).context("find a free port for nats-server")?;
        let password = password().context("make a password for nats-server")?;
        let place = Self { dir, port, password };
        let path = place.config();
        write_private(&path, &place.text()).with_context(|| format!("write {}", path.display()))?;
        Ok(place)
    }

    pub fn config(&self) -> PathBuf {
        self.dir.join("nats-server.conf")
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("nats-server.log")
    }

    /// What it writes before it has read its configuration, or when it cannot.
    pub fn errors(&self) -> PathBuf {
        self.dir.join("nats-server.err")
    }

    pub fn url(&self) -> String {
        format!("nats://{USER}:{}@127.0.0.1:{}", self.password, self.port)
    }

    /// The end of what the server wrote.
    pub fn last_words(&self) -> String {
        let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
        let said = format!("{}{}", read(self.log()), read(self.errors()));
        let cut = said.len().saturating_sub(LAST_WORDS);
        let cut = (cut..said.len()).find(|at| said.is_char_boundary(*at)).unwrap_or(said.len());
        said[cut..].trim().to_owned()
    }

    /// JetStream syncs each write before it answers: a job that was accepted survives a power cut.
    fn text(&self) -> String {
        let (store, log) = (self.dir.join("jetstream"), self.log());
        format!(
            "# Written by hydrant at each start; changes are lost.\n\
             server_name: hydrant\n\
             listen: \"127.0.0.1:{}\"\n\
             authorization {{ user: {USER}, password: \"{}\" }}\n\
             jetstream {{ store_dir: {store:?}, sync_interval: always }}\n\
             log_file: {log:?}\n\
             logfile_size_limit: 16MB\n\
             logfile_max_num: 3\n",
            self.port, self.password
        )
    }
}

fn port(dir: &Path) -> std::io::Result<u16> {
    let file = dir.join("port");
    let last: Option<u16> =
        fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port));
    let held = match last.map(free) {
        Some(Ok(held)) => held,
        _ => free(0)?,
    };
    let port = held.local_addr()?.port();
    fs::write(file, port.to_string())?;
    Ok(port)
}

/// 128 random bits, new at each start.
fn password() -> std::io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Writes a file that only its owner can read.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file =
        File::options().create(true).write(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_kept_while_it_is_free_and_the_password_never() {
        let dir = tempfile::tempdir().unwrap();
        let first = Place::prepare(dir.path()).unwrap();
        let second = Place::prepare(dir.path()).unwrap();
        assert_eq!(first.port, second.port);
        assert_ne!(first.password, second.password);
        let taken = TcpListener::bind(("127.0.0.1", first.port)).unwrap();
        assert_ne!(Place::prepare(dir.path()).unwrap().port, first.port);
        drop(taken);
        let text = fs::read_to_string(second.config()).unwrap();
        assert!(text.contains("sync_interval: always") && text.contains("127.0.0.1"));
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(second.config()).unwrap());
        assert_eq!(mode & 0o777, 0o600);
    }
}
