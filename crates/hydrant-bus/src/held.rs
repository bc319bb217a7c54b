//! A key that is held: kept alive in the background, until it is released or lost.

use crate::{
    BusError, Claimed, Entry, Revision, SharedState,
    claim::{Attempt, Claim},
    shared::{check_size, name},
};
use bytes::Bytes;
use hydrant_proto::subject::StateKey;
use std::time::Duration;
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

/// A lease on a key. Dropped, it is released in the background; a killed or frozen process keeps
/// the key from others for at most its lifetime.
#[derive(Debug)]
pub struct Held {
    value: watch::Sender<Bytes>,
    legacy: oneshot::Sender<Legacy>,
    standing: watch::Receiver<Standing>,
    after_expiry: bool,
    keeper: JoinHandle<()>,
}

/// A last value, and how long it stays.
type Legacy = (Bytes, Duration);

/// Why a lease is no longer held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Another value is there.
    Taken(Entry),
    /// No value is there: it expired while we were cut off, was removed, or the bus lost it.
    Gone,
    /// No write was confirmed for a whole lifetime, so somebody else may have it by now.
    Unconfirmed,
}

#[derive(Clone, Debug)]
struct Standing {
    valid_until: Instant,
    lost: Option<Lost>,
}

impl SharedState {
    /// Claims `key` like [`SharedState::create`] and keeps it, writing it again at every third of
    /// `ttl`. Whoever then acts as the holder asks [`Held::is_held`] first, or stops by
    /// [`Held::lost`].
    pub async fn hold(
        &self,
        key: &StateKey,
        value: Bytes,
        ttl: Duration,
    ) -> Result<Claimed<Held>, BusError> {
        let (key, sealed) = (name(key)?, self.seal(&value)?);
        let attempt = Attempt::new(sealed.nonce, 0, Instant::now());
        match self.create_sealed(&key, &sealed, ttl).await? {
            Claimed::Taken(entry) => Ok(Claimed::Taken(entry)),
            Claimed::Mine(won) => {
                let claim = Claim::won(&attempt, won.revision, ttl);
                let mut held = Held::start(self.clone(), key, value, ttl, claim);
                held.after_expiry = won.after_expiry;
                Ok(Claimed::Mine(held))
            }
        }
    }

    /// Claims `key` in place of the value that was read as `former`, and keeps it like
    /// [`SharedState::hold`]; [`BusError::Conflict`] when another value is there by now. For who
    /// knows that nobody counts on that value any more.
    pub async fn hold_over(
        &self,
        key: &StateKey,
        value: Bytes,
        former: Revision,
        ttl: Duration,
    ) -> Result<Held, BusError> {
        let (key, sealed) = (name(key)?, self.seal(&value)?);
        let attempt = Attempt::new(sealed.nonce, former.0, Instant::now());
        let revision = match self.put(&key, &sealed, former.0, ttl).await {
            Err(unknown @ BusError::Unknown { .. }) => match self.read(&key).await {
                Ok((_, Some(found))) if found.nonce == sealed.nonce => found.revision.0,
                Ok(_) | Err(_) => return Err(unknown),
            },
            stored => stored?,
        };
        let claim = Claim::won(&attempt, revision, ttl);
        Ok(Held::start(self.clone(), key, value, ttl, claim))
    }
}

impl Held {
    fn start(state: SharedState, key: String, value: Bytes, ttl: Duration, claim: Claim) -> Self {
        let (value, values) = watch::channel(value);
        let (legacy, will) = oneshot::channel();
        let standing = Standing { valid_until: claim.valid_until(), lost: None };
        let (told, standing) = watch::channel(standing);
        let due = Instant::now() + ttl / 3;
        let keeper = Keeper { state, key, ttl, values, will, claim, told, due };
        let keeper = tokio::spawn(keeper.keep());
        Self { value, legacy, standing, after_expiry: false, keeper }
    }

    /// Whether the key was free because the former holder let it expire within the last minute, and
    /// did not give it back: it died, was frozen or was cut off, and others may know more than we do.
    pub fn is_after_expiry(&self) -> bool {
        self.after_expiry
    }

    /// Whether nobody else can have the key now. Needs no bus and no running background task, so
    /// it is right in a process that was frozen a moment ago.
    pub fn is_held(&self) -> bool {
        let standing = self.standing.borrow();
        standing.lost.is_none() && Instant::now() < standing.valid_until
    }

    /// Ends when the lease is lost, and then at once each time.
    pub async fn lost(&self) -> Lost {
        let mut watch = self.standing.clone();
        loop {
            let standing = watch.borrow_and_update().clone();
            if let Some(lost) = standing.lost {
                return lost;
            }
            tokio::select! {
                () = sleep_until(standing.valid_until) => return Lost::Unconfirmed,
                changed = watch.changed() => if changed.is_err() {
                    return Lost::Unconfirmed;
                },
            }
        }
    }

    /// Replaces the value, which is written at once, or, while the bus is away, when it is back.
    /// Of several in quick succession the last is written. Refused when it is too long.
    pub fn set(&self, value: Bytes) -> Result<(), BusError> {
        check_size(&value)?;
        self.value.send_replace(value);
        Ok(())
    }

    /// Gives the key back, so that the next one need not wait for it to expire. Takes at most two
    /// thirds of the lifetime when the bus does not answer, and no time when it is away.
    pub async fn release(self) {
        drop(self.value);
        // It panics only with the runtime going down, when there is nothing left to give back.
        let _ = self.keeper.await;
    }

    /// Gives the key up and leaves a last value there for `ttl`, which nobody holds. If it cannot
    /// be written, the former value expires. Refused when it is too long. Takes as long as
    /// [`Held::release`].
    pub async fn bequeath(self, value: Bytes, ttl: Duration) -> Result<(), BusError> {
        check_size(&value)?;
        // The keeper has ended only when the lease is lost, and there is nothing to leave.
        let _ = self.legacy.send((value, ttl));
        drop(self.value);
        let _ = self.keeper.await;
        Ok(())
    }
}

/// Keeps one lease alive.
struct Keeper {
    state: SharedState,
    key: String,
    ttl: Duration,
    values: watch::Receiver<Bytes>,
    will: oneshot::Receiver<Legacy>,
    claim: Claim,
    told: watch::Sender<Standing>,
    /// When to write again, if the value does not change before.
    due: Instant,
}

impl Keeper {
    async fn keep(mut self) {
        let lost = self.beats().await;
        let may_be_ours = matches!(lost, None | Some(Lost::Unconfirmed));
        self.tell(lost);
        if may_be_ours {
            // If it fails, the value expires.
            let _ = timeout(self.ttl / 3, self.part()).await;
        }
    }

    /// Leaves the last value, or nothing.
    async fn part(&mut self) -> Result<(), BusError> {
        let revision = self.claim.revision();
        match self.will.try_recv() {
            Ok((value, ttl)) => {
                let sealed = self.state.seal(&value)?;
                self.state.put(&self.key, &sealed, revision, ttl).await.map(drop)
            }
            Err(_) => self.state.remove_at(&self.key, revision).await,
        }
    }

    /// Writes again and again until the lease is lost, or (`None`) given back.
    async fn beats(&mut self) -> Option<Lost> {
        loop {
            tokio::select! {
                biased;
                changed = self.values.changed() => if changed.is_err() {
                    return None;
                },
                () = sleep_until(self.due.min(self.claim.valid_until())) => {}
            }
            if let Some(lost) = self.beat().await {
                return Some(lost);
            }
            self.tell(None);
        }
    }

    /// Writes once, and says when it is known to be too late.
    async fn beat(&mut self) -> Option<Lost> {
        if self.claim.is_valid(Instant::now()) {
            let began = Instant::now();
            match timeout(self.ttl / 3, self.write()).await {
                Ok(Ok(None)) => self.due = began + self.ttl / 3,
                Ok(Ok(Some(lost))) => return Some(lost),
                // Nothing is known; the claim runs out by itself.
                Ok(Err(_)) | Err(_) => self.due = Instant::now() + self.ttl / 9,
            }
        }
        (!self.claim.is_valid(Instant::now())).then_some(Lost::Unconfirmed)
    }

    async fn write(&mut self) -> Result<Option<Lost>, BusError> {
        let value = self.values.borrow_and_update().clone();
        let sealed = self.state.seal(&value)?;
        let attempt = self.claim.attempt(sealed.nonce, Instant::now());
        match self.state.put(&self.key, &sealed, attempt.expected, self.ttl).await {
            Ok(revision) => {
                self.claim.confirm(&attempt, revision, Instant::now());
                Ok(None)
            }
            Err(BusError::Conflict { what }) => {
                let (_, found) = self.state.read(&self.key).await?;
                let mark = found.as_ref().map(|entry| (entry.nonce, entry.revision.0));
                match self.claim.recognise(mark) {
                    true => Err(BusError::Conflict { what }),
                    false => Ok(Some(found.map_or(Lost::Gone, Lost::Taken))),
                }
            }
            Err(error) => Err(error),
        }
    }

    fn tell(&self, lost: Option<Lost>) {
        let valid_until = self.claim.valid_until();
        self.told.send_replace(Standing { valid_until, lost });
    }
}
