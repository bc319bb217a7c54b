//! `health`: is a process alive, or ready? For containers and units, which have no curl.

use super::{failure::Failure, output};
use crate::cli::Health;
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

/// Longest wait for one answer: less than an orchestrator gives a check.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause before it is asked again.
const AGAIN: Duration = Duration::from_millis(500);

pub async fn run(flags: Health) -> Result<(), Failure> {
    let path = if flags.ready { "/readyz" } else { "/healthz" };
    let url = format!("http://{}{path}", reachable(&flags.admin));
    let http = reqwest::Client::builder()
        .timeout(ANSWER_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| Failure::Failed(format!("cannot set up the client: {error}")))?;
    let began = Instant::now();
    loop {
        match ask(&http, &url).await {
            Ok(text) => return output::line(&text),
            Err(failure) if began.elapsed() >= flags.wait.0 => return Err(failure),
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

async fn ask(http: &reqwest::Client, url: &str) -> Result<String, Failure> {
    let unreachable =
        |error: reqwest::Error| Failure::Failed(format!("no answer from {url}: {error}"));
    let answer = http.get(url).send().await.map_err(unreachable)?;
    let status = answer.status();
    let text = answer.text().await.map_err(unreachable)?;
    match status.is_success() {
        true => Ok(text),
        false => Err(Failure::Failed(format!("{url} answers {}:\n{text}", status.as_u16()))),
    }
}

/// The address a process listens on, as one to connect to: what stands for every address of the
/// machine is asked at loopback.
fn reachable(admin: &str) -> String {
    match admin.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_unspecified() => {
            SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port()).to_string()
        }
        Ok(_) | Err(_) => admin.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_of_the_machine_is_asked_at_loopback() {
        for (admin, asked) in [
            ("0.0.0.0:9464", "127.0.0.1:9464"),
            ("[::]:9464", "127.0.0.1:9464"),
            ("10.0.0.7:9464", "10.0.0.7:9464"),
            ("hydrant-control:9464", "hydrant-control:9464"),
        ] {
            assert_eq!(reachable(admin), asked);
        }
    }
}
