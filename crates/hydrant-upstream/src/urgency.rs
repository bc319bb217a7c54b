//! How urgent a call is, which may change while it waits or reads: a client has come that wants
//! what was only being fetched in the background.

use crate::permits::Priority;
use tokio::sync::watch;

/// The priority of one or more calls; clones are the same one. It only ever rises.
#[derive(Clone, Debug)]
pub struct Urgency(watch::Sender<Priority>);

impl From<Priority> for Urgency {
    fn from(priority: Priority) -> Self {
        Self(watch::Sender::new(priority))
    }
}

impl Urgency {
    pub fn now(&self) -> Priority {
        *self.0.borrow()
    }

    /// A client waits from now on.
    pub fn raise(&self) {
        self.0.send_if_modified(|now| {
            let raised = *now == Priority::Background;
            *now = Priority::Interactive;
            raised
        });
    }

    /// Ends when a client waits.
    pub async fn raised(&self) {
        let mut now = self.0.subscribe();
        let raised = now.wait_for(|now| *now == Priority::Interactive).await;
        raised.expect("the sender is ours");
    }
}
