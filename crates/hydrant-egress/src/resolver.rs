//! Name resolution that leaves only addresses which may be dialled.

use crate::{
    address::{Reach, reach},
    dialer::EgressError,
};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// Asks `inner`, then drops what may not be dialled. A name that mixes public and private
/// addresses keeps its public ones.
pub struct Checked {
    pub inner: Arc<dyn Resolve>,
    pub allow_private: bool,
}

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let host = name.as_str().to_owned();
        let found = self.inner.resolve(name);
        let allow_private = self.allow_private;
        Box::pin(async move {
            let found = found.await.map_err(|error| EgressError::Unresolved {
                host: host.clone(),
                reason: error.to_string(),
            })?;
            let allowed = allowed(&host, found.collect(), allow_private)?;
            Ok(Box::new(allowed.into_iter()) as Addrs)
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
pub fn may_dial(address: IpAddr, allow_private: bool) -> bool {
    match reach(address) {
        Reach::Public => true,
        Reach::Private => allow_private,
        Reach::Never => false,
    }
}

/// The system's resolver.
pub struct System;

impl Resolve for System {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            Ok(Box::new(found.collect::<Vec<_>>().into_iter()) as Addrs)
        })
    }
}
