//! What goes out and what does not, on real sockets.

#![allow(clippy::unwrap_used)] // Helpers of a test, outside of its functions.

use bytes::Bytes;
use http::{HeaderMap, Method};
use hydrant_egress::{Egress, EgressError, Policy, READ_BUFFER, Request, Resolve, Resolving};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use url::Url;

/// Leads every name to one address.
struct LeadsTo(SocketAddr);

impl Resolve for LeadsTo {
    fn resolve(&self, _: String) -> Resolving {
        let address = self.0;
        Box::pin(async move { Ok(vec![address]) })
    }
}

/// A server that answers every connection with `answer`, and counts them.
async fn server(answer: String) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let mut request = [0; 4096];
            let _ = socket.read(&mut request).await;
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    });
    (address, seen)
}

fn open() -> Policy {
    Policy { allow_private: true, ..Policy::default() }
}

fn url(text: &str) -> Url {
    text.parse().unwrap()
}

fn get(url: Url) -> Request {
    Request { method: Method::GET, url, headers: HeaderMap::new(), body: Bytes::new() }
}

#[test]
fn literals_are_refused_in_every_spelling() {
    let egress = Egress::new(Policy::default()).unwrap();
    for text in [
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0177.0.0.1/",
        "https://127.1/",
        "https://127.1./",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[2002:7f00:1::]/",
        "https://169.254.169.254/",
        "https://0.0.0.0/",
        "https://[::]/",
    ] {
        assert!(matches!(egress.check(&url(text)), Err(EgressError::Address { .. })), "{text}");
    }
    assert_eq!(egress.check(&url("https://1.1.1.1/")), Ok(()));
}

#[test]
fn only_https_without_user_info_goes_out() {
    let egress = Egress::new(Policy::default()).unwrap();
    let http = egress.check(&url("http://example.org/"));
    assert!(matches!(http, Err(EgressError::PlainHttp { .. })));
    let file = egress.check(&url("file:///etc/passwd"));
    assert!(matches!(file, Err(EgressError::NoHost)));
    let ftp = egress.check(&url("ftp://example.org/"));
    assert!(matches!(ftp, Err(EgressError::Scheme { .. })));
    for text in ["https://user@example.org/", "https://u:p@example.org/", "https://:p@example.org/"]
    {
        let refused = egress.check(&url(text)).unwrap_err();
        assert!(matches!(refused, EgressError::UserInfo { .. }), "{text}");
        assert!(!refused.to_string().contains("u:p"), "{refused}");
    }
}

#[tokio::test]
async fn a_name_that_leads_to_a_private_address_is_never_dialled() {
    let (address, seen) = server("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned()).await;
    let egress = Egress::with_resolver(Policy::default(), Arc::new(LeadsTo(address))).unwrap();
    let target = url(&format!("https://registry.example:{}/", address.port()));
    let error = egress.send(get(target)).await.unwrap_err();
    assert!(matches!(error, EgressError::Address { .. }), "{error:?}");
    assert_eq!(seen.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn allowed_private_addresses_are_dialled_but_redirects_not_followed() {
    let (trap, trapped) = server("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned()).await;
    let location =
        format!("HTTP/1.1 302 Found\r\nLocation: http://{trap}/\r\nContent-Length: 0\r\n\r\n");
    let (address, _) = server(location).await;
    let egress = Egress::with_resolver(open(), Arc::new(LeadsTo(address))).unwrap();
    let target = url(&format!("http://registry.example:{}/", address.port()));
    let response = egress.send(get(target)).await.unwrap();
    assert_eq!(response.status(), 302);
    assert_eq!(trapped.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn ten_thousand_headers_are_dropped() {
    let lines: String = (0..10_000).map(|i| format!("X-H{i}: v\r\n")).collect();
    let (address, _) = server(format!("HTTP/1.1 200 OK\r\n{lines}\r\n")).await;
    let egress = Egress::new(open()).unwrap();
    assert!(egress.send(get(url(&format!("http://{address}/")))).await.is_err());
}

#[tokio::test]
async fn header_lines_that_do_not_fit_the_read_buffer_are_dropped() {
    let egress = Egress::new(open()).unwrap();
    for (bytes, fits) in [(READ_BUFFER / 2, true), (2 * READ_BUFFER, false)] {
        let line = "v".repeat(bytes);
        let answer = format!("HTTP/1.1 200 OK\r\nX-H: {line}\r\nContent-Length: 0\r\n\r\n");
        let (address, _) = server(answer).await;
        let answered = egress.send(get(url(&format!("http://{address}/")))).await;
        assert_eq!(answered.is_ok(), fits, "{bytes}");
    }
}

#[tokio::test]
async fn a_body_is_read_in_bounded_pieces_however_much_has_arrived() {
    const BODY: usize = 32 * 1024 * 1024;
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n\r\n");
    let (address, _) = server(answer + &"b".repeat(BODY)).await;
    let egress = Egress::new(open()).unwrap();
    let mut body = egress.send(get(url(&format!("http://{address}/")))).await.unwrap().into_body();
    assert_eq!(body.length(), Some(BODY as u64));
    let (mut all, mut largest) = (0, 0);
    while let Some(chunk) = body.chunk().await.unwrap() {
        (all, largest) = (all + chunk.len(), largest.max(chunk.len()));
    }
    assert_eq!(all, BODY);
    assert!(largest <= 2 * READ_BUFFER, "{largest}");
}

#[tokio::test]
async fn a_body_that_ends_early_is_broken() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort".to_owned();
    let (address, _) = server(answer).await;
    let egress = Egress::new(open()).unwrap();
    let mut body = egress.send(get(url(&format!("http://{address}/")))).await.unwrap().into_body();
    assert_eq!(body.chunk().await.unwrap().as_deref(), Some(&b"short"[..]));
    assert!(body.chunk().await.is_err());
}

#[tokio::test]
async fn the_wait_for_a_connection_ends_and_covers_tls() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let patience = Duration::from_millis(50);
    let egress = Egress::new(Policy { connect_timeout: patience, ..open() }).unwrap();
    let target = format!("https://{}/secret?secret", silent.local_addr().unwrap());
    let error = egress.send(get(url(&target))).await.unwrap_err();
    assert!(matches!(error, EgressError::Unanswered(_)), "{error:?}");
    let text = error.to_string();
    assert!(text.ends_with("no connection within 0.05s") && !text.contains("secret"), "{text}");
}

#[tokio::test]
async fn those_who_are_asked_hear_who_asks() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heard = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut heard = vec![0; 4096];
        let length = socket.read(&mut heard).await.unwrap();
        heard.truncate(length);
        String::from_utf8(heard).unwrap()
    });
    let egress = Egress::new(open()).unwrap();
    let _ = egress.send(get(url(&format!("http://{address}/v2/?n=1#part")))).await;
    let heard = heard.await.unwrap();
    let mut lines: Vec<_> = heard.trim_end().split("\r\n").collect();
    lines[1..].sort_unstable();
    let agent = concat!("user-agent: hydrant/", env!("CARGO_PKG_VERSION"));
    let host = format!("host: {address}");
    assert_eq!(lines, ["GET /v2/?n=1 HTTP/1.1", "accept: */*", &host, agent]);
}
