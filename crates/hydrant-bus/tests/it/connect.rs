//! Ways to connect: TLS, credentials, and servers that are refused.

use crate::support::{LIMIT, config, connect, job, ready};
use hydrant_bus::{Bus, BusConfig, BusError, Credentials, Published};
use hydrant_testkit::{NatsServer, TestCertificate, until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

#[tokio::test]
async fn nats_is_reached_over_tls() {
    let certificate = TestCertificate::generate();
    let server = NatsServer::options().tls(certificate).start().await;
    let trusting = BusConfig { ca_file: Some(server.certificate_file()), ..config(&server) };
    let bus = ready(Bus::connect(trusting).await.unwrap()).await;
    assert_eq!(bus.publish_job(&job("lab", "1")).await.unwrap(), Published::Queued);
}

#[tokio::test]
async fn a_certificate_nobody_vouches_for_is_not_trusted() {
    let server = NatsServer::options().tls(TestCertificate::generate()).start().await;
    let bus = Bus::connect(config(&server)).await.unwrap();
    let problem = until("a reason", LIMIT, async || {
        bus.problem().filter(|problem| problem != "not connected yet")
    })
    .await;
    assert!(!*bus.connected().borrow(), "{problem}");
    assert!(matches!(bus.publish_job(&job("lab", "1")).await, Err(BusError::Disconnected(_))));
}

#[tokio::test]
async fn user_and_password_or_a_token_log_in() {
    let text = "authorization { user: hydrant, password: s3cret }";
    let server = NatsServer::options().config(text).start().await;
    let user = |password: &str| Credentials::UserPassword {
        user: "hydrant".to_owned(),
        password: password.to_owned(),
    };
    let good = BusConfig { credentials: user("s3cret"), ..config(&server) };
    ready(Bus::connect(good).await.unwrap()).await;
    let wrong = Bus::connect(BusConfig { credentials: user("nope"), ..config(&server) }).await;
    let wrong = wrong.unwrap();
    until("a refusal that says why", LIMIT, async || {
        wrong.problem().filter(|problem| problem.contains("authorization")).map(drop)
    })
    .await;

    let server = NatsServer::options().config("authorization { token: t0ken }").start().await;
    let token = Credentials::Token("t0ken".to_owned());
    ready(Bus::connect(BusConfig { credentials: token, ..config(&server) }).await.unwrap()).await;
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_at_once() {
    for url in ["", "nats://[", "ftp://localhost", "nats://a:1,,nats://b:1"] {
        let outcome = Bus::connect(BusConfig::new(url, "test")).await;
        assert!(matches!(outcome, Err(BusError::Refused { .. })), "{url}");
    }
    let credentials = Credentials::File("/does/not/exist.creds".into());
    let config = BusConfig { credentials, ..BusConfig::new("nats://127.0.0.1:1", "test") };
    assert!(matches!(Bus::connect(config).await, Err(BusError::Refused { .. })));
}

#[tokio::test]
async fn a_server_that_is_too_old_is_refused_with_the_remedy() {
    let url = pretend_server("2.9.10").await;
    let bus = Bus::connect(BusConfig::new(url, "test")).await.unwrap();
    let problem = until("a refusal", LIMIT, async || {
        bus.problem().filter(|problem| problem.contains("too old"))
    })
    .await;
    assert!(problem.contains("2.9.10") && problem.contains("upgrade"), "{problem}");
    assert!(!*bus.connected().borrow());
    assert!(matches!(bus.publish_job(&job("lab", "1")).await, Err(BusError::Disconnected(_))));
}

/// Greets like a nats-server of some version and answers pings.
async fn pretend_server(version: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let info = format!(
        "INFO {{\"server_id\":\"x\",\"version\":\"{version}\",\"jetstream\":true,\
         \"headers\":true,\"max_payload\":1048576,\"proto\":1}}\r\n"
    );
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let info = info.clone();
            tokio::spawn(async move {
                socket.write_all(info.as_bytes()).await?;
                let mut buffer = [0; 4096];
                loop {
                    let read = socket.read(&mut buffer).await?;
                    if read == 0 {
                        return Ok::<_, std::io::Error>(());
                    }
                    if buffer[..read].windows(4).any(|window| window == b"PING") {
                        socket.write_all(b"PONG\r\n").await?;
                    }
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn closing_sends_what_is_left() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    bus.publish_job(&job("lab", "1")).await.unwrap();
    bus.flush().await.unwrap();
    bus.close().await;
    assert!(matches!(bus.publish_job(&job("lab", "2")).await, Err(BusError::Disconnected(_))));
}
