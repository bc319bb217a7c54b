//! The socket of a connection: sends bytes as they are, and stand-ins as the files they stand for.

use super::{
    outlet::{Outlet, is_stand_in, lost},
    slots::Standing,
};
use rustix::net::{SendFlags, send};
use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

pub struct Socket {
    stream: TcpStream,
    outlet: Outlet,
    standing: Arc<Standing>,
}

impl Socket {
    pub fn new(stream: TcpStream, outlet: Outlet, standing: Arc<Standing>) -> Self {
        Self { stream, outlet, standing }
    }

    fn poll_slices(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.outlet.is_empty() && !slices.iter().any(|slice| is_stand_in(slice)) {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        }
        // A body leaves a piece right before hyper writes, so its stand-in is among the slices.
        let Some(place) = slices.iter().position(|slice| is_stand_in(slice)) else {
            return Poll::Ready(Err(lost()));
        };
        match place {
            0 | 1 => {
                let bytes = slices[..place].first().map_or(&[][..], |slice| slice);
                self.poll_send(cx, bytes, &slices[place])
            }
            _ => Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..place]),
        }
    }

    /// `bytes`, and then the piece for `stand_in`; how many went out of both together.
    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        stand_in: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return self.poll_send_file(cx, stand_in);
        }
        // Held back for the file that follows at once: one packet, one waking of the client.
        let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
        let sent = ready!(self.poll_with(cx, || Ok(send(&self.stream, bytes, flags)?)))?;
        if sent < bytes.len() {
            return Poll::Ready(Ok(sent));
        }
        match self.poll_send_file(cx, stand_in) {
            Poll::Ready(more) => Poll::Ready(Ok(sent + more?)),
            Poll::Pending => Poll::Ready(Ok(sent)),
        }
    }

    fn poll_send_file(&self, cx: &mut Context<'_>, stand_in: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_with(cx, || self.outlet.send(stand_in, &self.stream))
    }

    /// Tries `write` whenever the socket may take something, until it does or fails.
    fn poll_with(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_io(Interest::WRITABLE, &write) {
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) => {}
                done => return Poll::Ready(done),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = self.poll_slices(cx, slices);
        match &polled {
            Poll::Pending => self.standing.waits(),
            Poll::Ready(_) => self.standing.takes(),
        }
        polled
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}
