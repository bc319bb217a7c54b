//! A TCP proxy that breaks, blocks, delays and slows the connections through it.

use crate::{PortLease, server::runtime};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::sleep,
};

/// Bytes passed on at once.
const CHUNK: usize = 16 * 1024;

/// A proxy before one server; its connections are gone when it is dropped.
pub struct Proxy {
    port: PortLease,
    target: watch::Sender<String>,
    link: watch::Sender<Link>,
    cuts: watch::Sender<u64>,
    counts: Arc<Counts>,
    accepting: JoinHandle<()>,
}

/// What the proxy does with bytes, from now on and for every connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub flow: Flow,
    /// Wait before each piece is passed on.
    pub delay: Duration,
    /// Most bytes per second for each direction of each connection.
    pub bytes_per_second: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flow {
    #[default]
    Pass,
    /// Connections stay open and new ones are taken, but nothing passes until this ends; then it
    /// all does.
    Hold,
    /// What the client sends reaches the server; what the server answers is lost. When this ends,
    /// connections that lost something are closed.
    LoseAnswers,
    /// Every connection is closed, also new ones.
    Refuse,
}

#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    to_server: AtomicU64,
    to_client: AtomicU64,
}

impl Proxy {
    /// Starts a proxy before `target` (`127.0.0.1:4222`).
    pub async fn start(target: &str) -> Self {
        let port = PortLease::take();
        let (link, cuts) = (watch::Sender::new(Link::default()), watch::Sender::new(0));
        let counts = Arc::<Counts>::default();
        let target = watch::Sender::new(target.to_owned());
        let path = Path {
            target: target.subscribe(),
            link: link.subscribe(),
            cuts: cuts.subscribe(),
            counts: counts.clone(),
        };
        let listen = runtime().spawn(TcpListener::bind(("127.0.0.1", port.port())));
        let listener = listen.await.expect("binding does not panic").expect("the port is ours");
        let accepting = runtime().spawn(accept(listener, path));
        Self { port, target, link, cuts, counts, accepting }
    }

    /// `127.0.0.1:<port>`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port.port())
    }

    /// Changes what is done with bytes.
    pub fn set(&self, link: Link) {
        self.link.send_replace(link);
    }

    /// Changes only the flow.
    pub fn flow(&self, flow: Flow) {
        self.link.send_modify(|link| link.flow = flow);
    }

    /// Stands before another server from now on; present connections are closed.
    pub fn lead_to(&self, target: &str) {
        self.target.send_replace(target.to_owned());
        self.cut();
    }

    /// Closes every present connection; new ones are not touched.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Connections taken so far.
    pub fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::SeqCst)
    }

    /// Bytes passed on to the server so far.
    pub fn bytes_to_server(&self) -> u64 {
        self.counts.to_server.load(Ordering::SeqCst)
    }

    /// Bytes passed on to clients so far.
    pub fn bytes_to_client(&self) -> u64 {
        self.counts.to_client.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[derive(Clone)]
struct Path {
    target: watch::Receiver<String>,
    link: watch::Receiver<Link>,
    cuts: watch::Receiver<u64>,
    counts: Arc<Counts>,
}

/// Owns the connections, so that they end with it.
async fn accept(listener: TcpListener, path: Path) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((client, _)) = accepted {
                let mut path = path.clone();
                // Only cuts from here on are this connection's; who sees it counted may cut it.
                path.cuts.mark_unchanged();
                path.counts.connections.fetch_add(1, Ordering::SeqCst);
                connections.spawn(connection(client, path));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Ends, and with that closes both sides, at the first end, error, cut or refusal.
async fn connection(client: TcpStream, path: Path) {
    let (mut cuts, mut link) = (path.cuts.clone(), path.link.clone());
    tokio::select! {
        _ = relay(client, &path) => {}
        _ = cuts.changed() => {}
        _ = link.wait_for(|link| link.flow == Flow::Refuse) => {}
    }
}

async fn relay(client: TcpStream, path: &Path) -> io::Result<()> {
    let target = path.target.borrow().clone();
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let up = Pump { link: path.link.clone(), passed: &path.counts.to_server, answers: false };
    let down = Pump { link: path.link.clone(), passed: &path.counts.to_client, answers: true };
    tokio::try_join!(up.run(from_client, to_server), down.run(from_server, to_client))?;
    Ok(())
}

/// One direction of a connection.
struct Pump<'a> {
    link: watch::Receiver<Link>,
    passed: &'a AtomicU64,
    answers: bool,
}

impl Pump<'_> {
    async fn run(
        mut self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
    ) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = from.read(&mut buffer).await?;
            if count == 0 {
                return to.shutdown().await;
            }
            self.wait(count).await?;
            to.write_all(&buffer[..count]).await?;
            self.passed.fetch_add(count as u64, Ordering::SeqCst);
        }
    }

    /// Returns when `count` bytes may pass; an error when they were lost.
    async fn wait(&mut self, count: usize) -> io::Result<()> {
        let link = self.link.borrow_and_update().clone();
        let loses = |link: &Link| self.answers && link.flow == Flow::LoseAnswers;
        if loses(&link) {
            // The sender is gone only with the proxy.
            let _ = self.link.wait_for(|link| !loses(link)).await;
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        sleep(link.delay).await;
        if let Some(rate) = link.bytes_per_second {
            sleep(Duration::from_secs_f64(count as f64 / rate.max(1) as f64)).await;
        }
        let _ = self.link.wait_for(|link| link.flow != Flow::Hold).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FakeUpstream, client};
    use std::time::Instant;

    async fn lab() -> (FakeUpstream, Proxy, String) {
        let upstream = FakeUpstream::start().await;
        let proxy = Proxy::start(&upstream.host()).await;
        let url = format!("http://{}/v2/", proxy.host());
        (upstream, proxy, url)
    }

    const PATIENCE: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn bytes_pass_and_are_held_refused_and_cut_on_order() {
        let (_upstream, proxy, url) = lab().await;
        let client = client::plain();
        let get = || client.get(&url).send();
        assert_eq!(get().await.unwrap().status(), 200);
        assert!(proxy.bytes_to_server() > 0 && proxy.bytes_to_client() > 0);

        proxy.flow(Flow::Hold);
        let held = tokio::spawn(get());
        assert!(tokio::time::timeout(PATIENCE, get()).await.is_err());
        proxy.flow(Flow::Pass);
        assert_eq!(held.await.unwrap().unwrap().status(), 200);

        proxy.flow(Flow::Refuse);
        assert!(get().await.is_err());
        proxy.flow(Flow::Pass);
        assert_eq!(get().await.unwrap().status(), 200);

        let before = proxy.connections();
        let mut idle = TcpStream::connect(proxy.host()).await.unwrap();
        crate::until("the connection", Duration::from_secs(5), async || {
            (proxy.connections() > before).then_some(())
        })
        .await;
        proxy.cut();
        assert_eq!(idle.read(&mut [0]).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn a_lost_answer_leaves_the_request_done() {
        let (upstream, proxy, url) = lab().await;
        proxy.flow(Flow::LoseAnswers);
        let asked = tokio::spawn(client::plain().get(&url).send());
        crate::until("the request", Duration::from_secs(5), async || {
            (upstream.gets("/v2/") == 1).then_some(())
        })
        .await;
        proxy.flow(Flow::Pass);
        assert!(asked.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn delay_and_pace_take_their_time() {
        let (_upstream, proxy, url) = lab().await;
        proxy.set(Link { delay: PATIENCE, bytes_per_second: Some(1_000), ..Link::default() });
        let start = Instant::now();
        client::plain().get(&url).send().await.unwrap();
        assert!(start.elapsed() > 2 * PATIENCE);
    }
}
