//! Writes to a directory that are under way: files beside their place, as `<name>#<number>`, which
//! `object_store` leaves out of its listings.
//!
//! A number is never used twice. Whoever ends the write of another, or sweeps one that was left
//! behind, so takes nothing from a third; and a writer whose file was taken finds nothing under its
//! name, and never somebody else's half-written file, to give the place to.

use crate::directory::{make_parents, sync_parent};
use futures::{FutureExt, future::BoxFuture};
use object_store::{MultipartUpload, PutPayload, PutResult, Result, UploadPart};
use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::task::spawn_blocking;
use ulid::Ulid;

/// The file in which a write waits for its name: another one for each write.
pub(crate) fn staged(file: &Path) -> PathBuf {
    let mut staged = file.as_os_str().to_owned();
    staged.push(format!("#{}", Ulid::new().0));
    staged.into()
}

/// The place that a staged file is meant for, as far as the name tells.
pub(crate) fn place_of(staged: &str) -> Option<&str> {
    let (place, number) = staged.rsplit_once('#')?;
    (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then_some(place)
}

/// A large object that is written in parts.
#[derive(Debug)]
pub(crate) struct StagedUpload {
    place: PathBuf,
    staged: PathBuf,
    file: Arc<File>,
    /// Bytes of the parts so far.
    length: u64,
}

impl StagedUpload {
    /// Blocking.
    pub(crate) fn begin(place: PathBuf) -> io::Result<Self> {
        loop {
            let staged = staged(&place);
            match File::options().write(true).create_new(true).open(&staged) {
                Ok(file) => return Ok(Self { place, staged, file: Arc::new(file), length: 0 }),
                // Also when it was removed with its last object just now.
                Err(error) if error.kind() == ErrorKind::NotFound => make_parents(&place)?,
                Err(error) => return Err(error),
            }
        }
    }
}

impl MultipartUpload for StagedUpload {
    fn put_part(&mut self, part: PutPayload) -> UploadPart {
        let (file, mut at) = (Arc::clone(&self.file), self.length);
        self.length += part.content_length() as u64;
        let write = move || {
            part.iter().try_for_each(|piece| {
                let begin = at;
                at += piece.len() as u64;
                file.write_all_at(piece, begin)
            })
        };
        blocking(write).boxed()
    }

    fn complete<'a, 'b>(&'a mut self) -> BoxFuture<'b, Result<PutResult>>
    where
        'a: 'b,
        Self: 'b,
    {
        let (file, staged) = (Arc::clone(&self.file), self.staged.clone());
        let place = self.place.clone();
        let publish = move || {
            file.sync_all()?;
            fs::rename(&staged, &place)?;
            sync_parent(&place)?;
            Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
        };
        blocking(publish).boxed()
    }

    fn abort<'a, 'b>(&'a mut self) -> BoxFuture<'b, Result<()>>
    where
        'a: 'b,
        Self: 'b,
    {
        let staged = self.staged.clone();
        let remove = move || match fs::remove_file(staged) {
            // Somebody else ended it, or it has its name.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        };
        blocking(remove).boxed()
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let done = spawn_blocking(work).await.expect("writing a file does not panic");
    done.map_err(|source| object_store::Error::Generic {
        store: "directory",
        source: source.into(),
    })
}
