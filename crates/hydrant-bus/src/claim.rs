//! What the holder of a lease knows, and when it must stop believing it. Pure: it is told the time
//! and what the bus answered; `held.rs` does the asking.
//!
//! The server forgets a value `ttl` after it stored it. Nothing is stored before it was sent, so
//! until `ttl` after the last confirmed write was *sent* nobody else can have the key. A holder
//! believes no longer than that, by its own monotonic clock: a process that was frozen, or cut off,
//! knows when it wakes that it may have lost the lease, whatever it hears afterwards.
//!
//! Only the answer of a compare-and-set lengthens a claim. Reading can end one, never lengthen it.
//! Assumed: both clocks run at the same pace, and the server's is not set forward.

use std::time::Duration;
use tokio::time::Instant;

#[cfg(test)]
mod model;

/// One compare-and-set under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Attempt {
    nonce: u64,
    /// The revision the write is to replace.
    pub(crate) expected: u64,
    sent_at: Instant,
}

impl Attempt {
    /// To be made before the write is sent.
    pub(crate) fn new(nonce: u64, expected: u64, now: Instant) -> Self {
        Self { nonce, expected, sent_at: now }
    }
}

/// A key that was won.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Claim {
    ttl: Duration,
    revision: u64,
    valid_until: Instant,
    /// Of our writes that may be the stored one: the last confirmed, and those after it whose
    /// answer did not come.
    nonces: Vec<u64>,
}

impl Claim {
    /// The server took the first write.
    pub(crate) fn won(attempt: &Attempt, revision: u64, ttl: Duration) -> Self {
        let valid_until = attempt.sent_at + ttl;
        Self { ttl, revision, valid_until, nonces: vec![attempt.nonce] }
    }

    /// A claim that was once not valid never is again.
    pub(crate) fn is_valid(&self, now: Instant) -> bool {
        now < self.valid_until
    }

    pub(crate) fn valid_until(&self) -> Instant {
        self.valid_until
    }

    /// The revision of the last write that is known to be stored.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// The next write, to be sent at once. Until it is answered it may or may not be stored.
    pub(crate) fn attempt(&mut self, nonce: u64, now: Instant) -> Attempt {
        self.nonces.push(nonce);
        Attempt::new(nonce, self.revision, now)
    }

    /// The server took the write. An answer that comes after the claim ran out does not revive it:
    /// somebody may have been told already that it is lost.
    pub(crate) fn confirm(&mut self, attempt: &Attempt, revision: u64, now: Instant) {
        if self.is_valid(now) {
            self.valid_until = self.valid_until.max(attempt.sent_at + self.ttl);
        }
        self.revision = revision;
        self.nonces = vec![attempt.nonce];
    }

    /// The server refused a write because the key is not at the expected revision. It is still
    /// ours if what is there (`nonce` and revision) was written by one of the attempts whose answer
    /// did not come; the next attempt then starts from it. When that one was stored is not known,
    /// so the claim becomes no longer.
    pub(crate) fn recognise(&mut self, found: Option<(u64, u64)>) -> bool {
        match found {
            Some((nonce, revision)) if self.nonces.contains(&nonce) => {
                self.revision = revision;
                true
            }
            Some(_) | None => false,
        }
    }
}
