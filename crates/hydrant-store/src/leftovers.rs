//! What killed processes leave behind: open multipart uploads on S3, staged files in a directory.

use crate::{
    Backend, Store,
    directory::{self, Directory},
    error::StoreError,
    key::{self, Key},
    s3::{OpenUpload, S3},
};
use hydrant_proto::Digest;
use jiff::Timestamp;
use std::{sync::Arc, time::Duration};

/// A write that was begun and neither finished nor given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// The key it was meant for.
    pub key: String,
    /// When it was begun (S3) or last written to (directory).
    pub at: Timestamp,
}

impl Store {
    /// Every write of a blob (S3) or of any object (directory) that is under way or left behind.
    /// Reads the whole directory.
    pub async fn leftovers(&self) -> Result<Vec<Leftover>, StoreError> {
        match &self.backend {
            Backend::Memory => Ok(Vec::new()),
            Backend::S3(s3) => {
                let uploads = self.open_uploads(s3).await?;
                Ok(uploads.into_iter().map(|u| Leftover { key: u.key, at: u.started_at }).collect())
            }
            Backend::Directory(directory) => {
                let files = blocking(directory, Directory::staged_files).await?;
                let leftover = |file: directory::StagedFile| Leftover {
                    key: file.key,
                    at: Timestamp::try_from(file.written_at).unwrap_or(Timestamp::UNIX_EPOCH),
                };
                Ok(files.into_iter().map(leftover).collect())
            }
        }
    }

    /// Removes those older than `older_than`, which must be longer than any upload may take, and
    /// returns how many.
    pub async fn sweep_leftovers(&self, older_than: Duration) -> Result<usize, StoreError> {
        match &self.backend {
            Backend::Memory => Ok(0),
            Backend::S3(s3) => self.abort_uploads(s3, older_than).await,
            Backend::Directory(directory) => {
                blocking(directory, move |directory| remove_staged(directory, older_than)).await
            }
        }
    }

    /// Ends all other writes of a blob that is stored, whether their processes live or not: they
    /// can only repeat what is there. A living one finds that out and carries on.
    pub async fn end_other_writes(&self, digest: &Digest) -> Result<usize, StoreError> {
        let path = self.at(Key::Blob(digest));
        match &self.backend {
            Backend::Memory => Ok(0),
            Backend::S3(s3) => {
                let open = s3.open_uploads(&path).await?;
                for upload in &open {
                    s3.abort(upload).await?;
                }
                Ok(open.len())
            }
            Backend::Directory(directory) => {
                let key = path.to_string();
                blocking(directory, move |directory| directory.remove_staged_of(&key)).await
            }
        }
    }

    async fn open_uploads(&self, s3: &S3) -> Result<Vec<OpenUpload>, StoreError> {
        s3.open_uploads(&self.below(&key::all_blobs())).await
    }

    async fn abort_uploads(&self, s3: &S3, older_than: Duration) -> Result<usize, StoreError> {
        let mut aborted = 0;
        for upload in self.open_uploads(s3).await? {
            if age(upload.started_at) >= older_than {
                s3.abort(&upload).await?;
                aborted += 1;
            }
        }
        Ok(aborted)
    }
}

fn remove_staged(directory: &Directory, older_than: Duration) -> std::io::Result<usize> {
    let mut removed = 0;
    for file in directory.staged_files()? {
        let old = file.written_at.elapsed().is_ok_and(|age| age >= older_than);
        removed += usize::from(old && directory::remove(&file)?);
    }
    Ok(removed)
}

fn age(at: Timestamp) -> Duration {
    Duration::try_from(Timestamp::now().duration_since(at)).unwrap_or_default()
}

async fn blocking<T: Send + 'static>(
    directory: &Arc<Directory>,
    work: impl FnOnce(&Directory) -> std::io::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    let directory = Arc::clone(directory);
    let done = tokio::task::spawn_blocking(move || work(&directory)).await;
    done.expect("the walk neither panics nor is cancelled").map_err(|error| {
        StoreError::Unavailable { key: "staged files".to_owned(), cause: Arc::new(error) }
    })
}
