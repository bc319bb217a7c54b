//! Reads a webhook's signing secret from where it lives, each time it is used, so that a rotated
//! file is in effect at the next delivery.

use crate::signature::{Key, WeakSecret};
use hydrant_rules::Secret;
use secrecy::{ExposeSecret as _, SecretString};
use std::{io, path::PathBuf};

/// Longest secret file read, in bytes; 64 bytes are 95 characters in this form.
const LONGEST: u64 = 4 * 1024;

/// Why no delivery can be signed. Names the place, never the content.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("the environment variable {0} of the webhook secret is not set")]
    Unset(String),
    #[error("the file {path} of the webhook secret cannot be read: {source}")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("the file {0} of the webhook secret is no regular file")]
    Irregular(PathBuf),
    #[error("the file {0} of the webhook secret has more than {LONGEST} bytes")]
    TooLong(PathBuf),
    #[error(transparent)]
    Weak(#[from] WeakSecret),
}

/// The key to sign with now.
pub async fn key(secret: &Secret) -> Result<Key, SecretError> {
    let text = match secret {
        Secret::Env(name) => from_environment(name)?,
        Secret::File(path) => from_file(path.clone()).await?,
    };
    Ok(Key::parse(text.expose_secret())?)
}

fn from_environment(name: &str) -> Result<SecretString, SecretError> {
    std::env::var(name).map(SecretString::from).map_err(|_| SecretError::Unset(name.to_owned()))
}

async fn from_file(path: PathBuf) -> Result<SecretString, SecretError> {
    let unreadable = |source| SecretError::Unreadable { path: path.clone(), source };
    let found = tokio::fs::metadata(&path).await.map_err(unreadable)?;
    // A pipe waits for its other end, and a device may have none.
    if !found.is_file() {
        return Err(SecretError::Irregular(path));
    }
    if found.len() > LONGEST {
        return Err(SecretError::TooLong(path));
    }
    tokio::fs::read_to_string(&path).await.map(SecretString::from).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[tokio::test]
    async fn a_rotated_file_is_seen_at_the_next_use() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let secret = Secret::File(path.clone());
        let now = "2026-11-23T12:00:00Z".parse().unwrap();
        assert!(matches!(key(&secret).await, Err(SecretError::Unreadable { .. })));
        fs::write(&path, format!("whsec_{}\n", "A".repeat(40))).unwrap();
        let before = key(&secret).await.unwrap().sign("id", now, b"");
        fs::write(&path, format!("whsec_{}\n", "B".repeat(40))).unwrap();
        assert_ne!(key(&secret).await.unwrap().sign("id", now, b""), before);
        fs::write(&path, "short").unwrap();
        assert!(matches!(key(&secret).await, Err(SecretError::Weak(_))));
        fs::write(&path, "A".repeat(5_000)).unwrap();
        assert!(matches!(key(&secret).await, Err(SecretError::TooLong(_))));
    }

    #[tokio::test]
    async fn what_is_no_regular_file_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for odd in [pipe, "/dev/zero".into(), "/".into()] {
            let read = key(&Secret::File(odd.clone())).await;
            assert!(matches!(read, Err(SecretError::Irregular(_))), "{}", odd.display());
        }
    }

    #[tokio::test]
    async fn a_missing_variable_is_named() {
        let error = key(&Secret::Env("HYDRANT_NO_SUCH_SECRET".into())).await.unwrap_err();
        assert!(error.to_string().contains("HYDRANT_NO_SUCH_SECRET"), "{error}");
    }
}
