//! The resource document on this machine's disk, for a start without the bus.

use hydrant_rules::Resources;
use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process,
};

const FILE: &str = "resources.json";

/// The last document that took effect, in the data directory. Processes that share the directory
/// share it: they follow the same document, and a write is one rename.
#[derive(Clone, Debug)]
pub(crate) struct LastKnownGood(PathBuf);

impl LastKnownGood {
    pub(crate) fn new(data: &Path) -> Self {
        Self(data.join(FILE))
    }

    /// The document; `None` when there is none or it cannot be read, which is logged.
    pub(crate) fn load(&self) -> Option<Resources> {
        let bytes = match fs::read(&self.0) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => return self.unusable(&error),
        };
        serde_json::from_slice(&bytes).or_else(|error| self.unusable(&error).ok_or(())).ok()
    }

    /// Keeps `document`. A failure is logged and changes nothing else: the bus has it too.
    pub(crate) fn save(&self, document: &[u8]) {
        if let Err(error) = self.replace(document) {
            let file = self.0.display();
            tracing::warn!(%file, %error, "cannot keep the configuration for a start without nats");
        }
    }

    fn replace(&self, document: &[u8]) -> io::Result<()> {
        let draft = self.0.with_extension(format!("json.{}", process::id()));
        let mut file = File::create(&draft)?;
        file.write_all(document)?;
        file.sync_all()?;
        fs::rename(&draft, &self.0)
    }

    fn unusable(&self, error: &dyn std::error::Error) -> Option<Resources> {
        let file = self.0.display();
        tracing::warn!(%file, %error, "the last known configuration is not readable, doing without");
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let kept = LastKnownGood::new(dir.path());
        assert_eq!(kept.load(), None);
        kept.save(br#"{"upstream":[{"name":"lab","endpoint":"https://lab.example"}]}"#);
        assert_eq!(kept.load().unwrap().upstream.len(), 1);
        kept.save(br#"{"upstream":[{"na"#);
        assert_eq!(kept.load(), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
