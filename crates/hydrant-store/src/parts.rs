//! The memory of parts on their way into storage: so many buffers and no more, used again and again,
//! since mapping 8 MiB anew for each part has the kernel clear every page of it.
//!
//! Who holds a [`Buffer`] is the only one who does, and what it is frozen into owns it: it comes back
//! when the last of these bytes is gone, whether they were sent or not, and nobody can write to it
//! before.

use crate::{Backend, spooled::SpooledReader, upload::PART_BYTES};
use bytes::Bytes;
use std::{
    io,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Parts of all uploads of a process in memory at once.
const PARTS: usize = 6;
/// A store in memory keeps the very bytes it is given until it has all of them.
const PARTS_IN_MEMORY: usize = Semaphore::MAX_PERMITS;
/// Up to so many bytes the allocator has room at hand.
const SMALL: u64 = 256 * 1024;

/// Bounds the parts of a process, and knows the buffers of those that upload now.
#[derive(Clone)]
pub(crate) struct Parts(Arc<Shared>);

struct Shared {
    /// One for each part.
    slots: Arc<Semaphore>,
    /// Gone, with their memory, when nobody uploads.
    buffers: Mutex<Weak<Buffers>>,
}

/// Buffers to be used again, for as long as somebody holds this.
pub(crate) struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
}

/// Memory for one part.
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    home: Weak<Buffers>,
    _slot: OwnedSemaphorePermit,
}

/// Bytes that came in memory of their own, and count as a part.
struct Counted {
    bytes: Bytes,
    _slot: OwnedSemaphorePermit,
}

impl Parts {
    pub fn new(backend: &Backend) -> Self {
        let slots = Arc::new(Semaphore::new(match backend {
            Backend::Memory => PARTS_IN_MEMORY,
            Backend::Directory(_) | Backend::S3(_) => PARTS,
        }));
        Self(Arc::new(Shared { slots, buffers: Mutex::default() }))
    }

    /// The buffers all uploads share, to be held by each of them while it lasts.
    pub fn buffers(&self) -> Arc<Buffers> {
        let mut known = locked(&self.0.buffers);
        known.upgrade().unwrap_or_else(|| {
            let buffers = Arc::new(Buffers { free: Mutex::default() });
            *known = Arc::downgrade(&buffers);
            buffers
        })
    }

    /// The bytes `range` of a spool file, which must have been written; waits while there are too
    /// many parts.
    pub async fn read(
        &self,
        buffers: &Arc<Buffers>,
        file: &SpooledReader,
        range: Range<u64>,
    ) -> io::Result<Bytes> {
        if range.end - range.start <= SMALL {
            return file.read(range).await;
        }
        let buffer = self.take(buffers).await;
        file.read_into(range, buffer).await.map(Bytes::from_owner)
    }

    /// Counts bytes as a part, until the last of them is gone; waits while there are too many.
    pub async fn count(&self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Counted { bytes, _slot: self.slot().await })
    }

    async fn take(&self, buffers: &Arc<Buffers>) -> Buffer {
        let _slot = self.slot().await;
        let bytes = locked(&buffers.free).pop();
        let bytes = bytes.unwrap_or_else(|| Vec::with_capacity(PART_BYTES));
        Buffer { bytes, home: Arc::downgrade(buffers), _slot }
    }

    async fn slot(&self) -> OwnedSemaphorePermit {
        self.0.slots.clone().acquire_owned().await.expect("never closed")
    }
}

impl Buffer {
    /// Empty, with room for a part.
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// It goes home before its slot is free, so that whoever gets the slot finds it.
impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = self.home.upgrade() {
            let mut bytes = std::mem::take(&mut self.bytes);
            bytes.clear();
            locked(&home.free).push(bytes);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
impl Parts {
    fn six() -> Self {
        let slots = Arc::new(Semaphore::new(PARTS));
        Self(Arc::new(Shared { slots, buffers: Mutex::default() }))
    }

    /// How many parts there is room for.
    pub fn room(&self) -> usize {
        self.0.slots.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn filled(mut buffer: Buffer, with: u8) -> Bytes {
        buffer.bytes().resize(1_000, with);
        Bytes::from_owner(buffer)
    }

    #[tokio::test]
    async fn a_buffer_is_handed_out_again_only_when_the_last_of_its_bytes_is_gone() {
        let parts = Parts::six();
        let buffers = parts.buffers();
        let mut held = Vec::new();
        for n in 0..PARTS {
            held.push(filled(parts.take(&buffers).await, u8::try_from(n).unwrap()));
        }
        let slice = held[0].slice(10..20);
        let place = held.remove(0).as_ptr();
        assert!(parts.take(&buffers).now_or_never().is_none(), "some of its bytes are left");
        assert!(parts.count(Bytes::new()).now_or_never().is_none());
        assert_eq!(slice, [0; 10][..]);
        drop(slice);
        let mut again = parts.take(&buffers).await;
        assert!(again.bytes().is_empty() && again.bytes().as_ptr() == place);
        let again = filled(again, 99);
        assert!(again.iter().all(|byte| *byte == 99));
        for (n, bytes) in (1..).zip(&held) {
            assert!(bytes.iter().all(|byte| *byte == n), "buffer {n} has other bytes");
        }
    }

    #[tokio::test]
    async fn the_memory_is_given_back_when_nobody_uploads() {
        let parts = Parts::six();
        let (first, second) = (parts.buffers(), parts.buffers());
        assert!(Arc::ptr_eq(&first, &second));
        drop(filled(parts.take(&first).await, 1));
        assert_eq!(locked(&first.free).len(), 1);
        let late = filled(parts.take(&first).await, 2);
        let gone = Arc::downgrade(&first);
        drop((first, second));
        assert!(gone.upgrade().is_none());
        assert_eq!(late[..3], [2, 2, 2]);
        drop(late);
        assert_eq!(parts.room(), PARTS);
        assert!(locked(&parts.buffers().free).is_empty());
    }
}
