//! The HTTP server under the scripted fakes: it can be stopped and started on its port, and a
//! handler can close the connection instead of answering.
//!
//! Fakes run on threads of their own, so a test may pause its clock or block without changing what
//! its peers do.

use crate::{PortLease, TestCertificate};
use bytes::Bytes;
use futures::{Stream, StreamExt, future::BoxFuture};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use std::{
    io,
    sync::{Arc, Mutex, OnceLock},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    runtime::{Handle, Runtime},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;
/// `Err` closes the connection without an answer.
pub(crate) type Answer = Result<Response<Body>, io::Error>;
pub(crate) type Handler =
    Arc<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Answer> + Send + Sync>;

/// The runtime of all fakes of this process.
pub(crate) fn runtime() -> &'static Handle {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let start = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).thread_name("testkit").enable_all();
        builder.build().expect("threads can be started")
    };
    RUNTIME.get_or_init(start).handle()
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    http_body_util::Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn streamed(chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data))).boxed_unsync()
}

/// Serves a handler on a leased port of 127.0.0.1 until dropped.
pub(crate) struct Server {
    port: PortLease,
    handler: Handler,
    tls: Option<TlsAcceptor>,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

impl Server {
    pub async fn start(handler: Handler) -> Self {
        Self::serve(handler, None).await
    }

    pub async fn start_tls(handler: Handler, certificate: &TestCertificate) -> Self {
        Self::serve(handler, Some(acceptor(certificate))).await
    }

    async fn serve(handler: Handler, tls: Option<TlsAcceptor>) -> Self {
        let server = Self { port: PortLease::take(), handler, tls, accepting: Mutex::new(None) };
        server.resume().await;
        server
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port.port())
    }

    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.host())
    }

    /// Closes the port and every connection. Does nothing when stopped.
    pub async fn stop(&self) {
        let accepting = self.accepting.lock().expect("no holder panics").take();
        if let Some(accepting) = accepting {
            accepting.abort();
            // An error says that it was aborted, which is what we want.
            let _ = accepting.await;
        }
    }

    /// Listens again on the same port. Does nothing when it is listening.
    pub async fn resume(&self) {
        if self.accepting.lock().expect("no holder panics").is_some() {
            return;
        }
        let (port, handler, tls) = (self.port.port(), self.handler.clone(), self.tls.clone());
        let listen = runtime().spawn(TcpListener::bind(("127.0.0.1", port)));
        let listener = listen.await.expect("binding does not panic").expect("the port is ours");
        let accepting = runtime().spawn(accept(listener, handler, tls));
        *self.accepting.lock().expect("no holder panics") = Some(accepting);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(accepting) = self.accepting.lock().expect("no holder panics").take() {
            accepting.abort();
        }
    }
}

/// Owns the connections, so that they end with it.
async fn accept(listener: TcpListener, handler: Handler, tls: Option<TlsAcceptor>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                connections.spawn(connection(stream, handler.clone(), tls.clone()));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, handler: Handler, tls: Option<TlsAcceptor>) {
    // Failing only means later packets.
    let _ = stream.set_nodelay(true);
    match tls {
        None => speak(stream, handler).await,
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                speak(stream, handler).await;
            }
        }
    }
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin, handler: Handler) {
    let service = service_fn(move |request| handler(request));
    // A connection that breaks is the client's or the script's affair.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

fn acceptor(certificate: &TestCertificate) -> TlsAcceptor {
    let chain = CertificateDer::from_pem_slice(certificate.certificate_pem.as_bytes());
    let key = PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes());
    let provider = aws_lc_rs::default_provider();
    let config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("the provider knows the default versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![chain.expect("the kit writes valid PEM")],
            key.expect("the kit writes valid PEM"),
        );
    TlsAcceptor::from(Arc::new(config.expect("key and certificate belong together")))
}
