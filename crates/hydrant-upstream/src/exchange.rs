//! One call to an upstream, from the breaker's gate to the headers of the answer: the steps every
//! call takes, in one place.

use crate::{
    adaptive::{Adaptive, Went},
    answer::{Blame, Failure, Refusal},
    auth::{Auth, Grant},
    breaker::Pass,
    error::UpstreamError,
    guard::Guard,
    hosts,
    pace::Pace,
    permits::{Permit, Permits, Priority, QueueFull},
    quota::{self, Counted},
    retries,
    strangers::{Asked, Named},
    urgency::Urgency,
    wire::{Hop, Patience, Wire},
};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{AUTHORIZATION, VIA},
};
use hydrant_egress::Response;
use hydrant_proto::{Identity, Via};
use hydrant_rules::Upstream;
use hydrant_telemetry::{
    metrics,
    metrics::{RequestKind, SpareReason},
};
use jiff::Timestamp;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, timeout_at};
use url::Url;

/// All that stands between a call and its upstream.
#[derive(Debug)]
pub struct Exchange {
    pub upstream: Arc<Upstream>,
    pub wire: Wire,
    pub auth: Auth,
    pub guard: Guard,
    /// For a call until its body has been read.
    pub permits: Arc<Permits>,
    /// For a call until its answer has begun. As many as the upstream bears, while bodies that take
    /// long hold up nobody.
    pub turns: Arc<Permits>,
    pub adaptive: Adaptive,
    pub pace: Arc<Pace>,
    /// Who asks.
    pub identity: Identity,
}

/// What is asked for.
#[derive(Debug)]
pub struct Ask {
    pub kind: RequestKind,
    /// What is asked for, for people: `manifest lab/app:1`.
    pub what: String,
    /// What may turn out not to exist.
    pub named: Option<Named>,
    pub method: Method,
    pub url: Url,
    /// Without `Authorization`.
    pub headers: HeaderMap,
    /// What a token must allow.
    pub scope: String,
    pub urgency: Urgency,
    /// The hydrants whose request is passed on.
    pub via: Via,
    /// Whether a 404 that no registry would write means "not there" all the same.
    pub any_404: bool,
    /// Longest wait for the whole call; without it, `Upstream::timeout` for each answer.
    pub budget: Option<Duration>,
    /// How often it was sent so far: redirected, with a token, once more.
    pub sent: AtomicU32,
}

/// A successful answer. The permit is given back when its body has been read.
#[derive(Debug)]
pub struct Reply {
    pub response: Response,
    pub permit: Permit,
}

/// Most redirects followed.
const MAX_REDIRECTS: usize = 5;
/// How long to stay away when our own queue is too long.
const QUEUE_PAUSE: Duration = Duration::from_secs(1);
/// Longest wait of the background for answers under way, which all have deadlines.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

impl Exchange {
    /// Makes the call; once more, if it failed in a way that may pass and the retry budget allows.
    /// A success is any 2xx.
    pub async fn call(&self, ask: &Ask) -> Result<Reply, Failure> {
        let until = ask.budget.map(|budget| Instant::now() + budget);
        let patience = Patience { each: self.upstream.timeout.0, until };
        let first = self.attempt(ask, patience).await;
        if !first.as_ref().is_err_and(|failure| failure.blame == Blame::Nobody) {
            self.guard.retries().attempted();
        }
        let failure = match first {
            Err(failure) if failure.blame == Blame::Failed => failure,
            other => return other,
        };
        let pause = retries::pause();
        if patience.left() <= pause || !self.guard.retries().take(self.guard.sharers()) {
            return Err(failure);
        }
        tokio::time::sleep(pause).await;
        metrics().upstreams.retried(&self.wire.upstream);
        tracing::debug!(upstream = %self.wire.upstream, error = %failure.error, "asks again");
        self.attempt(ask, patience).await
    }

    async fn attempt(&self, ask: &Ask, patience: Patience) -> Result<Reply, Failure> {
        let breaker = self.guard.breaker();
        if let Some(pause) = breaker.refusal().await {
            return Err(self.not_admitted(pause));
        }
        if let Some(pause) = self.guard.quota().refusal(ask.kind, ask.urgency.now()) {
            return Err(self.beyond_quota(ask.urgency.now(), pause));
        }
        let (permit, _turn) = self.permits(ask, patience).await?;
        // What it may cost is set aside only now: who waits for a slot keeps nothing from others.
        let _asked = self.among_unknown(ask, patience).await?;
        let counted = self.within_quota(ask, patience).await?;
        let pass = breaker.admit().map_err(|pause| self.not_admitted(pause))?;
        // Boxed: the state of some five requests would otherwise sit in every caller's future.
        let patience = patience.until(pass.deadline());
        let outcome = Box::pin(self.authorised(ask, &counted, patience)).await;
        self.heed_unknown(ask, &outcome).await;
        self.adapt(&pass, &outcome);
        settle(pass, &outcome);
        Ok(Reply { response: outcome?, permit })
    }

    /// Waits for answers under way, if only they can tell whether names may be asked for.
    async fn among_unknown(&self, ask: &Ask, patience: Patience) -> Result<Asked<'_>, Failure> {
        let Some(named) = &ask.named else { return Ok(Asked::known(self.guard.strangers())) };
        let asked = self.guard.strangers().enter(named, self.guard.sharers());
        match timeout_at(end(ask, patience), asked).await {
            Ok(asked) => asked.map_err(|retry_after| self.too_many_unknown(retry_after)),
            Err(_) => Err(self.too_busy()),
        }
    }

    /// Waits for answers under way, if only they can tell whether there is something left for this.
    async fn within_quota(&self, ask: &Ask, patience: Patience) -> Result<Counted<'_>, Failure> {
        let priority = ask.urgency.now();
        let counted = self.guard.quota().admit(ask.kind, priority, self.guard.sharers());
        match timeout_at(end(ask, patience), counted).await {
            Ok(counted) => counted.map_err(|pause| self.beyond_quota(priority, pause)),
            Err(_) => Err(self.too_busy()),
        }
    }

    /// Who does not have it, or refuses it, lets unknown names pay.
    async fn heed_unknown<T>(&self, ask: &Ask, outcome: &Result<T, Failure>) {
        let Some(named) = &ask.named else { return };
        let (strangers, sharers) = (self.guard.strangers(), self.guard.sharers());
        match outcome.as_ref().map_err(|failure| &failure.error) {
            Err(UpstreamError::Unknown { .. }) => strangers.missed(named, sharers).await,
            Err(UpstreamError::Denied { .. }) => strangers.denied(named, sharers).await,
            Ok(_) | Err(_) => {}
        }
    }

    /// Background calls wait their turn for as long as it takes; a client does not. A call that
    /// comes to be a client's gives its place up for one among theirs.
    async fn permits(&self, ask: &Ask, patience: Patience) -> Result<(Permit, Permit), Failure> {
        self.permits.limit_to(self.connections());
        if ask.urgency.now() == Priority::Background {
            let turn = self.turn(Priority::Background, ask);
            tokio::select! {
                turn = within(patience.until, turn) => return turn.ok_or_else(|| self.too_busy()),
                () = ask.urgency.raised() => {}
            }
        }
        let turn = self.turn(Priority::Interactive, ask);
        within(Some(end(ask, patience)), turn).await.ok_or_else(|| self.too_busy())
    }

    async fn turn(&self, priority: Priority, ask: &Ask) -> Result<(Permit, Permit), QueueFull> {
        let permit = self.permits.acquire(priority).await?;
        let turn = self.turns.acquire(priority).await?;
        self.pace.call(&ask.urgency, self.guard.sharers()).await;
        Ok((permit, turn))
    }

    /// How many calls may be under way at once, bodies included.
    pub fn connections(&self) -> u32 {
        let sharers = u32::try_from(self.guard.sharers()).unwrap_or(u32::MAX);
        let cap = self.upstream.caps.and_then(|caps| caps.connections);
        let share = cap.map_or(u32::MAX, |most| (most / sharers).max(1));
        self.upstream.concurrency.min(share)
    }

    /// How many calls may wait for their answers at once, at the moment.
    pub fn concurrency(&self) -> u32 {
        self.adaptive.limit().min(self.connections())
    }

    fn adapt(&self, pass: &Pass, outcome: &Result<Response, Failure>) {
        let went = match outcome.as_ref().map_err(|failure| failure.blame) {
            Ok(_) | Err(Blame::Answered) => Went::Well(pass.age()),
            Err(Blame::Failed | Blame::Limited(_)) => Went::Badly,
            Err(Blame::Nobody) => return,
        };
        self.adaptive.heed(went, Instant::now());
        self.turns.limit_to(self.adaptive.limit());
        metrics().upstreams.concurrency(&self.wire.upstream, self.concurrency());
    }

    /// Sends the request with what it is granted; after a 401, once more with a new grant.
    async fn authorised(
        &self,
        ask: &Ask,
        counted: &Counted<'_>,
        patience: Patience,
    ) -> Result<Response, Failure> {
        let scope = ask.scope.as_str();
        let trying = ask.method == Method::HEAD && self.auth.may_try();
        let grant = match trying {
            true => None,
            false => self.auth.grant(&self.wire, scope, patience).await?,
        };
        let sent = Instant::now();
        let (response, url) = self.follow(ask, counted, grant.as_ref(), patience).await?;
        let refused = response.status() == StatusCode::UNAUTHORIZED;
        if !(refused && hosts::is_endpoint(&self.upstream, &url)) {
            if trying && response.status().is_success() {
                self.auth.is_open().await;
            }
            return self.judge(ask, response, &url).await;
        }
        let (headers, used) = (response.headers(), grant.as_ref());
        let grant = self.auth.renew(&self.wire, headers, used, sent, scope, patience).await?;
        let (response, url) = self.follow(ask, counted, Some(&grant), patience).await?;
        self.judge(ask, response, &url).await
    }

    /// Follows redirects hop by hop. Only the endpoint itself sees the grant.
    async fn follow(
        &self,
        ask: &Ask,
        counted: &Counted<'_>,
        grant: Option<&Grant>,
        patience: Patience,
    ) -> Result<(Response, Url), Failure> {
        let mut url = ask.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let grant = grant.filter(|_| hosts::is_endpoint(&self.upstream, &url));
            let sent = counted.sent();
            let response = self.wire.send(self.hop(ask, &url, grant), patience).await?;
            if hosts::is_endpoint(&self.upstream, &url)
                && let Some(seen) = quota::seen(response.headers(), Timestamp::now())
            {
                counted.told(sent, seen);
            }
            if !is_redirect(response.status()) {
                return Ok((response, url));
            }
            url = hosts::redirect(&self.upstream, &url, response.headers())
                .map_err(|refusal| self.wire.down(&ask.what, refusal, Blame::Answered))?;
        }
        let detail = format!("it redirects more than {MAX_REDIRECTS} times");
        Err(self.wire.down(&ask.what, detail, Blame::Answered))
    }

    fn hop<'a>(&self, ask: &'a Ask, url: &Url, grant: Option<&Grant>) -> Hop<'a> {
        let mut headers = ask.headers.clone();
        headers.insert("accept-encoding", HeaderValue::from_static("identity"));
        if hosts::may_be_hydrant(&self.upstream, url)
            && let Ok(via) = ask.via.then(self.identity.current()).parse()
        {
            headers.insert(VIA, via);
        }
        if let Some(grant) = grant {
            headers.insert(AUTHORIZATION, grant.header.clone());
        }
        let (kind, what, method) = (ask.kind, &*ask.what, ask.method.clone());
        let resends = ask.sent.fetch_add(1, Ordering::Relaxed);
        Hop { kind, what, method, url: url.clone(), headers, resends }
    }

    async fn judge(&self, ask: &Ask, response: Response, url: &Url) -> Result<Response, Failure> {
        if response.status().is_success() {
            return Ok(response);
        }
        let refusal = Refusal {
            upstream: &self.wire.upstream,
            what: &ask.what,
            by_endpoint: hosts::is_endpoint(&self.upstream, url),
            head: ask.method == Method::HEAD,
            any_404: ask.any_404,
            with_credential: self.auth.is_credential_refused(response.headers()),
        };
        Err(refusal.judge(response).await)
    }

    fn not_admitted(&self, retry_after: Duration) -> Failure {
        self.spared(SpareReason::Breaker);
        let upstream = self.wire.upstream.clone();
        let error = UpstreamError::BreakerOpen { upstream, retry_after };
        Failure { error, blame: Blame::Nobody }
    }

    fn beyond_quota(&self, priority: Priority, retry_after: Duration) -> Failure {
        self.spared(SpareReason::Quota);
        match priority {
            Priority::Interactive => self.limited(retry_after, "what it allows us is used up"),
            Priority::Background => {
                let upstream = self.wire.upstream.clone();
                let error = UpstreamError::Reserved { upstream, retry_after };
                Failure { error, blame: Blame::Nobody }
            }
        }
    }

    /// Not asked, because of the names that did not exist.
    pub fn too_many_unknown(&self, retry_after: Duration) -> Failure {
        self.spared(SpareReason::UnknownNames);
        let upstream = self.wire.upstream.clone();
        let error = UpstreamError::TooManyUnknown { upstream, retry_after };
        Failure { error, blame: Blame::Nobody }
    }

    fn too_busy(&self) -> Failure {
        self.spared(SpareReason::Queue);
        self.limited(QUEUE_PAUSE, "all its `concurrency` is in use here")
    }

    fn limited(&self, retry_after: Duration, detail: &str) -> Failure {
        let (upstream, detail) = (self.wire.upstream.clone(), detail.to_owned());
        let error = UpstreamError::Limited { upstream, retry_after, detail };
        Failure { error, blame: Blame::Nobody }
    }

    fn spared(&self, reason: SpareReason) {
        metrics().upstreams.spared(&self.wire.upstream, reason);
    }
}

/// Until when a call may wait here: one of the background for as long as it takes.
fn end(ask: &Ask, patience: Patience) -> Instant {
    let longest = match ask.urgency.now() {
        Priority::Interactive => patience.each,
        Priority::Background => LONGEST_WAIT,
    };
    patience.until.unwrap_or_else(|| Instant::now() + longest)
}

/// What is had by then.
async fn within<T, E>(
    until: Option<Instant>,
    turn: impl Future<Output = Result<T, E>>,
) -> Option<T> {
    match until {
        Some(until) => timeout_at(until, turn).await.ok()?.ok(),
        None => turn.await.ok(),
    }
}

fn settle(pass: Pass, outcome: &Result<Response, Failure>) {
    match outcome.as_ref().map_err(|failure| failure.blame) {
        Ok(_) | Err(Blame::Answered) => pass.answered(),
        Err(Blame::Failed) => pass.failed(),
        Err(Blame::Limited(pause)) => pass.limited(pause),
        Err(Blame::Nobody) => drop(pass),
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}
