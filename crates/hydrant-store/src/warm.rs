//! A directory whose files are opened on the spot where the kernel has their names in memory: a look
//! at one costs less than handing it to a thread for blocking work and hearing back from that.
//!
//! Nothing here waits for a disk. What is not in memory, and all that is odd, is left to the library,
//! which does it on such a thread.

use bytes::Bytes;
use futures::{
    StreamExt,
    future::{self, BoxFuture},
    stream::{self, BoxStream},
};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    local::LocalFileSystem, path::Path,
};
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    io::{Errno, ReadWriteFlags, preadv2},
};
use std::{
    fmt,
    fs::{File, Metadata},
    io::{self, IoSliceMut},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::Arc,
};

/// Longest file that is read on the spot, in bytes: copying it takes some microseconds.
const SMALL: u64 = 32 * 1024;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Warm {
    disk: Arc<LocalFileSystem>,
    root: Arc<PathBuf>,
}

impl Warm {
    /// `disk`, which has its root there.
    pub(crate) fn new(disk: LocalFileSystem, root: PathBuf) -> Self {
        Self { disk: Arc::new(disk), root: Arc::new(root) }
    }

    /// What the library would answer, if that takes no disk; `None` when that cannot be told.
    fn look(&self, path: &Path, options: &GetOptions) -> Option<Result<GetResult>> {
        if !is_plain(options) {
            return None;
        }
        let name = self.root.join(path.as_ref());
        match open_cached(&name, OFlags::RDONLY) {
            Ok(file) => found(file, name, path).map(Ok),
            Err(Errno::NOENT) => Some(Err(absent(path))),
            Err(_) => None,
        }
    }

    /// Whether it is known, without a disk, that nothing has this name.
    fn is_absent(&self, path: &Path) -> bool {
        let opened = open_cached(&self.root.join(path.as_ref()), OFlags::PATH);
        matches!(opened, Err(Errno::NOENT))
    }
}

/// Whether all of an object is asked for, as it is.
fn is_plain(options: &GetOptions) -> bool {
    let GetOptions { if_match, if_none_match, if_modified_since, if_unmodified_since, .. } =
        options;
    let tags = if_match.is_none() && if_none_match.is_none();
    let times = if_modified_since.is_none() && if_unmodified_since.is_none();
    tags && times && options.range.is_none()
}

/// Opens a file if that needs nothing but memory. A kernel that cannot say so (before 5.12, or in a
/// sandbox) refuses.
fn open_cached(name: &std::path::Path, how: OFlags) -> std::result::Result<File, Errno> {
    let flags = how | OFlags::CLOEXEC;
    openat2(CWD, name, flags, Mode::empty(), ResolveFlags::CACHED).map(File::from)
}

fn absent(path: &Path) -> Error {
    let source = Box::new(io::Error::from(Errno::NOENT));
    Error::NotFound { path: path.to_string(), source }
}

fn found(file: File, name: PathBuf, path: &Path) -> Option<GetResult> {
    let about = file.metadata().ok().filter(|about| about.is_file())?;
    let meta = ObjectMeta {
        location: path.clone(),
        last_modified: about.modified().ok()?.into(),
        size: about.len(),
        e_tag: Some(e_tag(&about)),
        version: None,
    };
    Some(GetResult {
        payload: GetResultPayload::File(file, name),
        range: 0..meta.size,
        meta,
        attributes: Default::default(),
        extensions: Default::default(),
    })
}

/// As the library makes it, since one of its making may be compared with it.
fn e_tag(about: &Metadata) -> String {
    let (seconds, nanos) = (about.mtime(), about.mtime_nsec());
    let micros = u128::try_from(i128::from(seconds) * 1_000_000 + i128::from(nanos / 1_000));
    format!("\"{:x}-{:x}-{:x}\"", about.ino(), micros.unwrap_or_default(), about.len())
}

/// All bytes of a file just opened, if it is small and they are in memory.
pub(crate) fn read_cached(opened: &GetResult) -> Option<Bytes> {
    let GetResultPayload::File(file, _) = &opened.payload else { return None };
    let size = usize::try_from(opened.meta.size).ok().filter(|size| *size as u64 <= SMALL)?;
    let mut bytes = vec![0; size];
    let read = preadv2(file, &mut [IoSliceMut::new(&mut bytes)], 0, ReadWriteFlags::NOWAIT);
    (read == Ok(size)).then(|| bytes.into())
}

fn one<T: Send + 'static>(item: T) -> BoxStream<'static, T> {
    stream::iter([item]).boxed()
}

fn nothing() -> ListResult {
    ListResult { common_prefixes: Vec::new(), objects: Vec::new(), extensions: Default::default() }
}

impl fmt::Display for Warm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.disk.fmt(f)
    }
}

/// Written as the macro of the trait expands, which is not a dependency of this crate.
impl ObjectStore for Warm {
    fn put_opts<'a, 'b, 'c>(
        &'a self,
        path: &'b Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> BoxFuture<'c, Result<PutResult>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        self.disk.put_opts(path, payload, options)
    }

    fn put_multipart_opts<'a, 'b, 'c>(
        &'a self,
        path: &'b Path,
        options: PutMultipartOptions,
    ) -> BoxFuture<'c, Result<Box<dyn MultipartUpload>>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        self.disk.put_multipart_opts(path, options)
    }

    fn get_opts<'a, 'b, 'c>(
        &'a self,
        path: &'b Path,
        options: GetOptions,
    ) -> BoxFuture<'c, Result<GetResult>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        match self.look(path, &options) {
            Some(answer) => Box::pin(future::ready(answer)),
            None => self.disk.get_opts(path, options),
        }
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let warm = self.clone();
        let delete = move |path: Result<Path>| match path {
            Ok(path) if warm.is_absent(&path) => one(Err(absent(&path))),
            path => warm.disk.delete_stream(one(path)),
        };
        paths.flat_map(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match prefix {
            Some(prefix) if self.is_absent(prefix) => stream::empty().boxed(),
            prefix => self.disk.list(prefix),
        }
    }

    fn list_with_delimiter<'a, 'b, 'c>(
        &'a self,
        prefix: Option<&'b Path>,
    ) -> BoxFuture<'c, Result<ListResult>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        match prefix {
            Some(prefix) if self.is_absent(prefix) => Box::pin(future::ready(Ok(nothing()))),
            prefix => self.disk.list_with_delimiter(prefix),
        }
    }

    fn copy_opts<'a, 'b, 'd, 'c>(
        &'a self,
        from: &'b Path,
        to: &'d Path,
        options: CopyOptions,
    ) -> BoxFuture<'c, Result<()>>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
        Self: 'c,
    {
        self.disk.copy_opts(from, to, options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::ObjectStoreExt;
    use std::fs;

    fn warm(root: &std::path::Path) -> Warm {
        Warm::new(LocalFileSystem::new_with_prefix(root).unwrap(), root.to_owned())
    }

    #[tokio::test]
    async fn what_is_in_memory_is_found_and_missed_on_the_spot_as_the_library_does() {
        let root = tempfile::tempdir().unwrap();
        let (store, path) = (warm(root.path()), Path::from("a/file"));
        assert!(matches!(store.get(&path).await, Err(Error::NotFound { .. })));
        let missed = store.look(&path, &GetOptions::default());
        assert!(matches!(missed, Some(Err(Error::NotFound { .. }))), "{missed:?}");
        fs::create_dir(root.path().join("a")).unwrap();
        fs::write(root.path().join("a/file"), "bytes").unwrap();
        let opened = store.look(&path, &GetOptions::default()).unwrap().unwrap();
        assert_eq!(read_cached(&opened).unwrap(), "bytes");
        let told = store.disk.head(&path).await.unwrap();
        assert_eq!(opened.meta, told);
    }

    #[tokio::test]
    async fn what_is_known_to_be_absent_is_neither_listed_nor_deleted() {
        let root = tempfile::tempdir().unwrap();
        let (store, folder) = (warm(root.path()), Path::from("a"));
        let file = folder.clone().join("file");
        assert!(store.list(Some(&folder)).next().await.is_none());
        assert!(store.is_absent(&folder), "the library has just looked");
        assert!(store.list_with_delimiter(Some(&folder)).await.unwrap().objects.is_empty());
        assert!(matches!(store.delete(&file).await, Err(Error::NotFound { .. })));
        fs::create_dir(root.path().join("a")).unwrap();
        fs::write(root.path().join("a/file"), "bytes").unwrap();
        assert_eq!(store.list(Some(&folder)).count().await, 1);
        assert_eq!(store.list_with_delimiter(Some(&folder)).await.unwrap().objects.len(), 1);
        store.delete(&file).await.unwrap();
        assert!(store.is_absent(&file));
    }

    #[tokio::test]
    async fn what_is_no_file_or_is_long_is_left_to_the_library() {
        let root = tempfile::tempdir().unwrap();
        let (store, long) = (warm(root.path()), Path::from("a/long"));
        fs::create_dir(root.path().join("a")).unwrap();
        assert!(store.look(&Path::from("a"), &GetOptions::default()).is_none());
        assert!(matches!(store.get(&Path::from("a")).await, Err(Error::NotFound { .. })));
        fs::write(root.path().join("a/long"), vec![1; SMALL as usize + 1]).unwrap();
        let opened = store.get(&long).await.unwrap();
        assert!(read_cached(&opened).is_none());
        assert_eq!(opened.bytes().await.unwrap().len() as u64, SMALL + 1);
    }
}
