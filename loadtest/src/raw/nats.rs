//! Acknowledged JetStream publishes by the NATS protocol itself.

use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

/// Publishes that are not yet acknowledged at most.
pub const WINDOW: u64 = 64;
/// Bytes of a message, about what a job has.
const PAYLOAD: usize = 300;
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Acknowledged publishes per second into a work-queue stream on files, as jobs are, for `time`.
pub async fn publishes(port: u16, time: Duration) -> Result<f64> {
    let mut connection = Connection::open(port).await?;
    let stream = r#"{"name":"raw","subjects":["raw.*"],"retention":"workqueue","storage":"file"}"#;
    connection.publish("$JS.API.STREAM.CREATE.raw", stream.as_bytes()).await?;
    let created = connection.answer().await?;
    ensure!(!created.contains("\"error\""), "the stream was refused: {created}");
    let payload = vec![b'x'; PAYLOAD];
    let (started, mut sent, mut acknowledged) = (Instant::now(), 0, 0);
    while started.elapsed() < time || acknowledged < sent {
        while sent - acknowledged < WINDOW && started.elapsed() < time {
            connection.publish(&format!("raw.{sent}"), &payload).await?;
            sent += 1;
        }
        if acknowledged < sent {
            let answer = connection.answer().await?;
            ensure!(!answer.contains("\"error\""), "a publish was refused: {answer}");
            acknowledged += 1;
        }
    }
    Ok(acknowledged as f64 / started.elapsed().as_secs_f64())
}

struct Connection {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Connection {
    async fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.context("connect to nats")?;
        stream.set_nodelay(true)?;
        let (reader, mut writer) = stream.into_split();
        let hello = "CONNECT {\"verbose\":false,\"pedantic\":false}\r\nSUB _INBOX.raw 1\r\n";
        writer.write_all(hello.as_bytes()).await?;
        Ok(Self { reader: BufReader::new(reader), writer })
    }

    async fn publish(&mut self, subject: &str, payload: &[u8]) -> Result<()> {
        let mut frame = format!("PUB {subject} _INBOX.raw {}\r\n", payload.len()).into_bytes();
        frame.extend_from_slice(payload);
        frame.extend_from_slice(b"\r\n");
        Ok(self.writer.write_all(&frame).await?)
    }

    /// The payload of the next message to our inbox.
    async fn answer(&mut self) -> Result<String> {
        loop {
            let mut line = String::new();
            let reading = timeout(ANSWER_LIMIT, self.reader.read_line(&mut line)).await;
            let read = reading.context("nats fell silent")??;
            ensure!(read > 0, "nats closed the connection");
            match line.split_whitespace().next().unwrap_or_default() {
                "MSG" => {
                    let length = line.split_whitespace().next_back().context("a length")?;
                    let mut payload = vec![0; length.parse::<usize>()? + 2];
                    self.reader.read_exact(&mut payload).await?;
                    return Ok(String::from_utf8_lossy(&payload).trim_end().to_owned());
                }
                "PING" => self.writer.write_all(b"PONG\r\n").await?,
                "-ERR" => anyhow::bail!("nats says {}", line.trim()),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hydrant_testkit::NatsServer;

    #[tokio::test]
    async fn publishes_are_acknowledged() {
        let nats = NatsServer::start().await;
        assert!(publishes(nats.port(), Duration::from_millis(200)).await.unwrap() > 1.0);
    }
}
