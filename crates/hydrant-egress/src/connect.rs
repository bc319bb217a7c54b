//! How a connection is made: a checked address, TCP, TLS, all of it within a time.

use crate::{
    dialer::Policy,
    error::{EgressError, chain},
    resolver::{Checked, Soon},
};
use hyper::Uri;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use rustls::{
    ClientConfig,
    crypto::{CryptoProvider, aws_lc_rs},
};
use rustls_platform_verifier::BuilderVerifierExt;
use std::{
    error::Error,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{net::TcpStream, time::timeout};
use tower::Service;

/// Pause of a silent connection before it is asked whether it lives, and between such questions.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Questions without an answer after which it is dead.
const KEEPALIVE_RETRIES: u32 = 3;
/// How long what was sent may stay unacknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// Makes the connections of one destination.
#[derive(Clone)]
pub(crate) struct Connect {
    https: HttpsConnector<HttpConnector<Checked>>,
    patience: Duration,
}

#[derive(Debug, thiserror::Error)]
#[error("no connection within {}s", .0.as_secs_f32())]
struct TooSlow(Duration);

type BoxError = Box<dyn Error + Send + Sync>;

impl Connect {
    /// Fails when TLS cannot be set up.
    pub fn new(policy: &Policy, resolver: Checked) -> Result<Self, EgressError> {
        let tls = tls().map_err(|error| EgressError::Setup(chain(&error)))?;
        let patience = policy.connect_timeout;
        Ok(Self { https: HttpsConnector::from((tcp(resolver, patience), tls)), patience })
    }
}

impl Service<Uri> for Connect {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = BoxError;
    type Future = Soon<Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.https.poll_ready(cx)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let (connecting, patience) = (self.https.call(to), self.patience);
        Box::pin(async move {
            timeout(patience, connecting).await.unwrap_or_else(|_| Err(TooSlow(patience).into()))
        })
    }
}

fn tcp(resolver: Checked, patience: Duration) -> HttpConnector<Checked> {
    let mut tcp = HttpConnector::new_with_resolver(resolver);
    // Each address of a host gets its share of the time, so that one that is dead is not all there is.
    tcp.set_connect_timeout(Some(patience));
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE));
    tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    #[cfg(target_os = "linux")]
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    tcp
}

/// Trusts what the machine trusts (on Linux the files of OpenSSL, or what `SSL_CERT_FILE` and
/// `SSL_CERT_DIR` name), and uses the provider of the process, of which there is only one.
fn tls() -> Result<ClientConfig, rustls::Error> {
    let provider = CryptoProvider::get_default().cloned();
    let provider = provider.unwrap_or_else(|| Arc::new(aws_lc_rs::default_provider()));
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_platform_verifier()?
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}
