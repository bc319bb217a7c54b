//! The misbehaviour a test can order.

use super::{
    answer::{BodyEnd, Draft, Opening},
    gate::Gate,
};
use crate::{Content, pattern};
use bytes::Bytes;
use hyper::{StatusCode, http::request::Parts};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// What goes wrong, and how often. Constructors name the fault; the methods after them refine it,
/// and [`Fault::and`] joins several.
#[derive(Clone, Debug, Default)]
pub struct Fault {
    effects: Vec<Effect>,
    method: Option<String>,
    skip: u64,
    times: Option<u64>,
}

#[derive(Clone, Debug)]
enum Effect {
    Status(u16),
    Header(String, String),
    NoHeader(String),
    Body(Bytes),
    Delay(Duration),
    Opening(Opening),
    LateBody(Duration),
    Pace(u64),
    Wrong,
    End(BodyEnd),
    Hold(u64, Gate),
    Short(u64),
    Long(u64),
    Shift(i64),
    NoRange,
}

impl Fault {
    fn one(effect: Effect) -> Self {
        Self { effects: vec![effect], ..Self::default() }
    }

    /// Answers this status with an error body, and without the headers of the right answer.
    pub fn status(status: u16) -> Self {
        Self::one(Effect::Status(status))
    }

    /// 307 to `location`; for other redirects use [`Fault::status`] and [`Fault::header`].
    pub fn redirect(location: &str) -> Self {
        Self::status(307).header("location", location)
    }

    /// A page of HTML with status 200, as captive portals send.
    pub fn html() -> Self {
        Self::status(200).header("content-type", "text/html").body("<html>Sign in</html>")
    }

    /// Changes nothing but what is added to it: `Fault::none().header("ratelimit-remaining", "0")`.
    pub fn none() -> Self {
        Self::default()
    }

    /// Changes one byte in the middle of the body.
    pub fn wrong_bytes() -> Self {
        Self::one(Effect::Wrong)
    }

    /// Announces the whole body, and closes the connection after `bytes`.
    pub fn truncate(bytes: u64) -> Self {
        Self::one(Effect::End(BodyEnd::CutAfter(bytes)))
    }

    /// Announces and sends only the first `bytes` of the body, and ends cleanly.
    pub fn short(bytes: u64) -> Self {
        Self::one(Effect::Short(bytes))
    }

    /// Announces and sends `bytes` zeros more than the body has.
    pub fn long(bytes: u64) -> Self {
        Self::one(Effect::Long(bytes))
    }

    /// Sends the body, and then more for ever, without a Content-Length.
    pub fn endless() -> Self {
        Self::one(Effect::End(BodyEnd::Never))
    }

    /// Sends `bytes` of the body and then nothing, with the connection open.
    pub fn stall(bytes: u64) -> Self {
        Self::one(Effect::End(BodyEnd::StallAfter(bytes)))
    }

    /// Sends `bytes` of the body, and the rest when `gate` is open.
    pub fn hold(bytes: u64, gate: &Gate) -> Self {
        Self::one(Effect::Hold(bytes, gate.clone()))
    }

    /// Sends at most this many body bytes per second on each connection.
    pub fn slow(bytes_per_second: u64) -> Self {
        Self::one(Effect::Pace(bytes_per_second.max(1)))
    }

    /// Waits before the status line.
    pub fn delay(delay: Duration) -> Self {
        Self::one(Effect::Delay(delay))
    }

    /// Waits between the headers and the body.
    pub fn late_body(delay: Duration) -> Self {
        Self::one(Effect::LateBody(delay))
    }

    /// Takes the request and never answers.
    pub fn black_hole() -> Self {
        Self::one(Effect::Opening(Opening::Silence))
    }

    /// Takes the request and closes the connection.
    pub fn cut() -> Self {
        Self::one(Effect::Opening(Opening::Close))
    }

    /// Answers a Range request with a 206 whose range, as it says itself, is moved by `bytes`.
    pub fn shifted_range(bytes: i64) -> Self {
        Self::one(Effect::Shift(bytes))
    }

    /// Answers a Range request with 200 and the whole body.
    pub fn no_range() -> Self {
        Self::one(Effect::NoRange)
    }

    /// Sets a header of the answer. `transfer-encoding` leaves the Content-Length out.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.effects.push(Effect::Header(name.to_owned(), value.to_owned()));
        self
    }

    /// Removes a header of the answer.
    pub fn without_header(mut self, name: &str) -> Self {
        self.effects.push(Effect::NoHeader(name.to_owned()));
        self
    }

    /// Sends this body instead.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.effects.push(Effect::Body(body.into()));
        self
    }

    /// Joins the effects of `other`; counts and method stay those of `self`.
    pub fn and(mut self, other: Self) -> Self {
        self.effects.extend(other.effects);
        self
    }

    /// Only for requests of this method.
    pub fn method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// Lets the first `requests` that fit pass.
    pub fn after(mut self, requests: u64) -> Self {
        self.skip = requests;
        self
    }

    /// Ends by itself after so many requests.
    pub fn times(mut self, requests: u64) -> Self {
        self.times = Some(requests);
        self
    }
}

/// A fault in force; tells how often it fired. Dropping it does not end the fault.
#[derive(Clone, Debug)]
pub struct Injected(Arc<Active>);

#[derive(Debug)]
struct Active {
    pattern: String,
    fault: Fault,
    fitting: AtomicU64,
    fired: AtomicU64,
    all: Faults,
}

impl Injected {
    /// How many answers it changed.
    pub fn fired(&self) -> u64 {
        self.0.fired.load(Ordering::SeqCst)
    }

    /// Ends the fault.
    pub fn remove(&self) {
        let mut list = self.0.all.0.lock().expect("no holder panics");
        list.retain(|active| !Arc::ptr_eq(active, &self.0));
    }
}

/// The faults in force.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults(Arc<Mutex<Vec<Arc<Active>>>>);

impl Faults {
    pub fn inject(&self, pattern: &str, fault: Fault) -> Injected {
        let active = Arc::new(Active {
            pattern: pattern.to_owned(),
            fault,
            fitting: AtomicU64::new(0),
            fired: AtomicU64::new(0),
            all: self.clone(),
        });
        self.0.lock().expect("no holder panics").push(active.clone());
        Injected(active)
    }

    pub fn clear(&self) {
        self.0.lock().expect("no holder panics").clear();
    }

    pub fn apply(&self, parts: &Parts, draft: &mut Draft) {
        let active = self.0.lock().expect("no holder panics").clone();
        for fault in active.iter().filter(|fault| fault.fires(parts)) {
            fault.fault.effects.iter().for_each(|effect| effect.apply(draft));
        }
    }
}

impl Active {
    fn fires(&self, parts: &Parts) -> bool {
        let method = self.fault.method.as_deref();
        let fits = method.is_none_or(|method| method == parts.method)
            && pattern::matches(&self.pattern, parts.uri.path());
        if !fits {
            return false;
        }
        let position = self.fitting.fetch_add(1, Ordering::SeqCst);
        let last = self.fault.times.map_or(u64::MAX, |times| self.fault.skip + times);
        let fires = (self.fault.skip..last).contains(&position);
        self.fired.fetch_add(u64::from(fires), Ordering::SeqCst);
        fires
    }
}

impl Effect {
    fn apply(&self, draft: &mut Draft) {
        match self {
            Self::Status(status) => {
                let script = std::mem::take(&mut draft.script);
                *draft = Draft { bodiless: draft.bodiless, ..Draft::error(*status, "FAULT") };
                draft.script = script;
            }
            Self::Header(name, value) => draft.set_header(name, value),
            Self::NoHeader(name) => drop(draft.headers.remove(name)),
            Self::Body(bytes) => draft.replace_content(Content::Given(bytes.clone())),
            Self::Delay(delay) => draft.script.delay += *delay,
            Self::Opening(opening) => draft.script.opening = *opening,
            Self::LateBody(delay) => draft.script.late_body += *delay,
            Self::Pace(pace) => draft.script.pace = Some(*pace),
            Self::Wrong => draft.script.wrong = true,
            Self::End(end) => draft.script.ending = *end,
            Self::Hold(bytes, gate) => draft.script.hold = Some((*bytes, gate.clone())),
            Self::Short(bytes) => {
                draft.range.end = draft.range.end.min(draft.range.start + bytes);
            }
            Self::Long(bytes) => draft.lengthen(*bytes),
            Self::Shift(bytes) if draft.status == StatusCode::PARTIAL_CONTENT => {
                let start = draft.range.start.saturating_add_signed(*bytes);
                draft.range.start = start.min(draft.range.end);
                draft.tell_range();
            }
            Self::NoRange if draft.status == StatusCode::PARTIAL_CONTENT => draft.send_whole(),
            Self::Shift(_) | Self::NoRange => {}
        }
    }
}

impl Draft {
    fn replace_content(&mut self, content: Content) {
        self.range = 0..content.length();
        self.content = content;
    }

    fn lengthen(&mut self, by: u64) {
        let mut bytes = self.content.bytes().to_vec();
        bytes.extend(std::iter::repeat_n(0, usize::try_from(by).expect("addressable")));
        self.range.end += by;
        self.content = bytes.into();
    }

    fn send_whole(&mut self) {
        self.status = StatusCode::OK;
        self.headers.remove("content-range");
        self.headers.remove("accept-ranges");
        self.range = 0..self.content.length();
    }
}
