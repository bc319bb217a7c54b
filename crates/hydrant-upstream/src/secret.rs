//! Secrets, read where the configuration says they live, each time they are used.

use hydrant_rules::{Credential, Secret};
use secrecy::{ExposeSecret, SecretString};
use std::{collections::HashMap, fmt, path::Path, sync::Arc};
use tokio::io::AsyncReadExt;

/// Longest user name or password, in bytes.
const MAX_BYTES: usize = 16 * 1024;

/// Where environment variables come from. Files are always read from the file system.
#[derive(Clone, Default)]
pub struct SecretSource {
    /// `None` is the environment of the process.
    env: Option<Arc<HashMap<String, SecretString>>>,
}

/// A user name and a password, in memory only while they are used.
pub struct Login {
    pub username: SecretString,
    pub password: SecretString,
}

/// The secret is not where the configuration says, or is not usable. Never holds the secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("credential {credential}: {place} {problem}")]
pub struct SecretError {
    credential: String,
    place: String,
    problem: String,
}

impl SecretSource {
    /// A source whose environment is `variables` instead of the process's own.
    pub fn with_variables(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let env = variables.into_iter().map(|(name, value)| (name, value.into())).collect();
        Self { env: Some(Arc::new(env)) }
    }

    /// Reads both parts of `credential`.
    pub async fn login(&self, credential: &Credential) -> Result<Login, SecretError> {
        let read = async |secret: &Secret| {
            self.read(secret).await.map_err(|problem| SecretError {
                credential: credential.name.to_string(),
                place: place(secret),
                problem,
            })
        };
        let username = read(&credential.username).await?;
        if username.expose_secret().contains(':') {
            let problem = "holds a colon, which no user name may".to_owned();
            let place = place(&credential.username);
            return Err(SecretError { credential: credential.name.to_string(), place, problem });
        }
        Ok(Login { username, password: read(&credential.password).await? })
    }

    async fn read(&self, secret: &Secret) -> Result<SecretString, String> {
        let value = match secret {
            Secret::Env(name) => self.variable(name)?,
            Secret::File(path) => file(path).await?,
        };
        match value.expose_secret() {
            "" => Err("is empty".to_owned()),
            text if text.len() > MAX_BYTES => Err(format!("has more than {MAX_BYTES} bytes")),
            text if text.contains(char::is_control) => Err("holds control characters".to_owned()),
            _ => Ok(value),
        }
    }

    fn variable(&self, name: &str) -> Result<SecretString, String> {
        let found = match &self.env {
            Some(variables) => variables.get(name).cloned(),
            None => std::env::var(name).ok().map(SecretString::from),
        };
        found.ok_or_else(|| "is not set, or is not UTF-8".to_owned())
    }
}

async fn file(path: &Path) -> Result<SecretString, String> {
    let mut text = String::new();
    let unreadable = |error| format!("cannot be read: {error}");
    // Opening a pipe waits for its other end, and keeps a thread that others need.
    if !tokio::fs::metadata(path).await.map_err(unreadable)?.is_file() {
        return Err("is no regular file".to_owned());
    }
    let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    // Two bytes more than allowed: one for the newline, one to notice the excess.
    file.take(MAX_BYTES as u64 + 2).read_to_string(&mut text).await.map_err(unreadable)?;
    let length = text.strip_suffix('\n').map_or(text.len(), str::len);
    text.truncate(length);
    Ok(text.into())
}

fn place(secret: &Secret) -> String {
    match secret {
        Secret::Env(name) => format!("environment variable {name}"),
        Secret::File(path) => format!("file {}", path.display()),
    }
}

impl fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let env = if self.env.is_some() { "given variables" } else { "process" };
        f.debug_struct("SecretSource").field("env", &env).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(username: Secret, password: Secret) -> Credential {
        Credential { name: "lab-user".parse().unwrap(), username, password }
    }

    fn source(value: &str) -> SecretSource {
        SecretSource::with_variables([
            ("U".to_owned(), "user".to_owned()),
            ("P".to_owned(), value.to_owned()),
        ])
    }

    #[tokio::test]
    async fn files_are_read_anew_and_lose_one_newline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let wanted = credential(Secret::Env("U".into()), Secret::File(path.clone()));
        for (content, expected) in [("s3cret\n", "s3cret"), ("rotated", "rotated")] {
            std::fs::write(&path, content).unwrap();
            let login = source("").login(&wanted).await.unwrap();
            assert_eq!(login.password.expose_secret(), expected);
        }
    }

    #[tokio::test]
    async fn unusable_secrets_are_refused_without_being_shown() {
        let wanted = credential(Secret::Env("U".into()), Secret::Env("P".into()));
        for bad in ["", "hunter2\r\nX-Evil: 1", "hunter2\n", &"hunter2".repeat(1_000_000)] {
            let error = source(bad).login(&wanted).await.err().unwrap().to_string();
            assert!(!error.contains("hunter2"), "{error}");
            assert!(error.starts_with("credential lab-user: environment variable P "), "{error}");
        }
        let colon = credential(Secret::Env("P".into()), Secret::Env("U".into()));
        assert!(source("a:b").login(&colon).await.is_err());
        let missing = credential(Secret::Env("U".into()), Secret::File("/nonexistent/x".into()));
        assert!(source("").login(&missing).await.is_err());
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for odd in [pipe, "/dev/zero".into(), "/".into()] {
            let odd = credential(Secret::Env("U".into()), Secret::File(odd));
            let error = source("").login(&odd).await.err().unwrap().to_string();
            assert!(error.ends_with("is no regular file"), "{error}");
        }
        assert!(!format!("{:?}", source("hunter2")).contains("hunter2"));
    }
}
