//! Files of a directory whose bytes need not be hashed again, open to be sent as they are.
//!
//! A file is *sound* while it is the one, unchanged, that hashed to its digest (`sound.rs`). Only
//! then may its bytes go out unhashed.

use crate::{Backend, Store, identity::Identity, key::Key};
use hydrant_proto::Digest;
use rustix::{
    fs::{Advice, fadvise},
    io::{Errno, ReadWriteFlags, preadv2},
};
use std::{
    fs::File,
    io::{self, IoSliceMut},
    num::NonZeroU64,
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
    time::Duration,
};

/// How long a file is kept open, so that what was deleted gives its room back soon.
const OPEN_FOR: Duration = Duration::from_secs(60);
/// Bytes read at a time only to have them in memory.
const LOADED_AT_ONCE: usize = 128 * 1024;
/// How far the disk is sent ahead of a range that had to be waited for.
const READ_AHEAD: u64 = 4 * 1024 * 1024;

/// A sound file. Clones share its descriptor.
#[derive(Clone, Debug)]
pub struct SoundFile {
    file: Arc<File>,
    identity: Identity,
}

impl SoundFile {
    /// In bytes.
    pub fn size(&self) -> u64 {
        self.identity.size
    }

    /// Its bytes, to be read at given places only: the position is everybody's.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Whether it is still as it was when it hashed to its digest. Does not block: the system has
    /// the answer in memory while the file is open.
    pub fn is_sound(&self) -> bool {
        Identity::of(&self.file).is_ok_and(|now| now == self.identity)
    }

    /// Whether the first and the last of the bytes are in memory. Systems read ahead, and forget, in
    /// long pieces: so mostly are those between. Where they are not, whoever sends waits for the disk
    /// as every server does that sends files without asking, for one piece of at most 1 MiB, and the
    /// next look finds out. A look at every 128 KiB took 3 % of a core from those who are never
    /// in that case.
    pub fn is_in_memory(&self, range: &Range<u64>) -> bool {
        let ends = [range.start, range.end.saturating_sub(1)];
        ends.into_iter().all(|at| matches!(probe(&self.file, at), Probed::InMemory))
    }

    /// Waits until the bytes are in memory, and has more of them read ahead. Blocking.
    pub fn load(&self, range: Range<u64>) -> io::Result<()> {
        // Advice that is not taken costs time only.
        let _ = fadvise(&*self.file, range.start, NonZeroU64::new(READ_AHEAD), Advice::WillNeed);
        let (mut at, mut buffer) = (range.start, vec![0; LOADED_AT_ONCE]);
        while at < range.end {
            match self.file.read_at(&mut buffer, at)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => at += read as u64,
            }
        }
        Ok(())
    }

    /// Opens the file if it is the one that was found sound, and on a file system that can tell what
    /// is in memory. Blocking.
    fn open(path: &Path, identity: Identity) -> Option<Self> {
        let file = File::open(path).ok()?;
        let is_same = Identity::of(&file).is_ok_and(|now| now == identity);
        let is_fit = is_same && !matches!(probe(&file, 0), Probed::Unknown);
        is_fit.then(|| Self { file: Arc::new(file), identity })
    }
}

enum Probed {
    InMemory,
    OnDisk,
    /// The file system cannot tell, as those over a network cannot.
    Unknown,
}

fn probe(file: &File, at: u64) -> Probed {
    let mut byte = [0];
    match preadv2(file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT) {
        Ok(_) => Probed::InMemory,
        Err(Errno::AGAIN) => Probed::OnDisk,
        Err(_) => Probed::Unknown,
    }
}

impl Store {
    /// The blob as a file that need not be hashed again; `None` when it is not known to be sound, or
    /// is not in a file. Then [`Store::read_blob`] reads it, and finds out.
    pub async fn sound_file(&self, digest: &Digest) -> Option<SoundFile> {
        let Backend::Directory(directory) = &self.backend else { return None };
        let identity = self.sound.identity(digest)?;
        if let Some(open) = self.sound.opened(digest).filter(SoundFile::is_sound) {
            return Some(open);
        }
        self.sound.close(digest);
        let path = directory.file(&self.at(Key::Blob(digest)));
        let opening = tokio::task::spawn_blocking(move || SoundFile::open(&path, identity));
        let file = opening.await.ok().flatten()?;
        self.keep_open(digest, &file);
        Some(file)
    }

    fn keep_open(&self, digest: &Digest, file: &SoundFile) {
        if self.sound.keep_open(digest, file.clone()) {
            let (sound, digest) = (Arc::clone(&self.sound), digest.clone());
            self.background.spawn(async move {
                sound.until_stop(tokio::time::sleep(OPEN_FOR)).await;
                sound.close(&digest);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{StoreConfig, StoreUrl};
    use bytes::Bytes;
    use futures::StreamExt;
    use hydrant_testkit::until;
    use std::io::Write;

    fn file_of(bytes: &[u8]) -> (tempfile::NamedTempFile, SoundFile) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let identity = Identity::of(file.as_file()).unwrap();
        let sound = SoundFile { file: Arc::new(file.reopen().unwrap()), identity };
        (file, sound)
    }

    /// Until a file that is changed now has another time of change.
    fn wait_for_tick(identity: &Identity) {
        let is_past = |now: Identity| now.changed > identity.changed;
        while !is_past(Identity::of(&tempfile::tempfile().unwrap()).unwrap()) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn any_change_of_the_file_ends_its_soundness() {
        type Change = fn(&Path);
        let changes: [(&str, Change); 5] = [
            ("truncated", |path| {
                File::options().write(true).open(path).unwrap().set_len(2).unwrap()
            }),
            ("written", |path| {
                let file = File::options().write(true).open(path).unwrap();
                file.write_all_at(b"x", 1).unwrap();
            }),
            ("removed", |path| std::fs::remove_file(path).unwrap()),
            ("replaced", |path| {
                let other = path.with_extension("other");
                std::fs::write(&other, b"abcd").unwrap();
                std::fs::rename(other, path).unwrap();
            }),
            ("written, its time set back", |path| {
                let file = File::options().write(true).open(path).unwrap();
                let time = file.metadata().unwrap().modified().unwrap();
                file.write_all_at(b"x", 1).unwrap();
                file.set_modified(time).unwrap();
            }),
        ];
        for (what, change) in changes {
            let (file, sound) = file_of(b"abcd");
            assert!(sound.is_sound());
            wait_for_tick(&sound.identity);
            change(file.path());
            assert!(!sound.is_sound(), "{what}");
            let opened = SoundFile::open(file.path(), sound.identity);
            assert!(opened.is_none(), "{what}, and opened again");
        }
    }

    #[test]
    fn what_was_loaded_is_in_memory_and_what_is_missing_is_an_error() {
        let (_file, sound) = file_of(&vec![7; 1_000_000]);
        sound.load(0..1_000_000).unwrap();
        assert!(sound.is_in_memory(&(0..1_000_000)));
        assert!(sound.load(0..1_000_001).is_err());
    }

    #[tokio::test]
    async fn files_are_not_kept_open_for_ever() {
        let (directory, bytes) = (tempfile::tempdir().unwrap(), Bytes::from(vec![7; 500_000]));
        let url = StoreUrl::Directory(directory.path().into());
        let store = Store::open(&StoreConfig::from_env(url)).unwrap();
        let digest = Digest::of(&bytes);
        store.put_blob_bytes(&digest, bytes).await.unwrap();
        assert!(store.sound_file(&digest).await.is_none(), "nobody has read it");
        until("it is known sound", Duration::from_secs(20), async || {
            let read = store.read_blob(&digest, None).await.unwrap().unwrap();
            read.stream.for_each(async |bytes| drop(bytes.unwrap())).await;
            store.sound_file(&digest).await
        })
        .await;
        assert!(store.sound.opened(&digest).is_some());
        tokio::time::pause();
        tokio::time::sleep(OPEN_FOR * 2).await;
        assert!(store.sound.opened(&digest).is_none());
        assert!(store.sound_file(&digest).await.is_some(), "it is opened again");
    }
}
