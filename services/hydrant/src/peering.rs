//! The port at which other processes of the cluster read this one's flights, and the address they
//! are told.

use hydrant_boot::{
    Context, Role, Settings, bind,
    serve::{Limits, serve},
};
use hydrant_flight::{Cluster, Flights};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    net::{TcpListener, UdpSocket},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use url::Url;

/// Where NATS listens, if its URL does not say.
const NATS_PORT: u16 = 4222;
/// Connections of other processes: one for each flight they follow.
const LIMITS: Limits = Limits {
    connections: 2_048,
    header_read: Duration::from_secs(75),
    standstill: Duration::from_secs(600),
    header_bytes: 16 * 1024,
};

/// A bound port, and the address others reach it by.
pub struct PeerPort {
    listener: TcpListener,
    address: SocketAddr,
}

impl PeerPort {
    /// `None` for a process that flies nothing, or is all there is: `up` with its own NATS.
    pub async fn bind(role: Role, settings: &Settings) -> anyhow::Result<Option<Self>> {
        let flies = matches!(role, Role::Up | Role::Frontend | Role::Importer);
        let Some(nats_url) = settings.bus.nats_url.as_deref().filter(|_| flies) else {
            return Ok(None);
        };
        let facing = facing(nats_url).await;
        let wanted = settings.peer.unwrap_or_else(|| SocketAddr::new(facing, 0));
        let listener = bind("--peer", wanted).await?;
        let mut address = listener.local_addr()?;
        if address.ip().is_unspecified() {
            address.set_ip(facing);
        }
        Ok(Some(Self { listener, address }))
    }

    pub fn cluster(&self, context: &Context) -> Cluster {
        Cluster { state: context.bus.shared_state(), address: self.address }
    }

    /// Serves `flights` until `closing`, so that followers have the rest of them while the process
    /// drains.
    pub fn serve(self, flights: &Flights, closing: CancellationToken) -> JoinHandle<()> {
        tracing::debug!(address = %self.address, "other processes read flights here");
        tokio::spawn(serve(self.listener, flights.peer_routes(), LIMITS, closing))
    }
}

/// The address this machine has towards NATS; while NATS cannot be found, the one it has towards
/// everybody else.
async fn facing(nats_url: &str) -> IpAddr {
    for url in nats_url.split(',') {
        let Ok(url) = Url::parse(url.trim()) else { continue };
        let (Some(host), port) = (url.host_str(), url.port().unwrap_or(NATS_PORT)) else {
            continue;
        };
        let host = host.trim_matches(['[', ']']);
        let Ok(found) = tokio::net::lookup_host((host, port)).await else { continue };
        for server in found {
            if let Ok(address) = towards(server).await {
                return address;
            }
        }
    }
    // An address for documentation (RFC 5737): nothing is sent there.
    let elsewhere = SocketAddr::from(([192, 0, 2, 1], 9));
    towards(elsewhere).await.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// Connecting a UDP socket sends nothing; it chooses a route and with it our address.
async fn towards(server: SocketAddr) -> io::Result<IpAddr> {
    let any = match server {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_address_told_is_the_one_towards_nats() {
        for (url, address) in [
            ("nats://127.0.0.1:4222", "127.0.0.1"),
            ("nats://user:secret@localhost:1,tls://127.0.0.1", "127.0.0.1"),
            ("nats://no-such-host.invalid:4222, nats://127.0.0.1:4222", "127.0.0.1"),
        ] {
            assert_eq!(facing(url).await.to_canonical().to_string(), address, "{url}");
        }
    }
}
