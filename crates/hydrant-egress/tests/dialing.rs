//! What goes out and what does not, on real sockets.

#![allow(clippy::unwrap_used)] // Helpers of a test, outside of its functions.

use hydrant_egress::{Addrs, Egress, EgressError, Name, Policy, Resolve, Resolving};
use reqwest::Method;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use url::Url;

/// Leads every name to one address.
struct LeadsTo(SocketAddr);

impl Resolve for LeadsTo {
    fn resolve(&self, _: Name) -> Resolving {
        let address = self.0;
        Box::pin(async move { Ok(Box::new(std::iter::once(address)) as Addrs) })
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
    let error = egress.request(Method::GET, target).unwrap().send().await.unwrap_err();
    assert!(matches!(EgressError::behind(&error), Some(EgressError::Address { .. })), "{error:?}");
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
    let response = egress.request(Method::GET, target).unwrap().send().await.unwrap();
    assert_eq!(response.status(), 302);
    assert_eq!(trapped.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn ten_thousand_headers_are_dropped() {
    let lines: String = (0..10_000).map(|i| format!("X-H{i}: v\r\n")).collect();
    let (address, _) = server(format!("HTTP/1.1 200 OK\r\n{lines}\r\n")).await;
    let egress = Egress::new(open()).unwrap();
    let request = egress.request(Method::GET, url(&format!("http://{address}/"))).unwrap();
    assert!(request.send().await.is_err());
}
