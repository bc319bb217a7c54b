//! The state of the connection: up or down, how often it came up, and why it is not usable.

use crate::outage::Outage;
use async_nats::{Event, ServerInfo};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};
use tokio::sync::watch;

/// The oldest server whose streams keep what we ask of them (per-message TTL, 2.11).
const OLDEST: (u64, u64) = (2, 11);

/// What is known about the connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkState {
    /// Bytes can be exchanged with a server.
    pub(crate) up: bool,
    /// Raised by every connect, so that a waiter sees a reconnect it slept through.
    pub(crate) epoch: u64,
    /// The streams are as they should be.
    pub(crate) ready: bool,
    /// The server can never be used as it is, so nothing is sent to it.
    pub(crate) barred: bool,
    /// Why the bus is not usable, for people.
    pub(crate) problem: Option<String>,
}

/// Shared by the connection's callback, the keeper and everybody who waits.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    state: Arc<watch::Sender<LinkState>>,
    connected: Arc<watch::Sender<bool>>,
    outage: Arc<Mutex<Outage>>,
}

impl Link {
    /// Of a connection to `servers`, as people may read them: no login.
    pub(crate) fn new(servers: String) -> Self {
        let state =
            LinkState { problem: Some("not connected yet".to_owned()), ..Default::default() };
        hydrant_telemetry::metrics().bus.connected(false);
        Self {
            state: Arc::new(watch::Sender::new(state)),
            connected: Arc::new(watch::Sender::new(false)),
            outage: Arc::new(Mutex::new(Outage::new(servers))),
        }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<LinkState> {
        self.state.subscribe()
    }

    pub(crate) fn connected(&self) -> watch::Receiver<bool> {
        self.connected.subscribe()
    }

    pub(crate) fn now(&self) -> LinkState {
        self.state.borrow().clone()
    }

    /// What the client tells about its connection.
    pub(crate) fn observe(&self, event: &Event) {
        match event {
            Event::Connected => {
                self.outage().over(Instant::now());
                self.change(|link| {
                    link.up = true;
                    link.barred = false;
                    link.epoch += 1;
                    link.problem = Some("connected, checking the streams".to_owned());
                });
            }
            Event::Disconnected | Event::Closed => self.change(|link| {
                link.up = false;
                link.ready = false;
                link.problem = Some("the connection is down".to_owned());
            }),
            Event::ClientError(error) if !self.now().up => {
                self.outage().failed(Instant::now(), &error.to_string());
                self.change(|link| link.problem = Some(error.to_string()));
            }
            Event::ServerError(error) => tracing::warn!(%error, "nats reports an error"),
            Event::ClientError(_)
            | Event::LameDuckMode
            | Event::Draining
            | Event::SlowConsumer(_) => {}
        }
    }

    /// The streams were found or made right.
    pub(crate) fn ready(&self) {
        self.change(|link| {
            link.ready = link.up;
            if link.up {
                link.problem = None;
                link.barred = false;
            }
        });
    }

    /// The streams are not as they should be, or, with `barred`, the server is not usable at all.
    pub(crate) fn refuse(&self, reason: &str, barred: bool) {
        self.change(|link| {
            link.ready = false;
            link.barred = barred;
            link.problem = Some(reason.to_owned());
        });
    }

    fn outage(&self) -> MutexGuard<'_, Outage> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, apply: impl FnOnce(&mut LinkState)) {
        self.state.send_modify(apply);
        let usable = self.now().ready;
        if self.connected.send_if_modified(|known| std::mem::replace(known, usable) != usable) {
            hydrant_telemetry::metrics().bus.connected(usable);
        }
    }
}

/// The reason why this server cannot be used, with the remedy; `None` when it can.
pub(crate) fn unsuitable(server: &ServerInfo) -> Option<String> {
    let mut numbers = server.version.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    if (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < OLDEST {
        return Some(format!(
            "nats-server {} is too old: hydrant needs 2.11 or later; upgrade the server \
             (the packages of some distributions are older: take a release from nats.io)",
            server.version
        ));
    }
    (!server.jetstream).then(|| {
        "nats-server runs without JetStream: start it with `-js` or a `jetstream {}` block"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(version: &str, jetstream: bool) -> ServerInfo {
        ServerInfo { version: version.to_owned(), jetstream, ..Default::default() }
    }

    #[test]
    fn old_servers_and_servers_without_jetstream_are_refused_with_the_remedy() {
        for good in ["2.11.0", "2.15.1", "2.12.0-RC.1", "3.0.0"] {
            assert_eq!(unsuitable(&server(good, true)), None, "{good}");
        }
        for old in ["2.9.10", "2.10.29", "1.4.1", "0.0.1", "old.er", ""] {
            let reason = unsuitable(&server(old, true)).unwrap();
            assert!(reason.contains("2.11"), "{reason}");
        }
        assert!(unsuitable(&server("2.15.1", false)).unwrap().contains("-js"));
    }

    #[test]
    fn connected_means_the_streams_are_right() {
        let link = Link::new(String::new());
        let connected = link.connected();
        link.observe(&Event::Connected);
        assert!(!*connected.borrow());
        link.ready();
        assert!(*connected.borrow());
        assert_eq!(link.now().problem, None);
        link.observe(&Event::Disconnected);
        assert!(!*connected.borrow());
        link.ready();
        assert!(!*connected.borrow(), "a late answer does not revive a dead connection");
    }
}
