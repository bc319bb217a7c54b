//! Bytes of a file, read at their place into memory that is not cleared first: at these sizes clearing
//! costs as much as reading.

use bytes::Bytes;
use rustix::{
    buffer::spare_capacity,
    io::{pread, retry_on_intr},
};
use std::{
    fs::File,
    io::{Error, ErrorKind, Result},
    ops::Range,
};

/// The bytes `range` of the file, which must have them; blocking.
pub(crate) fn read_exact(file: &File, range: Range<u64>) -> Result<Bytes> {
    let mut bytes = Vec::new();
    read_onto(file, range, &mut bytes)?;
    Ok(bytes.into())
}

/// The same, into memory that is at hand, and empty.
pub(crate) fn read_onto(file: &File, range: Range<u64>, bytes: &mut Vec<u8>) -> Result<()> {
    let length = usize::try_from(range.end - range.start).map_err(Error::other)?;
    bytes.reserve_exact(length);
    while bytes.len() < length {
        let at = range.start + bytes.len() as u64;
        match retry_on_intr(|| pread(file, spare_capacity(bytes), at))? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            _ => bytes.truncate(length),
        }
    }
    Ok(())
}
