//! The process of the nats-server, bound to ours.

use super::config::Place;
use anyhow::Context as _;
use std::{fs::File, io, path::Path, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpStream,
    process::Command,
    time::{sleep, timeout},
};

/// Time between two looks whether it answers.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The running process.
pub struct Child(tokio::process::Child);

impl Child {
    /// Starts the program on its configuration. It gets SIGTERM from the kernel when the calling
    /// thread ends, by whatever death, and does not hear the Ctrl-C that is meant for us.
    pub fn spawn(program: &Path, place: &Place) -> anyhow::Result<Self> {
        let errors = File::create(place.errors()).context("open the error log of nats-server")?;
        let output = errors.try_clone().context("open the error log of nats-server")?;
        let mut command = Command::new(program);
        command.arg("-c").arg(place.config()).process_group(0).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        bind_to_this_thread(&mut command);
        let child = command.spawn();
        child.map(Self).with_context(|| format!("start {}", program.display()))
    }

    /// Waits for its end.
    pub async fn ended(&mut self) {
        // An error means that there is nothing to wait for.
        let _ = self.0.wait().await;
    }

    /// Asks it to end and waits; kills it when it takes longer than `limit`.
    pub async fn stop(mut self, limit: Duration) {
        if let Some(pid) = self.0.id() {
            terminate(pid);
        }
        if timeout(limit, self.0.wait()).await.is_err() {
            tracing::warn!("nats-server did not end in time, killing it");
            // It fails only when the process has ended.
            let _ = self.0.kill().await;
        }
    }
}

/// Waits until a server on `port` sends its greeting, which it does once JetStream is up.
pub async fn greets(port: u16) {
    while !greeted(port).await.unwrap_or(false) {
        sleep(LOOK_AGAIN).await;
    }
}

async fn greeted(port: u16) -> io::Result<bool> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let mut line = String::new();
    timeout(Duration::from_secs(1), BufReader::new(stream).read_line(&mut line)).await??;
    Ok(line.starts_with("INFO "))
}

#[allow(unsafe_code)]
fn terminate(pid: u32) {
    let Ok(pid) = i32::try_from(pid) else { return };
    // SAFETY: kill takes two integers and touches no memory of ours.
    unsafe { libc::kill(pid, libc::SIGTERM) };
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn bind_to_this_thread(command: &mut Command) {
    let parent = std::process::id();
    let bind = move || {
        // SAFETY: prctl and getppid take and return integers.
        let (bound, parent_now) =
            unsafe { (libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM), libc::getppid()) };
        // The parent may have died before the prctl; then nobody would ever end this child.
        let orphaned = u32::try_from(parent_now) != Ok(parent);
        if bound != 0 || orphaned { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
    };
    // SAFETY: the closure neither allocates nor locks, as the time between fork and exec demands.
    unsafe { command.pre_exec(bind) };
}

#[cfg(not(target_os = "linux"))]
fn bind_to_this_thread(_: &mut Command) {}
