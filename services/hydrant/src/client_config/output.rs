//! Printing the files, or writing them without losing what others wrote.

use super::{ConfigError, Plan};
use crate::cli::ClientConfig;
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

/// Stands in every file that is all hydrant's.
pub const MARK: &str = "# Written by `hydrant client-config`";

/// One file.
#[derive(Debug)]
pub struct Document {
    /// Where it belongs, absolute.
    pub path: PathBuf,
    pub text: String,
    pub owner: Owner,
}

/// Whose a file is that is there already.
#[derive(Debug, PartialEq, Eq)]
pub enum Owner {
    /// It is replaced if it bears our mark.
    Hydrant,
    /// What others wrote in it is in `text` as well.
    Shared,
}

impl Document {
    pub fn ours(path: impl Into<PathBuf>, text: String) -> Self {
        Self { path: path.into(), text, owner: Owner::Hydrant }
    }

    /// A file that has the name for itself, such as a certificate.
    pub fn shared(path: impl Into<PathBuf>, text: String) -> Self {
        Self { path: path.into(), text, owner: Owner::Shared }
    }
}

pub fn hand_over(plan: &Plan, flags: &ClientConfig) -> Result<(), ConfigError> {
    if flags.write {
        write_all(plan, &flags.root, flags.force)?;
    } else {
        print(plan);
    }
    for note in &plan.notes {
        eprintln!("note: {note}");
    }
    Ok(())
}

/// The files on standard output, where each belongs on standard error.
fn print(plan: &Plan) {
    let mut out = std::io::stdout().lock();
    for document in &plan.documents {
        eprintln!("{}:", document.path.display());
        // A reader that went away wants no more.
        let _ = writeln!(out, "{}", document.text.trim_end());
    }
}

/// All of them, or none: what may not be replaced is found before anything is written.
fn write_all(plan: &Plan, root: &Path, force: bool) -> Result<(), ConfigError> {
    let placed: Vec<_> = plan.documents.iter().map(|one| (below(root, &one.path), one)).collect();
    for (path, document) in &placed {
        let theirs = document.owner == Owner::Hydrant && is_foreign(path);
        if theirs && !force {
            return Err(ConfigError::Foreign {
                file: path.display().to_string(),
                remedy: "lay the printed one over it by hand, or replace it with --force",
            });
        }
    }
    for (path, document) in placed {
        let failed =
            |cause| ConfigError::File { what: "write", file: path.display().to_string(), cause };
        write(&path, &document.text).map_err(failed)?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}

fn is_foreign(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|text| !text.starts_with(MARK))
}

/// Whole or not at all: the client may read it at any moment.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".hydrant-new");
    let new = directory.join(name);
    fs::write(&new, text)?;
    fs::rename(&new, path)
}

/// `path` as seen from another root.
pub fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}
