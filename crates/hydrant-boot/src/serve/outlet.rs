//! Bodies that are files, handed to the kernel instead of being read.
//!
//! A body gives *stand-ins* for pieces of a file: slices of one static array, as long as the piece.
//! Each is noted in its connection's [`Outlet`], in the order of the body. The connection's socket
//! (`socket.rs`) knows a stand-in by its address and sends the piece that was noted. hyper counts,
//! frames and orders stand-ins like any bytes.
//!
//! What is in a stand-in is never sent. Where one cannot be told from bytes, because it was copied,
//! cut, or lost, the connection breaks.

use bytes::Bytes;
use std::{
    collections::VecDeque,
    fs::File,
    io,
    ops::Range,
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Most bytes that one stand-in stands for.
pub const MAX_STAND_IN: usize = 1024 * 1024;

static STAND_IN: [u8; MAX_STAND_IN] = [0; MAX_STAND_IN];

/// Where a response's body leaves pieces of files for its connection. Requests carry it as an
/// extension when their connection can send files: HTTP/1.1 straight over TCP.
#[derive(Clone, Debug, Default)]
pub struct Outlet(Arc<Mutex<VecDeque<Piece>>>);

/// The rest of a piece of a file.
#[derive(Debug)]
struct Piece {
    file: Arc<File>,
    at: u64,
    length: usize,
    sent: usize,
}

impl Outlet {
    /// Notes a piece of at most [`MAX_STAND_IN`] bytes, and gives the next bytes of the body for it.
    pub fn stand_in(&self, file: &Arc<File>, piece: Range<u64>) -> Bytes {
        let length = usize::try_from(piece.end - piece.start).unwrap_or(usize::MAX);
        let stand_in = Bytes::from_static(&STAND_IN[..length]);
        let piece = Piece { file: Arc::clone(file), at: piece.start, length, sent: 0 };
        self.pieces().push_back(piece);
        stand_in
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces().is_empty()
    }

    /// Sends of the piece that `slice` stands for what `socket` takes at once, and returns how much
    /// that was.
    pub(super) fn send(&self, slice: &[u8], socket: impl AsFd) -> io::Result<usize> {
        let mut pieces = self.pieces();
        let Some(piece) = pieces.front_mut().filter(|piece| piece.is(slice)) else {
            return Err(lost());
        };
        let (mut at, left) = (piece.at + piece.sent as u64, piece.length - piece.sent);
        let sent = rustix::fs::sendfile(socket, &*piece.file, Some(&mut at), left)?;
        if sent == 0 {
            let reason = "the file ended before the piece that was announced";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
        }
        piece.sent += sent;
        if piece.sent == piece.length {
            pieces.pop_front();
        }
        Ok(sent)
    }

    fn pieces(&self) -> MutexGuard<'_, VecDeque<Piece>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Piece {
    /// Whether `slice` is what is left of this piece's stand-in.
    fn is(&self, slice: &[u8]) -> bool {
        slice.as_ptr_range() == STAND_IN[self.sent..self.length].as_ptr_range()
    }
}

/// Whether any byte of `slice` is a stand-in's.
pub(super) fn is_stand_in(slice: &[u8]) -> bool {
    let (slice, ours) = (slice.as_ptr_range(), STAND_IN.as_ptr_range());
    slice.start < ours.end && ours.start < slice.end
}

/// What must not happen: the rest of the answer would not be what was asked for.
pub(super) fn lost() -> io::Error {
    io::Error::other("a piece of a file is not where it was left in the body")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::{Limits, serve};
    use axum::{Router, body::Body, extract::Extension, response::Response, routing::get};
    use std::io::Write;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };
    use tokio_util::sync::CancellationToken;

    const SIZE: u64 = 3 * MAX_STAND_IN as u64 + 12_345;

    fn bytes() -> Vec<u8> {
        (0..SIZE).map(|n| (n % 251 + 1) as u8).collect()
    }

    fn file() -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes()).unwrap();
        Arc::new(file)
    }

    /// A body of `pieces` with their length in the head.
    fn answer(pieces: Vec<Bytes>) -> Response {
        let length: usize = pieces.iter().map(Bytes::len).sum();
        let pieces = futures::stream::iter(pieces.into_iter().map(io::Result::Ok));
        let answer = Response::builder().header("content-length", length);
        answer.body(Body::from_stream(pieces)).unwrap()
    }

    /// Everything `router` answers to `requests`, which are sent at once; the last one closes.
    async fn ask(router: Router, requests: &str) -> Vec<u8> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, router, Limits::default(), stop.clone()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(requests.as_bytes()).await.unwrap();
        let mut answers = Vec::new();
        // A broken connection may end in a reset.
        let _ = stream.read_to_end(&mut answers).await;
        stop.cancel();
        serving.await.unwrap();
        answers
    }

    const GET: &str = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

    #[tokio::test]
    async fn pieces_of_files_and_bytes_come_in_their_order() {
        let file = file();
        let mixed = async move |Extension(outlet): Extension<Outlet>| {
            let mut pieces = vec![outlet.stand_in(&file, 1..1_000_000), Bytes::from_static(b"--")];
            pieces.push(outlet.stand_in(&file, SIZE - 7..SIZE));
            answer(pieces)
        };
        let router = Router::new().route("/", get(mixed));
        let answers = ask(router, GET).await;
        let expected = [&bytes()[1..1_000_000], b"--", &bytes()[bytes().len() - 7..]].concat();
        assert!(answers.ends_with(&expected), "{} bytes", answers.len());
    }

    /// No zero is in the file, so one that arrives is a stand-in's.
    async fn breaks(
        give: impl Fn(&Outlet, &Arc<File>) -> Vec<Bytes> + Clone + Send + Sync + 'static,
    ) {
        let file = file();
        let handler =
            async move |Extension(outlet): Extension<Outlet>| answer(give(&outlet, &file));
        let router = Router::new().route("/", get(handler));
        let answers = ask(router, GET).await;
        assert!(!answers.contains(&0), "a stand-in went out as bytes");
        let head = answers.windows(4).position(|end| end == b"\r\n\r\n");
        let body = head.map_or(0, |head| answers.len() - head - 4);
        assert!(body < 100_000, "{body} bytes of a body that was to break");
    }

    #[tokio::test]
    async fn what_was_lost_on_the_way_breaks_the_connection() {
        // Copied, as a layer that compresses or collects bodies would.
        breaks(|outlet, file| vec![Bytes::copy_from_slice(&outlet.stand_in(file, 0..100_000))])
            .await;
        // Cut.
        breaks(|outlet, file| vec![outlet.stand_in(file, 0..100_000).slice(..99_999)]).await;
        breaks(|outlet, file| vec![outlet.stand_in(file, 0..100_000).slice(1..)]).await;
        // Left in another connection.
        breaks(|_, file| vec![Outlet::default().stand_in(file, 0..100_000)]).await;
        // Dropped by somebody, and then bytes.
        breaks(|outlet, file| {
            drop(outlet.stand_in(file, 0..100_000));
            vec![Bytes::from(vec![1; 100_000])]
        })
        .await;
    }

    #[tokio::test]
    async fn a_file_that_ends_early_breaks_the_connection() {
        breaks(|outlet, file| {
            let piece = outlet.stand_in(file, SIZE - 50_000..SIZE + 50_000);
            vec![piece]
        })
        .await;
    }

    #[tokio::test]
    async fn only_connections_that_can_send_files_offer_it() {
        let told = async |outlet: Option<Extension<Outlet>>| {
            if outlet.is_some() { "offered" } else { "not offered" }
        };
        let router = Router::new().route("/", get(told));
        assert!(ask(router.clone(), GET).await.ends_with(b"\r\n\r\noffered"));
        let old = "GET / HTTP/1.0\r\n\r\n";
        assert!(ask(router, old).await.ends_with(b"not offered"));
    }
}
