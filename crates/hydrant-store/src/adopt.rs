//! From a spool file into storage: in parts while it is being written, visible once it is sealed.
//!
//! Where the file lies on the file system of a directory store, it is not copied at all: it gets its
//! name there. Where it goes on with an upload that a dead process left (`left_upload.rs`), the parts of
//! that are not in the file, and what was hashed of them is somebody else's word: so the whole is read
//! back before it counts as stored, and quarantined if it is not what it should be.

use crate::{
    Backend, Store,
    directory::{Directory, Naming},
    error::{StoreError, classify},
    key::Key,
    left_upload::Standing,
    object::timed,
    parts::Buffers,
    quarantine::Scrubbed,
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
    buffers: Arc<Buffers>,
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
        let way = match (&self.backend, &file.before, &file.held) {
            (Backend::S3(s3), Some(left), _) => {
                let upload = Upload::resume(self, s3, self.at(Key::Blob(digest)), left);
                Way::Parts { upload: Some(upload), at: left.bytes() }
            }
            (Backend::Directory(directory), None, Held::File(file))
                if directory.is_beside(file) =>
            {
                Way::Name(directory.clone(), file.clone())
            }
            (Backend::Directory(_) | Backend::S3(_) | Backend::Memory, ..) => Way::PARTS,
        };
        let (digest, file, buffers) = (digest.clone(), file.clone(), self.parts.buffers());
        SpooledWrite { store: self.clone(), digest, file, buffers, way, links: Vec::new() }
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
        let upload = match upload {
            Some(upload) => upload,
            None => upload.insert(Upload::begin(&self.store, path.clone()).await?),
        };
        upload.room().await?;
        let part = self.store.parts.read(&self.buffers, &self.file, *at..end).await;
        upload.put(part.map_err(|error| unread(&path, error))?).await?;
        *at = end;
        Ok(())
    }

    /// Waits until one more part is stored; for ever when none is under way.
    pub async fn advanced(&mut self) -> Result<(), StoreError> {
        match &mut self.way {
            Way::Parts { upload: Some(upload), .. } => upload.advanced().await,
            Way::Parts { upload: None, .. } | Way::Name(..) => std::future::pending().await,
        }
    }

    /// What is stored so far, where another process could go on with it.
    pub fn standing(&self) -> Option<Standing> {
        match &self.way {
            Way::Parts { upload: Some(upload), .. } => upload.standing(),
            Way::Parts { upload: None, .. } | Way::Name(..) => None,
        }
    }

    /// Leaves what is stored so far to whoever goes on with it, should this process not finish it.
    pub fn outlasts(&mut self) {
        if let Way::Parts { upload: Some(upload), .. } = &mut self.way {
            upload.outlasts();
        }
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

    /// Gives the blob up for a reason that is not storage's, and waits until nothing of it is left,
    /// unless somebody is to go on with it.
    pub async fn give_up(self) {
        if let Way::Parts { upload: Some(upload), .. } = self.way {
            upload.give_up().await;
        }
    }

    /// Gives the blob up because storage failed, and waits until nothing of it is left, unless
    /// another process began it and the next one can go on with it.
    pub async fn failed(self, error: &StoreError) {
        if let Way::Parts { upload: Some(upload), .. } = self.way {
            upload.failed(error).await;
        }
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
        let goes_on = self.file.before.is_some();
        let Way::Parts { upload, at } = self.way else { return Ok(size) };
        let rest = self.store.parts.read(&self.buffers, &self.file, at..size).await;
        let rest = rest.map_err(|error| unread(&path, error))?;
        match upload {
            Some(upload) => {
                complete(&self.store, &path, upload, rest, size).await?;
                if goes_on {
                    self.store.prove(&self.digest).await?;
                }
                self.store.put_in_order(links).await?;
            }
            None if goes_on => {
                let reason = "it goes on with an upload of another store".to_owned();
                return Err(StoreError::Mismatch { digest: self.digest, reason });
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

impl Store {
    /// Reads content back that was made visible; what is not what it should be is quarantined.
    async fn prove(&self, digest: &Digest) -> Result<(), StoreError> {
        match self.scrub(digest).await? {
            Scrubbed::Sound => Ok(()),
            Scrubbed::Missing => Err(StoreError::Missing { digest: digest.clone() }),
            Scrubbed::Quarantined => {
                let reason = "the upload gone on with had other bytes than was said".to_owned();
                Err(StoreError::Mismatch { digest: digest.clone(), reason })
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{faulty::Fault, spooled::Spooled};
    use hydrant_proto::Algorithm;

    fn spooled(parts: usize) -> (Spooled, Digest) {
        let bytes = vec![7; parts * PART_BYTES + 5];
        let mut spooled = Spooled::create(&std::env::temp_dir(), Algorithm::Sha256).unwrap();
        spooled.append(&bytes).unwrap();
        (spooled, Digest::of(&bytes))
    }

    async fn has_room_for(parts: usize, store: Store) {
        store.settled().await;
        assert_eq!(store.parts.room(), parts);
    }

    #[tokio::test]
    async fn uploads_that_are_given_up_return_their_buffers() {
        let store = Store::in_memory();
        let room = store.parts.room();
        let (spooled, digest) = spooled(2);
        let mut aborted = store.begin_spooled(&digest, &spooled.reader());
        aborted.send().await.unwrap();
        aborted.abort().await;
        let mut dropped = store.begin_spooled(&digest, &spooled.reader());
        dropped.send().await.unwrap();
        drop(dropped);
        has_room_for(room, store).await;
    }

    #[tokio::test]
    async fn uploads_that_fail_return_their_buffers() {
        let (store, fired) = Store::faulty(Fault::LosesParts);
        let room = store.parts.room();
        let (spooled, digest) = spooled(4);
        let write = store.begin_spooled(&digest, &spooled.reader());
        let sealed = spooled.seal(&digest).unwrap();
        assert!(write.commit(&sealed).await.is_err());
        assert!(fired.load(std::sync::atomic::Ordering::Relaxed) > 0);
        has_room_for(room, store).await;
    }
}
