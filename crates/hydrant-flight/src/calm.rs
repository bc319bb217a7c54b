//! Clients go first: storing takes processor time and disk from the very bytes that clients wait
//! for, so it waits until those have arrived, though never for long.

use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::timeout};

/// Longest wait. What has arrived lies in the spool meanwhile, so under steady traffic the spool
/// holds so much more.
const PATIENCE: Duration = Duration::from_secs(3);

/// How many blobs that clients wait for are arriving.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calm(Arc<watch::Sender<usize>>);

/// One of them, until it is dropped.
pub(crate) struct Arriving(Calm);

impl Calm {
    pub fn arriving(&self) -> Arriving {
        self.0.send_modify(|blobs| *blobs += 1);
        Arriving(self.clone())
    }

    /// Waits until none is arriving, or it took too long.
    pub async fn wait(&self) {
        let _ = timeout(PATIENCE, self.0.subscribe().wait_for(|blobs| *blobs == 0)).await;
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.0.0.send_modify(|blobs| *blobs -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test(start_paused = true)]
    async fn storing_waits_for_what_arrives_but_not_for_ever() {
        let calm = Calm::default();
        assert!(calm.wait().now_or_never().is_some());
        let (first, second) = (calm.arriving(), calm.arriving());
        let mut waiting = Box::pin(calm.wait());
        assert!((&mut waiting).now_or_never().is_none());
        drop(first);
        assert!((&mut waiting).now_or_never().is_none());
        drop(second);
        assert!(waiting.now_or_never().is_some());
        let _third = calm.arriving();
        calm.wait().await;
    }
}
