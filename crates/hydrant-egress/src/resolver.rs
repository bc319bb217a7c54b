//! Name resolution that leaves only addresses which may be dialled.

use crate::{
    address::{Reach, reach},
    error::EgressError,
};
use hyper_util::client::legacy::connect::dns::Name;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tower::Service;

/// Finds the addresses of a host. Their ports count only where the URL names none, and 0 never.
pub trait Resolve: Send + Sync {
    fn resolve(&self, host: String) -> Resolving;
}

/// A look-up under way.
pub type Resolving = Soon<io::Result<Vec<SocketAddr>>>;

pub(crate) type Soon<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Asks `inner`, then drops what may not be dialled. A name that mixes public and private
/// addresses keeps its public ones.
#[derive(Clone)]
pub(crate) struct Checked {
    pub inner: Arc<dyn Resolve>,
    pub allow_private: bool,
}

impl Service<Name> for Checked {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = EgressError;
    type Future = Soon<Result<Self::Response, EgressError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), EgressError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let host = name.as_str().to_owned();
        let found = self.inner.resolve(host.clone());
        let allow_private = self.allow_private;
        Box::pin(async move {
            let found = found.await.map_err(|error| EgressError::Unresolved {
                host: host.clone(),
                reason: error.to_string(),
            })?;
            Ok(allowed(&host, found, allow_private)?.into_iter())
        })
    }
}

fn allowed(
    host: &str,
    found: Vec<SocketAddr>,
    allow_private: bool,
) -> Result<Vec<SocketAddr>, EgressError> {
    let refused = found.iter().map(SocketAddr::ip).find(|ip| !may_dial(*ip, allow_private));
    let left: Vec<_> =
        found.into_iter().filter(|address| may_dial(address.ip(), allow_private)).collect();
    match (left.is_empty(), refused) {
        (false, _) => Ok(left),
        (true, Some(address)) => Err(EgressError::Address { host: host.to_owned(), address }),
        (true, None) => {
            Err(EgressError::Unresolved { host: host.to_owned(), reason: "no address".to_owned() })
        }
    }
}

/// Whether `address` may be dialled at all.
pub(crate) fn may_dial(address: IpAddr, allow_private: bool) -> bool {
    match reach(address) {
        Reach::Public => true,
        Reach::Private => allow_private,
        Reach::Never => false,
    }
}

/// The system's resolver.
pub(crate) struct System;

impl Resolve for System {
    fn resolve(&self, host: String) -> Resolving {
        Box::pin(async move { Ok(tokio::net::lookup_host((host, 0)).await?.collect()) })
    }
}
