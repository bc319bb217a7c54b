//! The end of a process: signals, the order of the steps, and the deadline.

use crate::readiness::Readiness;
use std::{future::Future, process, time::Duration};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// Exit codes of a process that was told twice to stop: 128 and the number of the second signal,
/// as a shell reports a process that a signal ended.
const INTERRUPTED: i32 = 130;
const TERMINATED: i32 = 143;

/// A token that is cancelled by SIGTERM or SIGINT, `delay` after readiness was taken away, so
/// that load balancers look elsewhere before we stop accepting. A second signal ends the process
/// at once.
pub fn stop_on_signals(
    readiness: Readiness,
    delay: Duration,
) -> std::io::Result<CancellationToken> {
    let term = signal(SignalKind::terminate())?;
    let int = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    // Owned by the process: it ends with it.
    tokio::spawn(stop_in_order(Signals { term, int }, readiness, delay, stop.clone()));
    Ok(stop)
}

async fn stop_in_order(
    mut signals: Signals,
    readiness: Readiness,
    delay: Duration,
    stop: CancellationToken,
) {
    signals.next().await;
    tracing::info!("stopping; a second signal ends at once");
    readiness.begin_drain();
    let code = match timeout(delay, signals.next()).await {
        Ok(code) => code,
        Err(_) => {
            stop.cancel();
            signals.next().await
        }
    };
    tracing::warn!("told to stop again: ending at once, work under way is left to others");
    process::exit(code);
}

struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    /// Waits for a signal, and gives the exit code of a process that it ends.
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.term.recv() => TERMINATED,
            _ = self.int.recv() => INTERRUPTED,
        }
    }
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained<T> {
    Finished(T),
    /// Something was still under way; it is dropped, and safe to drop: storage holds only what is
    /// complete, and the queue gives unsettled jobs to others.
    DeadlinePassed,
}

/// Waits for `work`, and once `stop` is cancelled for at most `deadline` more.
pub async fn drain<T>(
    stop: &CancellationToken,
    deadline: Duration,
    work: impl Future<Output = T>,
) -> Drained<T> {
    let limit = async {
        stop.cancelled().await;
        tokio::time::sleep(deadline).await;
    };
    tokio::select! {
        done = work => Drained::Finished(done),
        () = limit => {
            tracing::warn!(deadline_ms = deadline.as_millis(), "drain deadline passed, ending what is under way");
            Drained::DeadlinePassed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    #[tokio::test(start_paused = true)]
    async fn work_ends_by_itself_or_at_the_deadline_after_the_stop() {
        let stop = CancellationToken::new();
        let second = Duration::from_secs(1);
        assert_eq!(drain(&stop, second, async { 7 }).await, Drained::Finished(7));
        let slow = async { tokio::time::sleep(100 * second).await };
        assert_eq!(drain(&stop, second, slow).await, Drained::Finished(()));
        stop.cancel();
        let began = tokio::time::Instant::now();
        assert_eq!(drain(&stop, second, pending::<()>()).await, Drained::DeadlinePassed);
        assert_eq!(began.elapsed(), second);
    }
}
