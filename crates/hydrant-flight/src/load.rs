//! What of a blob is here: its bytes in the spool, and the hash of them. It stays while the process
//! leads, follows and takes over, so that nothing is fetched twice.

use crate::{
    calm::Arriving,
    crowd::Crowd,
    error::FlightError,
    flight::{Flight, Stage},
    intake::{End, Gathered, Intake},
    kept::Kept,
    leftovers::Leftovers,
    spool::{Before, LASTING_FROM, Reserved, Spool, SpoolFile},
};
use bytes::Bytes;
use futures::{future::join, stream::BoxStream};
use hydrant_store::{LeftSpool, LeftUpload};
use std::{mem, sync::Arc};
use tokio_util::sync::CancellationToken;

/// The blob, or the rest of it, on its way here.
pub(crate) struct Body {
    /// Where the first byte of `stream` is in the blob.
    pub offset: u64,
    pub stream: BoxStream<'static, Result<Bytes, FlightError>>,
}

/// How a body ended, if not by an error of ours.
#[derive(Debug)]
pub(crate) enum Taken {
    /// All of it came.
    Ended,
    /// It broke off.
    Broken(FlightError),
    /// We were told to stop.
    Halted,
}

/// The bytes of one flight in this process.
pub(crate) struct Load {
    flight: Flight,
    room: Room,
    /// What a dead process left of the blob, until that is known to fit.
    before: Before,
    open: Option<Open>,
    /// A client waits for it.
    awaited: Option<Arriving>,
}

/// Where bytes have their place, and who makes room for them.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    pub spool: Arc<Spool>,
    pub kept: Arc<Kept>,
    pub leftovers: Arc<Leftovers>,
    pub crowd: Crowd,
}

impl Room {
    /// What landed makes room first, then what was left.
    fn make(&self, bytes: u64) -> Result<Reserved, FlightError> {
        loop {
            match Reserved::new(self.spool.clone(), bytes) {
                Err(FlightError::NoSpool(_))
                    if self.kept.let_oldest_go() || self.leftovers.let_oldest_go() => {}
                made => return made,
            }
        }
    }
}

struct Open {
    file: SpoolFile,
    size: u64,
    /// Bytes that a dead process left: some are not hashed yet.
    left: u64,
    /// Bytes here, from the first one on.
    at: u64,
    /// The bytes are all here and hash to the digest.
    confirmed: bool,
}

impl Load {
    pub fn new(flight: &Flight, room: &Room) -> Self {
        let (flight, room) = (flight.clone(), room.clone());
        Self { flight, room, before: Before::Nothing, open: None, awaited: None }
    }

    /// Finds what a dead process left of the blob in the spool, whose size may be known. No byte of
    /// it counts as here before the blob is opened.
    pub fn recall(&mut self, size: Option<u64>) {
        if self.is_open() || size.is_some_and(|size| size < LASTING_FROM) {
            return;
        }
        if let Before::Nothing = self.before {
            let left = self.room.leftovers.take(self.flight.digest());
            self.before = left.map_or(Before::Nothing, Before::File);
        }
        let fits = |left: &LeftSpool| size.is_none_or(|size| size == left.size());
        if matches!(&self.before, Before::File(left) if !fits(left)) {
            self.before = Before::Nothing;
        }
    }

    /// Goes on with what a dead process stored.
    pub fn go_on_with(&mut self, left: Arc<LeftUpload>) {
        self.before = Before::Upload(left);
    }

    /// What comes from the upstream begins at `offset`: what was stored of it before is of no use
    /// when that comes too.
    pub fn comes_from(&mut self, offset: u64) {
        if matches!(&self.before, Before::Upload(left) if offset < left.bytes()) {
            self.before = Before::Nothing;
        }
    }

    /// Notes that a client waits for it, until it is all here.
    pub fn is_awaited(&mut self, arriving: Arriving) {
        self.awaited = Some(arriving);
    }

    pub fn flight(&self) -> &Flight {
        &self.flight
    }

    /// Bytes here.
    pub fn at(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.at)
    }

    /// The first byte that is not here, nor left by a dead process: where to go on.
    pub fn from(&self) -> u64 {
        self.open.as_ref().map_or(self.before.bytes(), |open| open.at.max(open.left))
    }

    /// Whether the size is known, so that readers have been told.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Size in bytes, once it is known.
    pub fn size(&self) -> Option<u64> {
        self.open.as_ref().map(|open| open.size)
    }

    /// Whether every byte is here, confirmed or not.
    pub fn is_full(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.at >= open.size)
    }

    /// Whether every byte is here once `piece` is.
    pub fn is_full_with(&self, piece: &Gathered) -> bool {
        self.open.as_ref().is_some_and(|open| open.at + piece.len() as u64 >= open.size)
    }

    /// Whether there is room for `size` bytes. It is not kept, since it may take long until they come.
    pub fn has_room(&self, size: u64) -> Result<(), FlightError> {
        match self.is_open() {
            true => Ok(()),
            false => self.room.make(size).map(drop),
        }
    }

    /// Says how large the blob is: the first time, room is made for it and readers hear of it;
    /// after that it has to stay the same.
    pub fn open(&mut self, size: u64) -> Result<(), FlightError> {
        if let Some(open) = &self.open {
            return same_size(open.size, size);
        }
        self.recall(Some(size));
        let before = mem::replace(&mut self.before, Before::Nothing);
        let (left, stored) = match &before {
            Before::Upload(upload) => (0, upload.bytes()),
            other => (other.bytes(), 0),
        };
        let room = self.room.make(size)?;
        let file = self.room.spool.open(room, self.flight.digest(), size, before)?;
        let shared = &self.flight.0;
        shared.spool.set(file.reader()).expect("a flight opens its spool once");
        shared.progress.send_modify(|progress| {
            progress.size = Some(size);
            (progress.spooled, progress.missing) = (stored, 0..stored);
            progress.stage = Stage::Flying;
        });
        self.open = Some(Open { file, size, left, at: stored, confirmed: false });
        Ok(())
    }

    /// Hashes what a dead process left, and readers hear of it as if it came; stops when `halt` is
    /// cancelled. To be opened before.
    pub async fn read_again(&mut self, halt: &CancellationToken) -> Result<(), FlightError> {
        let open = self.open.as_mut().expect("opened before bytes are taken");
        while !halt.is_cancelled()
            && let Some(at) = open.file.read_again().await?
        {
            open.at = at;
            self.flight.0.progress.send_modify(|progress| progress.spooled = at);
        }
        Ok(())
    }

    /// Ends it: what failed for a reason that may pass is left to the next flight. Not where the disk
    /// failed, which may be full: then nothing is left of anything, so that others can go on.
    pub fn end(self, flown: &Result<(), FlightError>) {
        let Some(open) = self.open else { return };
        let (digest, leftovers) = (self.flight.digest(), &self.room.leftovers);
        match flown {
            Ok(()) | Err(FlightError::Integrity(_)) => {
                open.file.forget();
                if open.size >= LASTING_FROM {
                    leftovers.drop_all_of(digest);
                }
            }
            Err(FlightError::NoSpool(_)) => {
                open.file.forget();
                while leftovers.let_oldest_go() {}
            }
            Err(_) => {
                if let Some(room) = open.file.lasting_room() {
                    leftovers.leave(digest, room);
                }
                drop(open);
                leftovers.look();
            }
        }
    }

    /// Takes what comes until the body ends or breaks, or `halt` is cancelled. What is here already
    /// is skipped. To be opened before.
    pub async fn take(
        &mut self,
        body: Body,
        halt: &CancellationToken,
    ) -> Result<Taken, FlightError> {
        self.read_again(halt).await?;
        if halt.is_cancelled() {
            return Ok(Taken::Halted);
        }
        let mut intake = self.intake(body)?;
        let mut ready = Gathered::default();
        loop {
            // One piece arrives while another is hashed and written. Only the wait is given up, never
            // a write under way, so that the hash is of the file.
            let next = halt.run_until_cancelled(intake.next());
            let (next, appended) = join(next, self.append(mem::take(&mut ready))).await;
            appended?;
            let Some(piece) = next else { return Ok(Taken::Halted) };
            ready = piece.bytes;
            if let Some(end) = piece.end {
                self.append(ready).await?;
                return Ok(end.into());
            }
        }
    }

    /// What comes of `body` beyond the bytes here.
    pub fn intake(&self, body: Body) -> Result<Intake, FlightError> {
        Intake::new(body, self.at(), &self.room.crowd)
    }

    /// Hashes a piece and spools it; then readers hear of it.
    pub async fn append(&mut self, piece: Gathered) -> Result<(), FlightError> {
        let open = self.open.as_mut().expect("opened before bytes are taken");
        let arrived = open.at + piece.len() as u64;
        if arrived > open.size {
            let detail = format!("it is longer than its {} bytes", open.size);
            return Err(FlightError::Integrity(detail));
        }
        if piece.is_empty() {
            return Ok(());
        }
        let piece: Arc<[Bytes]> = piece.into_chunks().into();
        let at = open.file.append(piece.clone()).await?;
        let from = mem::replace(&mut open.at, at);
        self.flight.0.recent.keep(from, &piece);
        self.flight.0.progress.send_modify(|progress| progress.spooled = at);
        self.flight.0.far.passed(at);
        Ok(())
    }

    /// Checks the digest of a full load, once; readers then get the last byte. Returns its size.
    pub fn confirm(&mut self) -> Result<u64, FlightError> {
        let open = self.open.as_mut().expect("a full load is open");
        if open.confirmed {
            return Ok(open.size);
        }
        let sealed = open.file.seal(self.flight.digest())?;
        // Set once: a load is confirmed once.
        let _ = self.flight.0.sealed.set(sealed);
        open.confirmed = true;
        self.awaited = None;
        self.flight.0.progress.send_modify(|progress| {
            progress.whole = true;
            progress.stage = Stage::Storing;
        });
        Ok(open.size)
    }
}

fn same_size(known: u64, told: u64) -> Result<(), FlightError> {
    match known == told {
        true => Ok(()),
        false => Err(FlightError::Integrity(format!("{told} bytes, where it had {known} before"))),
    }
}

impl From<End> for Taken {
    fn from(end: End) -> Self {
        match end {
            End::Clean => Self::Ended,
            End::Broken(error) => Self::Broken(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{aside::Aside, recent::Budget};
    use hydrant_proto::Digest;
    use hydrant_upstream::Priority;
    use std::{fs, path::Path};

    const BUDGET: u64 = 3 * LASTING_FROM;

    fn room(dir: &Path) -> Room {
        let lasting = dir.join("lasting");
        let spool = Spool::new(dir.into(), lasting.clone(), BUDGET).unwrap();
        let leftovers = Leftovers::new(lasting, &spool).unwrap();
        Room { spool, kept: Kept::new(0), leftovers, crowd: Crowd::default() }
    }

    /// A flight that has some of its blob.
    async fn begun(room: &Room, blob: &[u8]) -> (Flight, Load) {
        let (size, urgency) = (Some(LASTING_FROM), Priority::Interactive.into());
        let (budget, aside) = (Budget::default(), Aside::new());
        let flight = Flight::new(Digest::of(blob), size, urgency, &budget, &aside);
        let mut load = Load::new(&flight, room);
        load.open(LASTING_FROM).unwrap();
        load.append(Bytes::from_static(&[7; 1000]).into()).await.unwrap();
        (flight, load)
    }

    fn files(dir: &Path) -> usize {
        fs::read_dir(dir.join("lasting")).unwrap().count()
    }

    #[tokio::test]
    async fn what_a_failed_flight_leaves_takes_room_from_its_end_on_until_others_need_it() {
        let dir = tempfile::tempdir().unwrap();
        let room = room(dir.path());
        for blob in [b"first", b"other"] {
            let (flight, load) = begun(&room, blob).await;
            load.end(&Err(FlightError::Stopping));
            drop(flight);
        }
        assert_eq!(files(dir.path()), 2);
        assert!(room.spool.used() >= 2 * 1000, "{} bytes", room.spool.used());
        drop(room.make(BUDGET).unwrap());
        assert_eq!((files(dir.path()), room.spool.used()), (0, 0));
    }

    #[tokio::test]
    async fn nothing_is_left_on_a_disk_that_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let room = room(dir.path());
        let (flight, load) = begun(&room, b"first").await;
        load.end(&Err(FlightError::Stopping));
        drop(flight);
        let (_flight, load) = begun(&room, b"other").await;
        load.end(&Err(FlightError::NoSpool("the disk is full".to_owned())));
        assert_eq!(files(dir.path()), 0);
    }
}
