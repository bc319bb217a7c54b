//! HTTP/1.1 as a load generator needs it: plain TCP, one buffer per connection, no task and no
//! allocation per piece of a body. What it costs is the same for everybody who is measured, and
//! small, since on a small machine it is taken from the cores of the measured.

use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::HashMap,
    io,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const BUFFER: usize = 256 * 1024;
const MOST_HEADERS: usize = 64;
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Longest silence of a server inside an answer.
const SILENCE_LIMIT: Duration = Duration::from_secs(120);

static RECEIVED: AtomicU64 = AtomicU64::new(0);

/// Body bytes that this process has received so far, over all connections.
pub fn received() -> u64 {
    RECEIVED.load(Relaxed)
}

/// A request without a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub method: &'static str,
    /// With the query, if any.
    pub path: String,
    pub range: Option<Range<u64>>,
}

impl Request {
    pub fn get(path: impl Into<String>) -> Self {
        Self { method: "GET", path: path.into(), range: None }
    }

    pub fn head(path: impl Into<String>) -> Self {
        Self { method: "HEAD", ..Self::get(path) }
    }

    pub fn part(path: impl Into<String>, range: Range<u64>) -> Self {
        Self { range: Some(range), ..Self::get(path) }
    }

    fn text(&self, authority: &str) -> String {
        const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
            application/vnd.oci.image.manifest.v1+json, \
            application/vnd.docker.distribution.manifest.list.v2+json, \
            application/vnd.docker.distribution.manifest.v2+json, */*";
        let Self { method, path, range } = self;
        let range = range.as_ref().map(|r| format!("range: bytes={}-{}\r\n", r.start, r.end - 1));
        let range = range.unwrap_or_default();
        format!(
            "{method} {path} HTTP/1.1\r\nhost: {authority}\r\nuser-agent: hydrant-loadtest\r\n\
             accept: {ACCEPT}\r\n{range}\r\n"
        )
    }
}

/// What an answer said before its body.
#[derive(Clone, Debug)]
pub struct Head {
    pub status: u16,
    /// `Docker-Content-Digest`.
    pub digest: Option<String>,
    location: Option<String>,
    framing: Framing,
    keeps_alive: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
}

/// An answer that was read whole.
#[derive(Clone, Debug)]
pub struct Answer {
    pub head: Head,
    /// Bytes of the body.
    pub length: u64,
    /// When the first byte of the body was there; when the head was, if the body is empty.
    pub first_byte: Instant,
}

/// Connections of one client: one per server, kept alive, used one request at a time.
#[derive(Debug, Default)]
pub struct Session {
    connections: HashMap<String, Connection>,
}

impl Session {
    /// Sends the request, follows one redirect, and gives the body to `each` as it arrives.
    pub async fn fetch(
        &mut self,
        authority: &str,
        request: &Request,
        mut each: impl FnMut(&[u8]),
    ) -> Result<Answer> {
        let answer = self.exchange(authority, request, &mut each).await?;
        let Some(location) = answer.head.location.as_deref() else {
            return Ok(answer);
        };
        let (authority, path) = split(location)?;
        let redirected = Request { path, ..request.clone() };
        self.exchange(&authority, &redirected, &mut each).await
    }

    async fn exchange(
        &mut self,
        authority: &str,
        request: &Request,
        each: &mut impl FnMut(&[u8]),
    ) -> Result<Answer> {
        let kept = self.connections.remove(authority);
        let was_kept = kept.is_some();
        let mut connection = match kept {
            Some(connection) => connection,
            None => Connection::open(authority).await?,
        };
        let head = match connection.head(request, authority).await {
            // A server may close a connection it kept while we were about to use it.
            Err(Silence::Closed) if was_kept => {
                connection = Connection::open(authority).await?;
                connection.head(request, authority).await?
            }
            head => head?,
        };
        let mut first_byte = None;
        // The body of a redirect is nobody's.
        let is_wanted = head.location.is_none();
        let mut taken = |piece: &[u8]| {
            first_byte.get_or_insert_with(Instant::now);
            if is_wanted {
                each(piece);
            }
        };
        let length = connection.body(head.framing, &mut taken).await;
        let length = length.with_context(|| format!("read the body of {}", request.path))?;
        if head.keeps_alive {
            self.connections.insert(authority.to_owned(), connection);
        }
        Ok(Answer { head, length, first_byte: first_byte.unwrap_or_else(Instant::now) })
    }
}

/// Why there is no answer.
#[derive(Debug)]
enum Silence {
    /// The connection was closed before a byte of it.
    Closed,
    Broken(anyhow::Error),
}

impl From<Silence> for anyhow::Error {
    fn from(silence: Silence) -> Self {
        match silence {
            Silence::Closed => anyhow::anyhow!("the server closed the connection"),
            Silence::Broken(error) => error,
        }
    }
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    buffer: Box<[u8]>,
    /// What was read and not used yet.
    unused: Range<usize>,
}

impl Connection {
    async fn open(authority: &str) -> Result<Self> {
        let connecting = timeout(CONNECT_LIMIT, TcpStream::connect(authority)).await;
        let stream = connecting
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .with_context(|| format!("connect to {authority}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; BUFFER].into(), unused: 0..0 })
    }

    async fn head(&mut self, request: &Request, authority: &str) -> Result<Head, Silence> {
        if self.stream.write_all(request.text(authority).as_bytes()).await.is_err() {
            return Err(Silence::Closed);
        }
        loop {
            let parsed = parse(&self.buffer[self.unused.clone()], request.method == "HEAD");
            if let Some((used, head)) = parsed.map_err(Silence::Broken)? {
                self.unused.start += used;
                return Ok(head);
            }
            let is_first = self.unused.is_empty();
            match self.more().await {
                Ok(()) => {}
                Err(_) if is_first => return Err(Silence::Closed),
                Err(error) => return Err(Silence::Broken(error)),
            }
        }
    }

    /// Reads on, behind what is unused.
    async fn more(&mut self) -> Result<()> {
        if self.unused.is_empty() {
            self.unused = 0..0;
        } else if self.unused.end == self.buffer.len() {
            self.buffer.copy_within(self.unused.clone(), 0);
            self.unused = 0..self.unused.len();
        }
        let free = &mut self.buffer[self.unused.end..];
        ensure!(!free.is_empty(), "a line or head is longer than {BUFFER} bytes");
        let reading = timeout(SILENCE_LIMIT, self.stream.read(free)).await;
        let read = reading.context("the server fell silent")??;
        ensure!(read > 0, "the connection ended early");
        self.unused.end += read;
        Ok(())
    }

    async fn body(&mut self, framing: Framing, each: &mut impl FnMut(&[u8])) -> Result<u64> {
        match framing {
            Framing::Length(length) => self.sized(length, each).await,
            Framing::Chunked => self.chunked(each).await,
        }
    }

    async fn sized(&mut self, length: u64, each: &mut impl FnMut(&[u8])) -> Result<u64> {
        let mut left = length;
        while left > 0 {
            if self.unused.is_empty() {
                self.more().await?;
            }
            let taken = self.unused.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let end = self.unused.start + taken;
            each(&self.buffer[self.unused.start..end]);
            self.unused.start = end;
            left -= taken as u64;
            RECEIVED.fetch_add(taken as u64, Relaxed);
        }
        Ok(length)
    }

    async fn chunked(&mut self, each: &mut impl FnMut(&[u8])) -> Result<u64> {
        let mut length = 0;
        loop {
            let line = self.line().await?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16).context("a chunk tells its size")?;
            if size == 0 {
                // Trailers, if any, end at an empty line.
                while !self.line().await?.is_empty() {}
                return Ok(length);
            }
            length += self.sized(size, each).await?;
            self.line().await?;
        }
    }

    async fn line(&mut self) -> Result<String> {
        loop {
            let unused = &self.buffer[self.unused.clone()];
            if let Some(end) = unused.iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(&unused[..end]).trim_end().to_owned();
                self.unused.start += end + 1;
                return Ok(line);
            }
            self.more().await?;
        }
    }
}

/// The head and its length, once it is whole.
fn parse(bytes: &[u8], to_head: bool) -> Result<Option<(usize, Head)>> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut parsed = httparse::Response::new(&mut headers);
    let used = match parsed.parse(bytes).context("the answer is HTTP")? {
        httparse::Status::Partial => return Ok(None),
        httparse::Status::Complete(used) => used,
    };
    let status = parsed.code.context("the answer has a status")?;
    let header = |name: &str| {
        let found = parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok()
    };
    let has_body = !to_head && !matches!(status, 100..200 | 204 | 304);
    let framing = match (has_body, header("transfer-encoding"), header("content-length")) {
        (false, ..) => Framing::Length(0),
        (true, Some(_), _) => Framing::Chunked,
        (true, None, Some(length)) => {
            Framing::Length(length.trim().parse().context("the length is a number")?)
        }
        (true, None, None) => bail!("an answer with status {status} has no length"),
    };
    let is_redirect = matches!(status, 301 | 302 | 303 | 307 | 308);
    let head = Head {
        status,
        digest: header("docker-content-digest").map(str::to_owned),
        location: header("location").filter(|_| is_redirect).map(str::to_owned),
        framing,
        keeps_alive: !header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")),
    };
    Ok(Some((used, head)))
}

/// Authority and path of an absolute URL.
fn split(location: &str) -> Result<(String, String)> {
    let url: url::Url = location.parse().context("a redirect leads to a URL")?;
    ensure!(url.scheme() == "http", "redirects to {} are not followed: use http", url.scheme());
    let host = url.host_str().context("a URL has a host")?;
    let port = url.port_or_known_default().unwrap_or(80);
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    Ok((format!("{host}:{port}"), format!("{}{query}", url.path())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// A server that sends these texts, one for each request on one connection.
    async fn serve(answers: &'static [&'static str]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            for answer in answers {
                let mut request = [0; 4096];
                assert!(stream.read(&mut request).await.unwrap() > 0);
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        authority
    }

    async fn body(session: &mut Session, authority: &str) -> Result<(u16, String)> {
        let mut text = Vec::new();
        let request = Request::get("/x");
        let answer =
            session.fetch(authority, &request, |piece| text.extend_from_slice(piece)).await?;
        assert_eq!(answer.length, text.len() as u64);
        Ok((answer.head.status, String::from_utf8(text).unwrap()))
    }

    #[tokio::test]
    async fn bodies_come_by_length_and_in_chunks_over_one_connection() {
        let authority = serve(&[
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
            "HTTP/1.1 404 No\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        ])
        .await;
        let mut session = Session::default();
        for expected in [(200, "hello"), (404, "abcde"), (200, "")] {
            let (status, text) = body(&mut session, &authority).await.unwrap();
            assert_eq!((status, text.as_str()), expected);
        }
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_an_error() {
        let authority = serve(&["HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello"]).await;
        assert!(body(&mut Session::default(), &authority).await.is_err());
    }

    #[test]
    fn a_redirect_is_split_into_server_and_path() {
        let (authority, path) = split("http://127.0.0.1:8333/cache/a?X-Amz=1").unwrap();
        assert_eq!((authority.as_str(), path.as_str()), ("127.0.0.1:8333", "/cache/a?X-Amz=1"));
        assert!(split("https://example.com/").is_err());
    }
}
