//! An endpoint written by hand, for answers no HTTP library would give.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_util::task::AbortOnDropHandle;

/// What a connection is answered.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// 200, whole.
    Ok,
    /// 200 and the promise of a body that never comes.
    OkWithoutItsBody,
    /// 200 and a body without end.
    OkWithoutEnd,
}

pub struct RawEndpoint {
    port: u16,
    seen: Arc<Seen>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Seen {
    /// `webhook-id` of each request.
    ids: Mutex<Vec<String>>,
    /// Bytes of bodies taken from us.
    body: AtomicUsize,
    /// Connections the other side has closed.
    closed: AtomicUsize,
}

impl RawEndpoint {
    /// Answers the first connection with `first` and the others with 200.
    pub async fn start(first: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Seen::default());
        let task = tokio::spawn(accept(listener, first, Arc::clone(&seen)));
        Self { port, seen, _task: AbortOnDropHandle::new(task) }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    pub fn ids(&self) -> Vec<String> {
        self.seen.ids.lock().unwrap().clone()
    }

    pub fn body_bytes(&self) -> usize {
        self.seen.body.load(Ordering::Relaxed)
    }

    pub fn closed(&self) -> usize {
        self.seen.closed.load(Ordering::Relaxed)
    }
}

async fn accept(listener: TcpListener, first: Answer, seen: Arc<Seen>) {
    let mut answer = first;
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve(stream, answer, Arc::clone(&seen)));
        answer = Answer::Ok;
    }
}

async fn serve(mut stream: TcpStream, answer: Answer, seen: Arc<Seen>) {
    let request = read_request(&mut stream).await.unwrap_or_default();
    let id = request.lines().find_map(|line| line.strip_prefix("webhook-id: "));
    seen.ids.lock().unwrap().push(id.unwrap_or_default().to_owned());
    let _ = reply(&mut stream, answer, &seen).await;
    // Whatever comes now, or an error, is the end of this connection.
    let _ = stream.read(&mut [0; 1]).await;
    seen.closed.fetch_add(1, Ordering::Relaxed);
}

async fn read_request(stream: &mut TcpStream) -> io::Result<String> {
    let mut request = Vec::new();
    loop {
        stream.read_buf(&mut request).await?;
        let text = String::from_utf8_lossy(&request).to_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.and_then(|length| length.parse().ok()).unwrap_or(0) {
            return Ok(text);
        }
    }
}

async fn reply(stream: &mut TcpStream, answer: Answer, seen: &Seen) -> io::Result<()> {
    let head = |length: &str| format!("HTTP/1.1 200 OK\r\n{length}\r\n\r\n");
    match answer {
        Answer::Ok => stream.write_all(head("content-length: 0").as_bytes()).await,
        Answer::OkWithoutItsBody => stream.write_all(head("content-length: 9").as_bytes()).await,
        Answer::OkWithoutEnd => {
            stream.write_all(head("content-length: 1000000000000").as_bytes()).await?;
            loop {
                stream.write_all(&[b'x'; 4_096]).await?;
                seen.body.fetch_add(4_096, Ordering::Relaxed);
            }
        }
    }
}
