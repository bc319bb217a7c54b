//! Serves HTTP on a listener until told to stop, then lets every connection finish its request.
//!
//! `axum::serve` has no limit on connections and none on the time a client takes to send its
//! headers, so the loop is ours. Bodies may be files that the kernel sends (`outlet.rs`).

mod outlet;
mod socket;

pub use outlet::{MAX_STAND_IN, Outlet};

use axum::{Router, body::Body, extract::ConnectInfo};
use hyper::{Request, Version, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use socket::Socket;
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

/// What one server takes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections; more wait in the kernel's backlog.
    pub connections: usize,
    /// Longest time from accepting a connection, or from the end of the last request, to the end
    /// of the request's headers.
    pub header_read: Duration,
    /// Most bytes of headers of one request.
    pub header_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 8_192, header_read: Duration::from_secs(75), header_bytes: 32 * 1024 }
    }
}

/// Pause after a failed accept: mostly there is no free file descriptor, and there will be one
/// when a connection ends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often, and how long, the other end of an HTTP/2 connection is asked whether it is there.
const PING: Duration = Duration::from_secs(30);

/// Serves `router` until `shutdown`, then closes idle connections and waits for the requests under
/// way; the caller sets the deadline for that by dropping this. Handlers find the client's address
/// in [`ConnectInfo<SocketAddr>`].
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let (server, graceful) = (server(limits), GracefulShutdown::new());
    let slots = Arc::new(Semaphore::new(limits.connections));
    let connections = TaskTracker::new();
    while let Some((stream, peer, slot)) = next(&listener, &slots, &shutdown).await {
        // Latency matters more than the number of packets; failing to set it harms nothing.
        let _ = stream.set_nodelay(true);
        let (outlet, asked) = (Outlet::default(), Arc::new(AtomicBool::new(false)));
        let service = service_fn(answer(router.clone(), peer, outlet.clone(), asked.clone()));
        let socket = TokioIo::new(Socket::new(stream, outlet));
        let connection = server.serve_connection_with_upgrades(socket, service);
        let connection = graceful.watch(connection.into_owned());
        connections.spawn(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "connection ended early");
                },
                () = silence(&asked, limits.header_read) => {
                    tracing::debug!(%peer, "connection without a request closed");
                }
            }
            drop(slot);
        });
    }
    drop(listener);
    graceful.shutdown().await;
    connections.close();
    connections.wait().await;
}

fn server(limits: Limits) -> auto::Builder<TokioExecutor> {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_read)
        .max_buf_size(limits.header_bytes.max(8 * 1024));
    let header_list = u32::try_from(limits.header_bytes).unwrap_or(u32::MAX);
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .max_header_list_size(header_list);
    server
}

/// Returns when nothing was asked within `limit`. hyper's own limit begins with the bytes that tell
/// HTTP/1 from HTTP/2, and there is none for HTTP/2: who sends nothing would keep a slot for ever.
async fn silence(asked: &AtomicBool, limit: Duration) {
    tokio::time::sleep(limit).await;
    if asked.load(Ordering::Relaxed) {
        std::future::pending().await
    }
}

type Slot = tokio::sync::OwnedSemaphorePermit;

/// The next connection with its slot; `None` once it is time to stop.
async fn next(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    shutdown: &CancellationToken,
) -> Option<(TcpStream, SocketAddr, Slot)> {
    let accept = async {
        let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (stream, peer) = accept(listener).await;
        (stream, peer, slot)
    };
    shutdown.run_until_cancelled(accept).await
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            // The client left between its SYN and now.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection, trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn answer(
    router: Router,
    peer: SocketAddr,
    outlet: Outlet,
    asked: Arc<AtomicBool>,
) -> impl Fn(Request<Incoming>) -> tower::util::Oneshot<Router, Request<Body>> {
    move |request| {
        asked.store(true, Ordering::Relaxed);
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        if request.version() == Version::HTTP_11 {
            request.extensions_mut().insert(outlet.clone());
        }
        router.clone().oneshot(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::Notify,
    };

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // The end may be a reset, when the server closed with bytes of ours unread.
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    const GET: &str = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

    #[tokio::test]
    async fn a_request_under_way_is_finished_and_no_new_one_is_accepted() {
        let (entered, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (entered_in, release_in) = (entered.clone(), release.clone());
        let slow = async move |ConnectInfo(peer): ConnectInfo<SocketAddr>| {
            entered_in.notify_one();
            release_in.notified().await;
            peer.ip().to_string()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let router = Router::new().route("/", get(slow));
        let serving = tokio::spawn(serve(listener, router, Limits::default(), stop.clone()));
        let asked = tokio::spawn(ask(address, GET));
        entered.notified().await;
        stop.cancel();
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        assert!(!serving.is_finished());
        release.notify_one();
        assert!(asked.await.unwrap().ends_with("127.0.0.1"));
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn slow_and_swollen_headers_are_cut_off() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limits = Limits { header_read: Duration::from_millis(50), ..Limits::default() };
        let router = Router::new().route("/", get(async || "hello"));
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, router, limits, stop.clone()));
        assert!(ask(address, GET).await.ends_with("hello"));
        assert!(!ask(address, "GET / HTTP/1.1\r\nhost:").await.contains("200"));
        let swollen = format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "a".repeat(64 * 1024));
        assert!(!ask(address, &swollen).await.contains("200"));
        stop.cancel();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn a_connection_that_asks_nothing_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limit = Duration::from_millis(50);
        let limits = Limits { header_read: limit, ..Limits::default() };
        let slow = async move || {
            tokio::time::sleep(4 * limit).await;
            "hello"
        };
        let stop = CancellationToken::new();
        let router = Router::new().route("/", get(slow));
        let serving = tokio::spawn(serve(listener, router, limits, stop.clone()));
        for opening in ["", "P", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET / HTTP/1.1\r\n"] {
            let end = tokio::time::timeout(Duration::from_secs(20), ask(address, opening)).await;
            assert!(end.is_ok_and(|answer| !answer.contains("200")), "{opening:?}");
        }
        assert!(ask(address, GET).await.ends_with("hello"), "an answer may take longer");
        stop.cancel();
        serving.await.unwrap();
    }
}
