//! Files that a process was writing into a directory store when it died. The object store writes
//! `<name>#<number>` and renames it when it is whole.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

/// Removes staging files that nobody has written to for `dead_after`; returns how many. What
/// cannot be read or removed is left to the next sweep.
pub(crate) fn sweep(root: &Path, dead_after: Duration) -> usize {
    let Ok(entries) = fs::read_dir(root) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => sweep(&entry.path(), dead_after),
            Ok(_) if is_dead(&entry, dead_after) => {
                usize::from(fs::remove_file(entry.path()).is_ok())
            }
            _ => 0,
        })
        .sum()
}

fn is_dead(entry: &fs::DirEntry, dead_after: Duration) -> bool {
    let name = entry.file_name();
    let is_staging = name
        .to_str()
        .and_then(|name| name.rsplit_once('#'))
        .is_some_and(|(_, number)| number.bytes().all(|b| b.is_ascii_digit()));
    let age = || {
        let modified = entry.metadata().ok()?.modified().ok()?;
        SystemTime::now().duration_since(modified).ok()
    };
    is_staging && age().is_some_and(|age| age >= dead_after)
}
