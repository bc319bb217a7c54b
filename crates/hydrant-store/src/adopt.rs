//! From a spool file into storage: in parts while it is being written, visible once it is sealed.
//!
//! Where the file lies on the file system of a directory store, it is not copied at all: it gets its
//! name there.

use crate::{
    Backend, Store,
    directory::{Directory, Naming},
    error::{StoreError, classify},
    key::Key,
    object::timed,
    spooled::{Held, Sealed, SpooledReader},
    upload::{PART_BYTES, Upload},
    writer::complete,
};
use bytes::Bytes;
use hydrant_proto::{Digest, RepositoryName};
use hydrant_telemetry::metrics::StoreOperation;
use object_store::path::Path;
use std::{fs::File, io, sync::Arc};
use tokio::task::spawn_blocking;

/// A spooled blob on its way into storage. Dropped without [`SpooledWrite::commit`] it is aborted
/// in the background; [`Store::settled`] waits for that.
pub struct SpooledWrite {
    store: Store,
    digest: Digest,
    file: SpooledReader,
    way: Way,
    /// Repositories it becomes readable in.
    links: Vec<RepositoryName>,
}

enum Way {
    /// The file becomes the object.
    Name(Arc<Directory>, Arc<File>),
    /// Its bytes are sent: those before `at` in whole parts, if there were any.
    Parts { upload: Option<Upload>, at: u64 },
}

impl Store {
    /// Begins to write a blob from the file it is spooled in. No request is made before the first
    /// part.
    pub fn begin_spooled(&self, digest: &Digest, file: &SpooledReader) -> SpooledWrite {
        let way = match (&self.backend, &file.held) {
            (Backend::Directory(directory), Held::File(file)) if directory.is_beside(file) => {
                Way::Name(directory.clone(), file.clone())
            }
            (Backend::Directory(_) | Backend::S3(_) | Backend::Memory, _) => Way::PARTS,
        };
        let (digest, file) = (digest.clone(), file.clone());
        SpooledWrite { store: self.clone(), digest, file, way, links: Vec::new() }
    }
}

impl Way {
    const PARTS: Self = Self::Parts { upload: None, at: 0 };
}

impl SpooledWrite {
    /// Where the next part begins, if there are parts to be sent before the commit.
    pub fn next_part(&self) -> Option<u64> {
        match &self.way {
            Way::Name(..) => None,
            Way::Parts { at, .. } => Some(*at),
        }
    }

    /// Sends the next part, of [`PART_BYTES`], which must have been spooled; waits while too many
    /// are under way. Nothing is visible yet.
    pub async fn send(&mut self) -> Result<(), StoreError> {
        let path = self.path();
        let Way::Parts { upload, at } = &mut self.way else { return Ok(()) };
        let end = *at + PART_BYTES as u64;
        let part = self.file.read(*at..end).await.map_err(|error| unread(&path, error))?;
        let upload = match upload {
            Some(upload) => upload,
            None => upload.insert(Upload::begin(&self.store, path).await?),
        };
        upload.put(part).await?;
        *at = end;
        Ok(())
    }

    /// Has the blob made readable in a repository as soon as it is committed.
    pub fn link_in(&mut self, repository: &RepositoryName) {
        self.links.push(repository.clone());
    }

    /// Makes the blob visible, then links it. Returns its size in bytes. After an error nothing of
    /// this writer is visible, except the blob alone, where linking failed, and after
    /// [`StoreError::Unknown`].
    pub async fn commit(mut self, sealed: &Sealed) -> Result<u64, StoreError> {
        if !self.file.held.is(&sealed.held) || self.digest != sealed.digest {
            self.abort().await;
            let reason = "another file was sealed".to_owned();
            return Err(StoreError::Mismatch { digest: sealed.digest.clone(), reason });
        }
        if let Way::Name(directory, file) = &self.way {
            match name(directory.clone(), file.clone(), self.path()).await? {
                Naming::Done => {
                    self.file.forget();
                    self.store.put_in_order(self.link_objects()).await?;
                    return Ok(sealed.size);
                }
                Naming::Impossible => self.way = Way::PARTS,
            }
        }
        let file = self.file.clone();
        self.finish(sealed.size).await.inspect(|_| file.forget())
    }

    /// Gives the blob up and waits until nothing of it is left.
    pub async fn abort(self) {
        if let Way::Parts { upload: Some(upload), .. } = self.way {
            upload.abort().await;
        }
    }

    fn path(&self) -> Path {
        self.store.at(Key::Blob(&self.digest))
    }

    async fn finish(mut self, size: u64) -> Result<u64, StoreError> {
        while self.next_part().is_some_and(|at| at + PART_BYTES as u64 <= size) {
            self.send().await?;
        }
        let (path, links) = (self.path(), self.link_objects());
        let Way::Parts { upload, at } = self.way else { return Ok(size) };
        let rest = self.file.read(at..size).await.map_err(|error| unread(&path, error))?;
        match upload {
            Some(upload) => {
                complete(&self.store, &path, upload, rest, size).await?;
                self.store.put_in_order(links).await?;
            }
            None => {
                let objects = [(path, rest)].into_iter().chain(links).collect();
                self.store.put_in_order(objects).await.map_err(StoreError::in_doubt)?;
            }
        }
        Ok(size)
    }

    fn link_objects(&self) -> Vec<(Path, Bytes)> {
        let text = Bytes::from(self.digest.to_string());
        let place = |repository| self.store.at(Key::LayerLink(repository, &self.digest));
        self.links.iter().map(|repository| (place(repository), text.clone())).collect()
    }
}

async fn name(
    directory: Arc<Directory>,
    file: Arc<File>,
    path: Path,
) -> Result<Naming, StoreError> {
    let key = path.to_string();
    let naming = async {
        let named = spawn_blocking(move || directory.name(&file, &key)).await;
        let failed = |error| object_store::Error::Generic { store: "directory", source: error };
        named.expect("naming does not panic").map_err(|error| failed(Box::new(error)))
    };
    timed(StoreOperation::Put, naming).await.map_err(|error| classify(&path, error))
}

/// The spool file itself cannot be read.
fn unread(path: &Path, error: io::Error) -> StoreError {
    StoreError::Unavailable { key: path.to_string(), cause: Arc::new(error) }
}
