//! Serves HTTP on a listener until told to stop, then lets every connection finish its request.
//!
//! `axum::serve` has no limit on connections and none on the time a client takes to send its
//! headers, so the loop is ours. Bodies may be files that the kernel sends (`outlet.rs`).

mod activity;
mod outlet;
mod slots;
mod socket;

pub use outlet::{MAX_STAND_IN, Outlet};

use activity::Activity;
use axum::{Router, body::Body, extract::ConnectInfo};
use hyper::{Request, Response, Version, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use slots::{Slot, Slots};
use socket::Socket;
use std::{convert::Infallible, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

/// What one server takes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections; more wait in the kernel's backlog.
    pub connections: usize,
    /// Longest time from accepting a connection, or from the end of the last request, to the end
    /// of the request's headers; about, over HTTP/2.
    pub header_read: Duration,
    /// How long a connection must have taken nothing before it gives its place to another when
    /// there is no other place. As long as there are some, whoever reads slowly may.
    pub standstill: Duration,
    /// Most bytes of headers of one request.
    pub header_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8_192,
            header_read: Duration::from_secs(75),
            standstill: Duration::from_secs(600),
            header_bytes: 32 * 1024,
        }
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
    let (server, slots) = (server(limits), Slots::new(limits.connections, limits.standstill));
    let connections = TaskTracker::new();
    while let Some((stream, peer, slot)) = next(&listener, &slots, &shutdown).await {
        // Latency matters more than the number of packets; failing to set it harms nothing.
        let _ = stream.set_nodelay(true);
        let (outlet, activity) = (Outlet::default(), Arc::new(Activity::default()));
        let (router, asked, files) = (router.clone(), activity.clone(), outlet.clone());
        let service = service_fn(move |request| {
            answer(router.clone(), peer, files.clone(), asked.clone(), request)
        });
        let socket = TokioIo::new(Socket::new(stream, outlet, slot.standing()));
        let connection = server.serve_connection_with_upgrades(socket, service).into_owned();
        let stop = shutdown.clone();
        connections.spawn(async move {
            let mut connection = pin!(connection);
            let mut is_closing = false;
            let ended = loop {
                tokio::select! {
                    ended = connection.as_mut() => break ended,
                    () = activity.silence(limits.header_read) => {
                        tracing::debug!(%peer, "connection without a request closed");
                        return;
                    }
                    () = slot.taken() => {
                        tracing::info!(%peer, "connection that took nothing made room for another");
                        return;
                    }
                    () = closing(&stop, &activity, limits.header_read), if !is_closing => {
                        is_closing = true;
                        connection.as_mut().graceful_shutdown();
                    }
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%peer, %error, "connection ended early");
            }
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Returns when a connection is to finish what it has: at the stop, or when nothing was asked for long
/// after something was. HTTP/1 has a limit of its own for that, and HTTP/2 has none.
async fn closing(stop: &CancellationToken, activity: &Activity, limit: Duration) {
    stop.run_until_cancelled(activity.idle(limit)).await;
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

/// The next connection with its slot; `None` once it is time to stop.
async fn next(
    listener: &TcpListener,
    slots: &Slots,
    shutdown: &CancellationToken,
) -> Option<(TcpStream, SocketAddr, Slot)> {
    let accept = async {
        let slot = slots.next().await;
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

async fn answer(
    router: Router,
    peer: SocketAddr,
    outlet: Outlet,
    activity: Arc<Activity>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    activity.begins();
    let asked = (request.version() >= Version::HTTP_2).then(|| activity.asked());
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(ConnectInfo(peer));
    if request.version() == Version::HTTP_11 {
        request.extensions_mut().insert(outlet);
    }
    let response = router.oneshot(request).await?;
    Ok(match asked {
        Some(asked) => response.map(|body| Body::new(asked.until_end_of(body))),
        None => response,
    })
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

    /// A server of `router`, its address, and what stops it.
    async fn serving(
        router: Router,
        limits: Limits,
    ) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let serving = tokio::spawn(serve(listener, router, limits, stop.clone()));
        (address, stop, serving)
    }

    #[tokio::test]
    async fn who_takes_nothing_gives_his_place_to_another_when_there_is_none_left() {
        let big = vec![7_u8; 32 * 1024 * 1024];
        let router =
            Router::new().route("/", get(async move || big)).route("/1", get(async || "1"));
        let standstill = Duration::from_millis(500);
        let limits = Limits { connections: 2, standstill, ..Limits::default() };
        let (address, stop, serving) = serving(router, limits).await;
        let get = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        let mut still = TcpStream::connect(address).await.unwrap();
        still.write_all(get.as_bytes()).await.unwrap();
        // With a place left it may stand for as long as it likes.
        tokio::time::sleep(4 * standstill).await;
        let mut reads = TcpStream::connect(address).await.unwrap();
        reads.write_all(get.as_bytes()).await.unwrap();
        let mut begin = [0; 1024];
        reads.read_exact(&mut begin).await.unwrap();
        let one = "GET /1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let asked = tokio::spawn(ask(address, one));
        let mut taken = 0;
        while !asked.is_finished() {
            // A little at a time, and again and again.
            taken += reads.read(&mut vec![0; 2 * 1024 * 1024]).await.unwrap();
            tokio::time::sleep(standstill / 10).await;
        }
        assert!(asked.await.unwrap().ends_with('1'));
        let mut rest = Vec::new();
        let whole = still.read_to_end(&mut rest).await.is_ok_and(|read| read > 32 * 1024 * 1024);
        assert!(!whole, "the one that stood still was cut");
        assert!(taken > 0);
        let mut rest = Vec::new();
        drop(tokio::time::timeout(standstill * 2, reads.read_to_end(&mut rest)).await);
        assert!(taken + rest.len() + begin.len() > 32 * 1024 * 1024, "the one that reads was not");
        stop.cancel();
        drop((still, reads));
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn an_idle_connection_of_http_2_is_closed_and_a_slow_answer_is_not() {
        let limit = Duration::from_millis(100);
        let limits = Limits { header_read: limit, ..Limits::default() };
        let slow = async move || {
            tokio::time::sleep(6 * limit).await;
            "hello"
        };
        let (address, stop, serving) = serving(Router::new().route("/", get(slow)), limits).await;
        let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (mut client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = Request::get("http://x/").body(Body::empty()).unwrap();
        let answer = client.send_request(request).await.unwrap();
        let body = axum::body::to_bytes(Body::new(answer.into_body()), 100).await.unwrap();
        assert_eq!(body, "hello");
        let closed = tokio::time::timeout(Duration::from_secs(20), connection).await;
        assert!(closed.is_ok(), "it is still open");
        stop.cancel();
        serving.await.unwrap();
    }

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
