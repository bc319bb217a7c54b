//! Bytes that lie here and there in memory, written to their place in a file without being put side by
//! side first.

use rustix::io::{pwritev, retry_on_intr};
use std::{
    fs::File,
    io::{ErrorKind, IoSlice, Result},
};

/// Most of them in one call (`IOV_MAX`).
const MOST: usize = 1024;

/// All of the chunks, one behind the other; blocking.
pub(crate) fn write_all(file: &File, chunks: &[impl AsRef<[u8]>], mut at: u64) -> Result<()> {
    let mut slices: Vec<_> = chunks.iter().map(|chunk| IoSlice::new(chunk.as_ref())).collect();
    let mut left = slices.as_mut_slice();
    // What is empty is no reason to call.
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        let some = &left[..left.len().min(MOST)];
        match retry_on_intr(|| pwritev(file, some, at))? {
            0 => return Err(ErrorKind::WriteZero.into()),
            written => {
                at += written as u64;
                IoSlice::advance_slices(&mut left, written);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pread::read_exact;

    #[test]
    fn chunks_of_any_number_and_length_lie_one_behind_the_other() {
        let file = tempfile::tempfile().unwrap();
        let chunks: Vec<_> = (0..3 * MOST).map(|n| vec![n as u8; n % 3]).collect();
        write_all(&file, &chunks, 5).unwrap();
        write_all(&file, &[b""], 5).unwrap();
        let all = chunks.concat();
        assert_eq!(file.metadata().unwrap().len(), 5 + all.len() as u64);
        assert_eq!(read_exact(&file, 5..5 + all.len() as u64).unwrap(), all);
    }
}
