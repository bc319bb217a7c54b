//! Where on its disk a file will be. A file system that is told so beforehand need not find a place
//! for each page while it is written, which costs several times what copying the page does, and finds
//! a better one.

use rustix::fs::{FallocateFlags, fallocate};
use std::{fs::File, ops::Range};

/// Files smaller than this are not worth the call, in bytes.
const LEAST: u64 = 1024 * 1024;
/// How far ahead of the writer: what a flight takes of the disk without having it, at most.
const AHEAD: u64 = 32 * 1024 * 1024;

/// What is laid out of a file. By default nothing ever is.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    size: u64,
    upto: u64,
}

impl Layout {
    /// For a file that will have so many bytes.
    pub fn of(size: u64) -> Self {
        let size = if size < LEAST { 0 } else { size };
        Self { size, upto: 0 }
    }

    /// To be called before those bytes are written. The length of the file stays what is written.
    pub fn reach(&mut self, file: &File, writing: Range<u64>) {
        if writing.end <= self.upto || writing.end > self.size {
            return;
        }
        let (from, upto) = (self.upto.max(writing.start), self.size.min(writing.end + AHEAD));
        self.upto = match fallocate(file, FallocateFlags::KEEP_SIZE, from, upto - from) {
            Ok(()) => upto,
            // Not every file system can, and whether there is room is for the write to tell.
            Err(_) => self.size,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    /// Length, and bytes of disk.
    fn of(file: &File) -> (u64, u64) {
        let meta = file.metadata().unwrap();
        (meta.len(), meta.blocks() * 512)
    }

    #[test]
    fn a_file_is_laid_out_some_way_ahead_and_no_longer_for_it() {
        let file = tempfile::tempfile().unwrap();
        let size = AHEAD + 10 * LEAST;
        let mut layout = Layout::of(size);
        // The file system takes some more for itself.
        let is_about = |laid_out: u64| {
            let (length, taken) = of(&file);
            length == 0 && (laid_out..laid_out + LEAST).contains(&taken)
        };
        layout.reach(&file, 0..LEAST);
        assert!(is_about(AHEAD + LEAST));
        layout.reach(&file, AHEAD..AHEAD + LEAST);
        assert!(is_about(AHEAD + LEAST), "it is far enough");
        layout.reach(&file, AHEAD + LEAST..AHEAD + 2 * LEAST);
        assert!(is_about(size), "there is no more");
    }

    #[test]
    fn small_files_and_those_of_no_known_size_are_not() {
        let file = tempfile::tempfile().unwrap();
        for mut layout in [Layout::of(LEAST - 1), Layout::default()] {
            layout.reach(&file, 0..10);
        }
        assert_eq!(of(&file), (0, 0));
    }
}
