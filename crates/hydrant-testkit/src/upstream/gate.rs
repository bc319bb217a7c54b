//! A gate that bodies wait at until a test opens it.

use tokio::sync::watch;

/// Closed at first; clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Gate(watch::Sender<bool>);

impl Gate {
    /// Lets everybody pass, from now on.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    pub(super) fn is_closed(&self) -> bool {
        !*self.0.borrow()
    }

    pub(super) async fn opened(&self) {
        let mut open = self.0.subscribe();
        open.wait_for(|open| *open).await.expect("the sender is ours");
    }
}
