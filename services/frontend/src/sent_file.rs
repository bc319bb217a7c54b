//! A stored blob, or a part of one, that the kernel sends from its file.
//!
//! The file hashed to its digest when it was last read (`hydrant_store::SoundFile`) and is looked at
//! again before each piece, so that a change of it cuts the answer off before its end. Pieces that
//! are not in memory are waited for by a thread for blocking work, so that a disk holds up only who
//! reads from it.

use crate::body::Broken;
use bytes::Bytes;
use hydrant_boot::serve::{MAX_STAND_IN, Outlet};
use hydrant_store::SoundFile;
use std::{
    io,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::task::{JoinHandle, spawn_blocking};

/// Pieces after which others get their turn, however fast this client reads.
const IN_A_ROW: u32 = 8;

pub struct SentFile {
    file: SoundFile,
    outlet: Outlet,
    /// What is left.
    range: Range<u64>,
    loading: Option<JoinHandle<io::Result<()>>>,
    in_a_row: u32,
}

impl SentFile {
    pub fn new(file: SoundFile, range: Range<u64>, outlet: Outlet) -> Self {
        Self { file, outlet, range, loading: None, in_a_row: 0 }
    }

    pub fn is_at_end(&self) -> bool {
        self.range.is_empty()
    }

    /// The next piece, by what stands for it.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        if self.is_at_end() {
            return Poll::Ready(None);
        }
        if self.in_a_row == IN_A_ROW {
            self.in_a_row = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let piece = self.range.start..self.range.end.min(self.range.start + MAX_STAND_IN as u64);
        let loaded = ready!(self.poll_loaded(cx, &piece));
        if let Err(error) = loaded.and_then(|()| self.unchanged()) {
            tracing::warn!(%error, "stored blob is cut off");
            return Poll::Ready(Some(Err(Broken(error.to_string()))));
        }
        self.in_a_row += 1;
        self.range.start = piece.end;
        Poll::Ready(Some(Ok(self.outlet.stand_in(self.file.file(), piece))))
    }

    fn unchanged(&self) -> io::Result<()> {
        let changed = || io::Error::other("its file was changed while it was sent");
        self.file.is_sound().then_some(()).ok_or_else(changed)
    }

    /// Waits until the piece is in memory.
    fn poll_loaded(&mut self, cx: &mut Context<'_>, piece: &Range<u64>) -> Poll<io::Result<()>> {
        if self.loading.is_none() && self.file.is_in_memory(piece) {
            return Poll::Ready(Ok(()));
        }
        let (file, piece) = (&self.file, piece);
        let loading = self.loading.get_or_insert_with(|| {
            let (file, piece) = (file.clone(), piece.clone());
            spawn_blocking(move || file.load(piece))
        });
        let loaded = ready!(Pin::new(loading).poll(cx));
        self.loading = None;
        Poll::Ready(loaded.map_err(io::Error::other).flatten())
    }
}
