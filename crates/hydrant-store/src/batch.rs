//! Small writes to a directory, many at once: one thread takes whatever waits, writes all of it,
//! has it made durable, gives it its names, and has those made durable.
//!
//! Each file and each directory can be synced by itself, which is best for a few; for many at once
//! one `syncfs` costs less than all of those, though it also writes what others have not yet synced.
//! Where that is much, such as a large spool on a slow disk, each is synced by itself all the same:
//! who waits may hold a lock.
//! What was written in one round is named in the next, so that a round syncs once for both.
//!
//! Files handed in together get their names in their order, in one round: where one of them speaks of
//! another, the other is there first.
//!
//! A file is staged beside its place (`staged.rs`), as the large ones are.

use crate::{staged, unwritten::unwritten};
use bytes::Bytes;
use object_store::PutMode;
use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};
use tokio::sync::oneshot;

/// Files of one round from which on the whole file system is synced instead of each of them: a file
/// takes three to five syncs with its directories.
const MANY: usize = 12;
/// Bytes not yet on disk, of anybody on this machine, for which the whole file system is still
/// synced: a slow disk takes some seconds for them, and a lock is waited for ten.
const MOST_UNWRITTEN: u64 = 64 * 1024 * 1024;
/// Most files of one round, which bounds how long one waits for the others.
const MOST: usize = 256;
/// Tries at a name for a staged file, and at a directory that is removed at the same time.
const TRIES: u32 = 1_000;

/// What a write becomes when something has its name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    Replace,
    Refuse,
}

impl Existing {
    /// `None` for a mode that needs more than a name.
    pub(crate) fn of(mode: &PutMode) -> Option<Self> {
        match mode {
            PutMode::Overwrite => Some(Self::Replace),
            PutMode::Create => Some(Self::Refuse),
            PutMode::Update(_) => None,
        }
    }
}

/// Where writes are handed in. The thread ends when this is dropped and all is written.
#[derive(Debug)]
pub(crate) struct Batches(mpsc::Sender<Order>);

/// One file to be written.
pub(crate) struct Write {
    pub file: PathBuf,
    pub bytes: Bytes,
    pub existing: Existing,
}

struct Order {
    writes: Vec<Write>,
    done: oneshot::Sender<io::Result<()>>,
}

/// An order of which only the names are missing.
struct Staged {
    order: Order,
    /// One for each write.
    staged: Vec<PathBuf>,
}

/// What is to be synced at the end of a round.
#[derive(Default)]
struct Unsynced {
    files: Vec<File>,
    directories: BTreeSet<PathBuf>,
}

impl Batches {
    /// For files below `root`, which exists.
    pub(crate) fn start(root: &Path) -> io::Result<Self> {
        let (sender, orders) = mpsc::channel();
        let root = File::open(root)?;
        thread::Builder::new()
            .name("hydrant-writes".to_owned())
            .spawn(move || write_all(&orders, &root))?;
        Ok(Self(sender))
    }

    /// Writes files; they are durable when this returns. After an error those before the one that
    /// failed may be there. A caller that goes away stops nothing.
    pub(crate) async fn write(&self, writes: Vec<Write>) -> io::Result<()> {
        let (done, written) = oneshot::channel();
        let gone = |_| io::Error::other("the writing thread has ended");
        self.0.send(Order { writes, done }).map_err(|_| gone(()))?;
        written.await.map_err(|_| gone(()))?
    }
}

/// Rounds until nobody can hand in anything more.
fn write_all(orders: &mpsc::Receiver<Order>, root: &File) {
    let mut staged: Vec<Staged> = Vec::new();
    loop {
        let new = match staged.is_empty() {
            true => orders.recv().ok(),
            false => orders.try_recv().ok(),
        };
        if new.is_none() && staged.is_empty() {
            return;
        }
        let mut unsynced = Unsynced::default();
        let named = name_all(std::mem::take(&mut staged), &mut unsynced);
        for order in new.into_iter().chain(orders.try_iter()).take(MOST) {
            match stage_all(&order, &mut unsynced) {
                Ok(paths) => staged.push(Staged { order, staged: paths }),
                Err(error) => answer(order, Err(error)),
            }
        }
        let synced = unsynced.sync(root);
        let outcome = || synced.as_ref().copied().map_err(again);
        named.into_iter().for_each(|order| answer(order, outcome()));
        if synced.is_err() {
            for Staged { order, staged } in std::mem::take(&mut staged) {
                remove(&staged);
                answer(order, outcome());
            }
        }
    }
}

/// Gives all their names; returns the orders that have them now.
fn name_all(staged: Vec<Staged>, unsynced: &mut Unsynced) -> Vec<Order> {
    let mut named = Vec::with_capacity(staged.len());
    for Staged { order, staged } in staged {
        match name_in_order(&order.writes, &staged, unsynced) {
            Ok(()) => named.push(order),
            Err(error) => answer(order, Err(error)),
        }
    }
    named
}

fn name_in_order(writes: &[Write], staged: &[PathBuf], unsynced: &mut Unsynced) -> io::Result<()> {
    for (at, (write, path)) in writes.iter().zip(staged).enumerate() {
        if let Err(error) = name(write, path) {
            remove(&staged[at..]);
            return Err(error);
        }
        unsynced.directories.extend(write.file.parent().map(Path::to_owned));
    }
    Ok(())
}

/// What is left behind is a dead write, which the sweep removes.
fn remove(staged: &[PathBuf]) {
    for path in staged {
        let _ = fs::remove_file(path);
    }
}

fn name(write: &Write, staged: &Path) -> io::Result<()> {
    match write.existing {
        Existing::Replace => fs::rename(staged, &write.file),
        Existing::Refuse => rename_to_nothing(staged, &write.file),
    }
}

fn rename_to_nothing(staged: &Path, file: &Path) -> io::Result<()> {
    match renameat_with(CWD, staged, CWD, file, RenameFlags::NOREPLACE) {
        // Not every file system can, and a plain rename would replace what is there.
        Err(Errno::INVAL | Errno::NOSYS) => {
            fs::hard_link(staged, file)?;
            remove(&[staged.to_owned()]);
            Ok(())
        }
        renamed => Ok(renamed?),
    }
}

fn stage_all(order: &Order, unsynced: &mut Unsynced) -> io::Result<Vec<PathBuf>> {
    let mut staged = Vec::with_capacity(order.writes.len());
    for write in &order.writes {
        match stage(write, unsynced) {
            Ok(path) => staged.push(path),
            Err(error) => {
                remove(&staged);
                return Err(error);
            }
        }
    }
    Ok(staged)
}

fn stage(write: &Write, unsynced: &mut Unsynced) -> io::Result<PathBuf> {
    let mut tries = 1;
    loop {
        let path = staged::staged(&write.file);
        let mut file = match File::options().write(true).create_new(true).open(&path) {
            Ok(file) => file,
            Err(error) if tries >= TRIES => return Err(error),
            Err(error) => {
                match error.kind() {
                    io::ErrorKind::AlreadyExists => {}
                    // Directories are removed with their last object, maybe just now.
                    io::ErrorKind::NotFound => make_parents(&write.file, unsynced)?,
                    _ => return Err(error),
                }
                tries += 1;
                continue;
            }
        };
        if let Err(error) = file.write_all(&write.bytes) {
            remove(&[path]);
            return Err(error);
        }
        unsynced.files.push(file);
        return Ok(path);
    }
}

/// Makes the directories that are missing above `file`, and notes which have a new entry.
fn make_parents(file: &Path, unsynced: &mut Unsynced) -> io::Result<()> {
    let missing: Vec<_> = file.ancestors().skip(1).take_while(|path| !path.exists()).collect();
    for path in missing.into_iter().rev() {
        match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            // Its own parent has just been removed: the next try begins above it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        }
        unsynced.directories.extend(path.parent().map(Path::to_owned));
    }
    Ok(())
}

/// Whether so many writes are best made durable by syncing everything there is.
fn syncs_all(writes: usize, unwritten: impl FnOnce() -> Option<u64>) -> bool {
    writes >= MANY && unwritten().is_some_and(|bytes| bytes <= MOST_UNWRITTEN)
}

impl Unsynced {
    fn sync(self, root: &File) -> io::Result<()> {
        if self.files.is_empty() && self.directories.is_empty() {
            return Ok(());
        }
        let writes = self.files.len().max(self.directories.len());
        if syncs_all(writes, unwritten) && self.is_on_the_file_system_of(root)? {
            return Ok(rustix::fs::syncfs(root)?);
        }
        self.files.iter().try_for_each(File::sync_all)?;
        self.directories.iter().try_for_each(|path| match File::open(path) {
            Ok(directory) => directory.sync_all(),
            // It was removed as empty, with what was to be kept in it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        })
    }
}

impl Unsynced {
    /// Below the root others may be mounted, which `syncfs` of the root leaves alone.
    fn is_on_the_file_system_of(&self, root: &File) -> io::Result<bool> {
        let device = root.metadata()?.dev();
        let is_there = |found: fs::Metadata| found.dev() == device;
        let files = self.files.iter().all(|file| file.metadata().is_ok_and(is_there));
        Ok(files && self.directories.iter().all(|path| fs::metadata(path).is_ok_and(is_there)))
    }
}

fn answer(order: Order, outcome: io::Result<()>) {
    // Who has gone away does not want to know.
    let _ = order.done.send(outcome);
}

/// The same failure for another of those it hit.
fn again(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::future::join_all;

    fn one(file: PathBuf, text: &str, existing: Existing) -> Vec<Write> {
        vec![Write { file, bytes: text.to_owned().into(), existing }]
    }

    fn read(root: &Path, name: &str) -> String {
        fs::read_to_string(root.join(name)).unwrap()
    }

    #[tokio::test]
    async fn what_was_answered_lies_whole_under_its_name_and_nothing_beside_it() {
        let root = tempfile::tempdir().unwrap();
        let batches = Batches::start(root.path()).unwrap();
        for count in [1, 3, MANY, MOST + 10] {
            let write = |n: usize| {
                let file = root.path().join(format!("{count}/{n}/a/link"));
                batches.write(one(file, &n.to_string(), Existing::Replace))
            };
            for written in join_all((0..count).map(write)).await {
                written.unwrap();
            }
            for n in 0..count {
                assert_eq!(read(root.path(), &format!("{count}/{n}/a/link")), n.to_string());
                let beside = fs::read_dir(root.path().join(format!("{count}/{n}/a"))).unwrap();
                assert_eq!(beside.count(), 1);
            }
        }
    }

    #[test]
    fn all_is_synced_for_many_writes_unless_that_would_wait_for_much() {
        assert!(syncs_all(MANY, || Some(MOST_UNWRITTEN)));
        assert!(!syncs_all(MANY, || Some(MOST_UNWRITTEN + 1)), "a large spool is dirty");
        assert!(!syncs_all(MANY, || None), "who knows");
        assert!(!syncs_all(MANY - 1, || Some(0)));
    }

    #[tokio::test]
    async fn of_many_that_refuse_what_exists_one_wins() {
        let root = tempfile::tempdir().unwrap();
        let batches = Batches::start(root.path()).unwrap();
        let file = root.path().join("record");
        let write = |n: usize| batches.write(one(file.clone(), &n.to_string(), Existing::Refuse));
        let written = join_all((0..40).map(write)).await;
        let winners: Vec<_> = (0..40).filter(|n| written[*n].is_ok()).collect();
        assert_eq!(winners.len(), 1);
        assert_eq!(read(root.path(), "record"), winners[0].to_string());
        let refused = written.into_iter().filter_map(Result::err);
        assert!(refused.map(|error| error.kind()).all(|k| k == io::ErrorKind::AlreadyExists));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_write_that_fails_harms_no_other() {
        let root = tempfile::tempdir().unwrap();
        let batches = Batches::start(root.path()).unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let (below_a_file, fine) = (root.path().join("file/below"), root.path().join("fine"));
        let bad = batches.write(one(below_a_file, "1", Existing::Replace));
        let good = batches.write(one(fine, "2", Existing::Replace));
        let (bad, good) = tokio::join!(bad, good);
        assert!(bad.is_err());
        good.unwrap();
        assert_eq!(read(root.path(), "fine"), "2");
    }

    #[tokio::test]
    async fn files_handed_in_together_are_named_in_their_order_up_to_the_one_that_fails() {
        let root = tempfile::tempdir().unwrap();
        let batches = Batches::start(root.path()).unwrap();
        fs::write(root.path().join("taken"), "0").unwrap();
        let all = [
            ("first", Existing::Replace),
            ("taken", Existing::Refuse),
            ("last", Existing::Replace),
        ];
        let write = |(name, existing)| one(root.path().join(name), name, existing);
        let error = batches.write(all.into_iter().flat_map(write).collect()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read(root.path(), "first"), "first");
        assert_eq!(read(root.path(), "taken"), "0");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2, "nothing staged is left");
        // What cannot be staged keeps all of them from being named.
        let below = root.path().join("taken/below");
        let both = [
            one(root.path().join("one"), "1", Existing::Replace),
            one(below, "2", Existing::Replace),
        ];
        assert!(batches.write(both.into_iter().flatten().collect()).await.is_err());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_stops_nothing() {
        let root = tempfile::tempdir().unwrap();
        let batches = Batches::start(root.path()).unwrap();
        let left = batches.write(one(root.path().join("left"), "1", Existing::Replace));
        let mut left = Box::pin(left);
        assert!(futures::poll!(&mut left).is_pending());
        drop(left);
        // In the same order: what comes after is written after.
        let next = one(root.path().join("next"), "2", Existing::Replace);
        batches.write(next).await.unwrap();
        assert_eq!(read(root.path(), "left"), "1");
    }
}
