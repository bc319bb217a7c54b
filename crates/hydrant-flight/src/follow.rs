//! Following a flight that another process leads: its bytes are read along into the spool of this
//! process, so that readers here have them at their own pace, and this process can go on from where
//! it is when the leader is gone.

use crate::{
    error::{FlightError, is_of_the_upstream},
    far::Way,
    flight::Flight,
    flights::{Flights, Source},
    intake::{End, Gathered, Piece},
    load::{Body, Load},
    peers::{Along, Answer, Offer, Report},
    turn::{Leader, Tenure, Turn},
};
use futures::future::join;
use hydrant_telemetry::metrics::{FlightPart, metrics};
use hydrant_upstream::Priority;
use std::{convert::Infallible, mem, pin::pin, time::Duration};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long nothing may come before it is asked whether the leader still leads.
const STILL: Duration = Duration::from_secs(1);
/// Times it is asked in vain, because the bus is away too, before the leader is given up.
const UNTOLD: u32 = 10;
/// How long a leader that keeps its lease may be out of reach: longer than a lease.
const OUT_OF_REACH: Duration = Duration::from_secs(8);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// What came of one look at the leader.
enum Step {
    /// It stored the blob, and so we have seen.
    Stored,
    /// Somebody else has the turn.
    Turn(Turn),
    /// The link broke, or there was none.
    Broken(String),
}

impl Flights {
    /// Reads along until the blob is stored (`None`), or the turn has changed.
    pub(crate) async fn follow(
        &self,
        flight: &Flight,
        load: &mut Load,
        source: &Source,
        leader: Leader,
    ) -> Result<Option<Turn>, FlightError> {
        if !self.0.peers.is_worth_asking(&leader, &source.digest).await {
            return Ok(Some(Turn::Lead(Tenure::Apart)));
        }
        metrics().flights.part(FlightPart::Follow);
        flight.0.far.come_by(Way::Leader(leader.clone(), self.0.peers.clone()));
        let following = Following { flights: self, flight, source, leader: &leader };
        tokio::select! {
            turn = self.read_along(&following, load) => turn,
            never = following.urge() => match never {},
        }
    }

    async fn read_along(
        &self,
        following: &Following<'_>,
        load: &mut Load,
    ) -> Result<Option<Turn>, FlightError> {
        let leader = following.leader;
        let mut trouble = Trouble::default();
        loop {
            let before = load.at();
            let why = match following.step(load).await? {
                Step::Stored => return Ok(None),
                Step::Turn(turn) => return Ok(Some(turn)),
                Step::Broken(why) => why,
            };
            if load.at() > before {
                trouble = Trouble::default();
            }
            let Some(pause) = trouble.pause() else {
                self.give_up(leader, &why);
                return Ok(Some(Turn::Lead(Tenure::Apart)));
            };
            sleep(pause).await;
            match following.turn().await {
                Turn::Follow(now) if now.is(leader) => {}
                turn => return Ok(Some(turn)),
            }
        }
    }

    fn give_up(&self, leader: &Leader, why: &str) {
        if self.0.peers.give_up(leader) {
            tracing::warn!(
                peer = leader.record.peer,
                why,
                "the leader of a flight is out of reach, so what it leads is fetched here as well; \
                 can processes reach each other at the address of --peer?"
            );
        }
    }
}

/// One leader, followed.
struct Following<'a> {
    flights: &'a Flights,
    flight: &'a Flight,
    source: &'a Source,
    leader: &'a Leader,
}

impl Following<'_> {
    async fn step(&self, load: &mut Load) -> Result<Step, FlightError> {
        if !load.is_full() {
            let along = match self.while_led(load.at(), self.read(load)).await {
                Ok(along) => along,
                Err(step) => return Ok(step),
            };
            match along {
                Answer::Here(Along { size, body }) => {
                    load.open(size)?;
                    if let Some(step) = self.take(load, body).await? {
                        return Ok(step);
                    }
                }
                answer => return self.nothing(load, answer),
            }
        }
        load.confirm()?;
        self.stored(load).await
    }

    fn read(&self, load: &Load) -> impl Future<Output = Answer<Along>> {
        let address = self.flights.0.turns.address().filter(|_| load.at() > 0);
        let key = self.flight.key().to_owned();
        let offer = address.map(|address| Offer { address, key, upto: load.at() });
        let urgency = self.flight.urgency().now();
        self.flights.0.peers.read(self.leader, &self.source.digest, load.at(), offer, urgency)
    }

    /// Tells the leader of the client that came after it was asked for the bytes.
    async fn urge(&self) -> Infallible {
        if self.flight.urgency().now() == Priority::Background {
            self.flight.urgency().raised().await;
            while let Answer::Unreachable(_) =
                self.flights.0.peers.urge(self.leader, &self.source.digest).await
            {
                sleep(STILL).await;
            }
        }
        std::future::pending().await
    }

    /// Takes bytes as long as they come from the leader; `None` when all are here.
    async fn take(&self, load: &mut Load, body: Body) -> Result<Option<Step>, FlightError> {
        load.read_again(&CancellationToken::new()).await?;
        let (mut intake, mut ready) = (load.intake(body)?, Gathered::default());
        loop {
            // One piece arrives while another is hashed and written.
            let next = self.while_led(load.at() + ready.len() as u64, intake.next());
            let (next, appended) = join(next, load.append(mem::take(&mut ready))).await;
            appended?;
            let Piece { bytes, end } = match next {
                Ok(piece) => piece,
                Err(step) => return Ok(Some(step)),
            };
            if end.is_none() && !load.is_full_with(&bytes) {
                ready = bytes;
                continue;
            }
            load.append(bytes).await?;
            return Ok(match end {
                _ if load.is_full() => None,
                Some(End::Broken(error)) => Some(Step::Broken(error.to_string())),
                Some(End::Clean) | None => Some(Step::Broken("it ended early".to_owned())),
            });
        }
    }

    /// Waits for the leader to store the blob, and looks whether it has.
    async fn stored(&self, load: &Load) -> Result<Step, FlightError> {
        let answer = self.flights.0.peers.stored(self.leader, &self.source.digest);
        let answer = match self.while_led(load.at(), answer).await {
            Ok(answer) => answer,
            Err(step) => return Ok(step),
        };
        let why = match answer {
            // What it failed at is not what we would: our own bytes can be stored from here.
            Answer::Failed(report) => report.reason,
            Answer::Unreachable(why) => why,
            Answer::Gone | Answer::Here(()) => "nothing is stored".to_owned(),
        };
        if self.flights.is_stored(self.source, load.at()).await {
            self.flights.0.keeper.link(self.flight).await?;
            return Ok(Step::Stored);
        }
        Ok(Step::Broken(why))
    }

    /// What an answer without bytes means: a failure of the upstream that we would ask as well is
    /// ours too, if nobody was promised anything yet.
    fn nothing(&self, load: &Load, answer: Answer<Along>) -> Result<Step, FlightError> {
        let same_upstream =
            self.leader.record.upstream == self.source.client.upstream().name.as_str();
        match answer {
            Answer::Failed(Report { class, reason, retry_after_seconds })
                if same_upstream && !load.is_open() && is_of_the_upstream(class) =>
            {
                let retry_after = retry_after_seconds.map(Duration::from_secs);
                Err(FlightError::Elsewhere { class, retry_after, reason })
            }
            Answer::Failed(report) => Ok(Step::Broken(report.reason)),
            Answer::Unreachable(why) => Ok(Step::Broken(why)),
            Answer::Gone | Answer::Here(_) => Ok(Step::Broken("it has no such flight".to_owned())),
        }
    }

    /// Waits for `news`, asking from time to time whether the leader still leads, and can be reached:
    /// one that is frozen, or on a link that hangs, keeps its connections open. What it has stored
    /// comes from storage then. `at` is the first byte that is not here.
    async fn while_led<T>(&self, at: u64, news: impl Future<Output = T>) -> Result<T, Step> {
        let mut news = pin!(news);
        let mut untold = 0;
        loop {
            if let Ok(news) = timeout(STILL, &mut news).await {
                return Ok(news);
            }
            match self.turn().await {
                Turn::Follow(now) if now.is(self.leader) => {
                    untold = 0;
                    self.is_in_reach(at).await.map_err(Step::Broken)?;
                }
                Turn::Lead(tenure) if !tenure.is_held() && untold < UNTOLD => untold += 1,
                turn => return Err(Step::Turn(turn)),
            }
        }
    }

    /// Why what the leader has does not come, if it is not the leader that waits for it as well.
    async fn is_in_reach(&self, at: u64) -> Result<(), String> {
        match self.flights.0.peers.readable(self.leader, &self.source.digest).await {
            Answer::Here(readable) if readable <= at => Ok(()),
            Answer::Here(_) => Err("the link hangs".to_owned()),
            Answer::Gone => Err("it has no such flight any more".to_owned()),
            Answer::Failed(report) => Err(report.reason),
            Answer::Unreachable(why) => Err(why),
        }
    }

    async fn turn(&self) -> Turn {
        let upstream = self.source.client.upstream().name.as_str();
        self.flights.0.turns.take(self.flight, upstream).await
    }
}

/// How long a leader has been out of reach.
#[derive(Default)]
struct Trouble {
    since: Option<Instant>,
    pause: Duration,
}

impl Trouble {
    /// The pause before the next try; `None` when it is enough.
    fn pause(&mut self) -> Option<Duration> {
        let since = *self.since.get_or_insert_with(Instant::now);
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        (since.elapsed() < OUT_OF_REACH).then_some(self.pause)
    }
}
