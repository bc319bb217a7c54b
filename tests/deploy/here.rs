//! What stands on this machine for the names, ports and directories of a deployment.

use hydrant_testkit::PortLease;
use std::{fs, path::PathBuf};
use tempfile::TempDir;

/// Replaces text of manifests by what it is here; in the order in which it was told.
#[derive(Debug)]
pub struct Here {
    directory: TempDir,
    ports: Vec<PortLease>,
    stands_for: Vec<(String, String)>,
}

impl Here {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("the temporary directory is writable");
        Self { directory, ports: Vec::new(), stands_for: Vec::new() }
    }

    pub fn path(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// A directory of this name.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    pub fn port(&mut self) -> u16 {
        let lease = PortLease::take();
        let port = lease.port();
        self.ports.push(lease);
        port
    }

    /// An address of this machine that nobody else takes.
    pub fn address(&mut self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    pub fn is(&mut self, theirs: impl Into<String>, ours: impl Into<String>) {
        self.stands_for.push((theirs.into(), ours.into()));
    }

    /// Gives an address to a name with a port, such as `hydrant-nats:4222`.
    pub fn serves(&mut self, service: &str) -> String {
        let address = self.address();
        self.is(service, &address);
        address
    }

    /// The text with everything put in.
    pub fn put_in(&self, text: &str) -> String {
        let replace = |text: String, (theirs, ours): &(String, String)| text.replace(theirs, ours);
        self.stands_for.iter().fold(text.to_owned(), replace)
    }
}
